# What is special to your cluster. All scripts of this folder read it, and `stylegan-dist submit` does: nobody edits those.
# Keep your own copy elsewhere if you like: export STYLEGAN_DIST_SITE=/path/to/site.sh

# Options of sbatch for all jobs. `stylegan-dist submit` adds them; with plain sbatch give them on the command line.
SITE_SBATCH=(
  # --partition=gpu
  # --account=my-project
  # --constraint=a100
  # --mail-type=FAIL
)

# Runs once on the first node, and in every task on its own node: modules, environment variables, the virtual environment.
site_setup() {
  # module load cuda/12.8
  # export NCCL_SOCKET_IFNAME=ib0
  if [ -d "$STYLEGAN_DIST_HOME/.venv/bin" ]; then PATH=$STYLEGAN_DIST_HOME/.venv/bin:$PATH; fi
}

# Options of srun for each step. A container with pyxis:
SITE_SRUN=(
  # --container-image=/images/stylegan-dist.sqsh
  # --container-mounts=/data,/scratch,"$STYLEGAN_DIST_HOME"
  # --container-workdir="$PWD"
)

# What stands before each command of the training. A container with apptainer:
SITE_RUN=(
  # apptainer exec --nv --bind /data,/scratch,"$STYLEGAN_DIST_HOME" /images/stylegan-dist.sif
)
