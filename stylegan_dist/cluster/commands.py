"""The verbs `submit`, `runs` and `stop` of the command line."""

from __future__ import annotations

import argparse
from pathlib import Path

from stylegan_dist.arguments import add_verb, path, whole, word
from stylegan_dist.config import load_config
from stylegan_dist.errors import EXIT_OK
from stylegan_dist.machine import name_the_user
from stylegan_dist.paths import user_path
from stylegan_dist.ranges import Range

_MACHINES = Range(1, 100_000)
_DEVICES = Range(0, 1024)

_SUBMIT_EXAMPLES = """\
examples:
  # 4 nodes with 8 GPUs each; preempted or at its time limit, the run goes on by itself
  stylegan-dist submit launch/presets/ffhq256.yaml data.shards=/data/ffhq run.dir=/scratch/ffhq \\
    --nodes 4 --gpus-per-node 8 --time 24:00:00

  # ZeRO-2, another partition, and any further option of sbatch
  stylegan-dist submit launch/presets/auto.yaml data.shards=/data/cats run.dir=/scratch/cats \\
    --gpus-per-node 4 --accelerate zero2 --sbatch=--partition=a100 --sbatch=--account=vision

Options for all jobs of a cluster belong into slurm/site.sh. slurm/README.md says more.
"""

_RUNS_EXAMPLES = """\
examples:
  stylegan-dist runs                     # all in runs/
  stylegan-dist runs /scratch/ffhq       # one, or all in a folder
  watch -n 30 stylegan-dist runs /scratch

states: queued, held, starting, running, preempted (queued again), stopped, finished, diverged, failed; dead: it says that it
runs, and gives no sign of life.
"""


def add_submit(verbs) -> None:
    """Add the verb `submit` to the result of `ArgumentParser.add_subparsers`."""
    parser = add_verb(
        verbs, "submit", _submit,
        help="train as a job of Slurm that goes on by itself", epilog=_SUBMIT_EXAMPLES,
        description="Check a run, and queue it as a job of Slurm. What cannot work is refused before it waits in the queue.\n"
        "The job saves its state before a time limit and when it is preempted, and continues by itself.",
    )
    parser.add_argument("preset", nargs="?", help="YAML file, for example launch/presets/auto.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any configuration key, as for train")
    parser.add_argument("--nodes", type=whole("--nodes", _MACHINES), default=1, help="machines (default: %(default)s)")
    parser.add_argument("--gpus-per-node", type=whole("--gpus-per-node", _DEVICES), default=1, metavar="N",
                        help="GPUs of each, with a process for each; 0 for CPUs (default: %(default)s)")
    parser.add_argument("--processes", type=whole("--processes", _MACHINES), default=1, metavar="N",
                        help="processes of each node without GPUs (default: %(default)s)")
    parser.add_argument("--time", type=word("--time"), default="",
                        help="limit of one start, such as 24:00:00 or 2-00:00:00 (default: that of the partition)")
    parser.add_argument("--warning", type=whole("--warning", Range(60, 86_400)), default=300, metavar="SECONDS",
                        help="before that limit the run saves its state (default: %(default)s)")
    parser.add_argument("--accelerate", type=word("--accelerate"), default="", metavar="FILE",
                        help="a file of launch/accelerate by its name, such as zero2, or a path (default: data parallel)")
    parser.add_argument("--sbatch", type=word("--sbatch"), action="append", default=[], metavar="OPTION",
                        help="a further option of sbatch, such as --sbatch=--partition=gpu; may be given several times")
    parser.add_argument("--dry-run", action="store_true", help="check, print the script, and submit nothing")


def _submit(args: argparse.Namespace) -> int:
    from stylegan_dist.cluster.slurm import job_of
    from stylegan_dist.cluster.submit import Request, check, render, submit

    if args.preset and "=" in args.preset:  # only overrides were given
        args.preset, args.overrides = None, [args.preset, *args.overrides]
    config = load_config(args.preset and user_path(args.preset, "the preset", url=False), args.overrides)
    name_the_user()
    arguments = [*([args.preset] if args.preset else []), *args.overrides]
    request = Request(arguments, args.nodes, args.gpus_per_node, args.time, args.warning, args.processes, args.accelerate,
                      args.sbatch)
    print("checked:", "\n  note: ".join(check(config, request)), flush=True)
    if args.dry_run:
        print(render(config, request), end="")
        return EXIT_OK
    number, run = submit(config, request), Path(config.run.dir)
    job = job_of(number)
    where = f"partition {job.partition}, " if job and job.partition else ""
    devices = f"{args.gpus_per_node} GPUs" if args.gpus_per_node else f"{args.processes} processes"
    print(f"submitted job {number} ({where}{args.nodes} node{'s' * (args.nodes > 1)} x {devices}); "
          f"log: {run}/slurm-{number}.out\n"
          f"watch: stylegan-dist runs {run}      stop: scancel {number}      "
          f"stop and keep the place in the queue: stylegan-dist stop {run}")
    return EXIT_OK


def add_runs(verbs) -> None:
    """Add the verb `runs` to the result of `ArgumentParser.add_subparsers`."""
    parser = add_verb(
        verbs, "runs", _runs,
        help="what runs are doing", epilog=_RUNS_EXAMPLES,
        description="The state of runs, how far they are, how fast, when they will be done, and their last checkpoint.",
    )
    parser.add_argument("folders", nargs="*", metavar="FOLDER", type=path("FOLDER"), default=["runs"],
                        help="of a run, or with runs in it (default: runs)")
    parser.add_argument("--json", action="store_true", help="for programs")


def _runs(args: argparse.Namespace) -> int:
    from stylegan_dist.cluster.runs import as_json, find_runs, report, table

    reports = report(find_runs(args.folders))
    print(as_json(reports) if args.json else table(reports))
    return EXIT_OK


def add_stop(verbs) -> None:
    """Add the verb `stop` to the result of `ArgumentParser.add_subparsers`."""
    parser = add_verb(
        verbs, "stop", _stop,
        help="ask a run to save its state and stop",
        description="Ask a run to save its state and stop after its next step. A job of Slurm then waits in the queue until\n"
        "`scontrol release`, and continues. To end the job for good, use --end or scancel: the state is saved then, too.",
    )
    parser.add_argument("run_dir", metavar="RUN", type=path("RUN"), help="folder of the run")
    parser.add_argument("--end", action="store_true", help="end its job of Slurm for good")


def _stop(args: argparse.Namespace) -> int:
    from stylegan_dist.cluster.runs import stop

    print(stop(Path(args.run_dir), args.end))
    return EXIT_OK
