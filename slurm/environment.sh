# What every job script begins with; sourced, with `home` set to the root of the repository. It fails if slurm/site.sh does.
# shellcheck shell=bash disable=SC2154
export STYLEGAN_DIST_HOME=$home STYLEGAN_DIST_SITE=${STYLEGAN_DIST_SITE:-$home/slurm/site.sh}
export SLURM_EXPORT_ENV=ALL  # a job that was submitted with --export=NONE would pass it on to its steps
case $- in *e*) options=-eu ;; *) options=-u ;; esac
set +eu  # modules and conda use variables that are not set
# shellcheck source=/dev/null
source "$STYLEGAN_DIST_SITE" || return 2
site_setup
set $options
# srun does not take this over from sbatch by itself. It may bind the one task of a node to one CPU.
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi
if scontrol show config | grep -q '^TaskPlugin .*\(affinity\|cgroup\)'; then export SLURM_CPU_BIND=none; fi
