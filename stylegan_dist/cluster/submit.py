"""Submitting a run to Slurm, after checking what can be checked before it waits in a queue."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

import stylegan_dist
from stylegan_dist.cluster.slurm import call, cluster_name, job_of, seconds_of
from stylegan_dist.config import Config
from stylegan_dist.data.index import DatasetIndex
from stylegan_dist.engine.choice import Choice, choose_engine
from stylegan_dist.errors import InputError
from stylegan_dist.files import write_whole
from stylegan_dist.monitor.monitor import METRICS_NAME
from stylegan_dist.ops import native
from stylegan_dist.ranks import ALONE, World
from stylegan_dist.training.lease import BEAT_SECONDS, STATUS_NAME, read_status
from stylegan_dist.training.memory import estimate_memory
from stylegan_dist.training.plan import load_index_of
from stylegan_dist.training.rules import Resolved, resolve, steps_in
from stylegan_dist.training.run_folder import starting_point
from stylegan_dist.training.transfer import open_transfer

JOB_NAME = "job"             # the file in a run's folder with the number of its newest job and the name of its cluster
SCRIPT_NAME = "job.sbatch"   # the script as it was submitted
START_SECONDS = 120          # for a start on a cluster: imports from a network file system, compiling operators, the first step
WRITE_RATE = 100e6           # bytes a second of a checkpoint, where nobody has measured
_OWN = {"--nodes": "--nodes", "-N": "--nodes", "--time": "--time", "-t": "--time", "--gpus-per-node": "--gpus-per-node",
        "--gres": "--gpus-per-node", "--gpus": "--nodes and --gpus-per-node", "-G": "--nodes and --gpus-per-node",
        "--signal": "--warning", "--output": "run.dir, where the log is", "-o": "run.dir, where the log is"}
_ENVIRONMENT = {             # of accelerate's file -> the variable that `accelerate launch` sets
    "zero_stage": "ACCELERATE_DEEPSPEED_ZERO_STAGE",
    "offload_optimizer_device": "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE",
    "offload_param_device": "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "gradient_clipping": "ACCELERATE_GRADIENT_CLIPPING",
    "deepspeed_config_file": "ACCELERATE_DEEPSPEED_CONFIG_FILE",
}


@dataclass(frozen=True)
class Request:
    """What to ask Slurm for.

    Attributes:
        arguments: PRESET and key=value as they were typed, for the trainer.
        time: the limit of one start, as Slurm writes it; empty for that of the partition.
        warning: seconds before that limit at which the run is to save its state.
        processes: on each node, where there are no GPUs.
        accelerate: a file of launch/accelerate by its name, or a path; empty: by the number of processes.
        options: further options of sbatch.
    Raises:
        InputError: one of those is an option of `submit` itself.
    """

    arguments: Sequence[str]
    nodes: int = 1
    gpus_per_node: int = 1
    time: str = ""
    warning: int = 300
    processes: int = 1
    accelerate: str = ""
    options: Sequence[str] = ()

    def __post_init__(self) -> None:
        for option in self.options:
            name = option.partition("=")[0] if option.startswith("--") else option[:2]
            if own := _OWN.get(name):
                raise InputError(f"--sbatch={option}: give {own} instead, so that it can be checked before the job is queued")

    @property
    def world_size(self) -> int:
        return self.nodes * (self.gpus_per_node or self.processes)


def home() -> Path:
    """The folder with slurm/ and launch/.

    Raises:
        InputError: there is none.
    """
    found = Path(os.environ.get("STYLEGAN_DIST_HOME") or Path(stylegan_dist.__file__).parents[1])
    if not (found / "slurm/train.sbatch").is_file():
        raise InputError(f"{found} has no slurm/train.sbatch: install from a clone of the repository, or set "
                         "STYLEGAN_DIST_HOME to one")
    return found


@native.not_compiling()
def check(config: Config, request: Request) -> list[str]:
    """Everything that would end the job after it has waited in the queue; returns what a person should read, in lines.

    Raises:
        InputError: with what cannot work, and what to change.
    """
    engine = _engine(request.accelerate)
    if "\\" in os.path.abspath(config.run.dir):
        raise InputError(f"run.dir={config.run.dir}: Slurm writes no log to a path with a backslash: choose another folder")
    index, run_dir = load_index_of(config), Path(config.run.dir)
    device = "cuda" if request.gpus_per_node and config.run.device != "cpu" else "cpu"
    if request.gpus_per_node == 0 and config.run.device == "cuda":
        raise InputError("run.device=cuda needs GPUs: give --gpus-per-node")
    if device == "cuda" and not torch.cuda.is_available() and config.ops.path == "fused":
        config.ops.path = "auto"  # whether they can be built is known on the machines with GPUs alone
    if device == "cuda" and not torch.cuda.is_available():
        config.ops.require_fused = False
    sharded = (zero := engine["g"]) is not None and zero.stage == 3
    resolved = resolve(config, index, World(request.world_size, device, device == "cuda", sharded))
    nimg, notices = 0, list[str]()
    if run_dir.exists():
        _check_nobody_trains(run_dir)
        nimg, notices = starting_point(run_dir, resolved.config, index.fingerprint)
    total = steps_in(resolved.config) * resolved.config.run.batch
    if nimg >= total:
        raise InputError(f"{run_dir} is finished, at {nimg / 1000:g} kimg: set run.kimg higher to go on, or choose another "
                         "run.dir")
    open_transfer(resolved, index, ALONE)
    estimate = estimate_memory(resolved, index, request.world_size, device, engine)
    notices += _check_time(resolved, request, sum(estimate.resident.values()))
    return [_describe(resolved, index, request, nimg, estimate.peak, device), *notices]


def _describe(resolved: Resolved, index: DatasetIndex, request: Request, nimg: int, peak: float, device: str) -> str:
    run, count = resolved.config.run, request.world_size
    start = f"continues at {nimg / 1000:g} of {run.kimg:g} kimg" if nimg else f"{run.kimg:g} kimg"
    return (f"batch {run.batch} over {count} process{'es' * (count > 1)} ({run.batch // count} images each, {run.batch_gpu} at "
            f"once), {index.num_samples:,} {index.kind.noun} of {index.resolution} px, {start}; a process needs about "
            f"{peak / 2**30:.1f} GiB of {'GPU ' * (device == 'cuda')}memory")


def _engine(accelerate: str) -> Choice:
    if not accelerate:
        return choose_engine({})
    path = Path(accelerate) if "/" in accelerate else home() / f"launch/accelerate/{accelerate}.yaml"
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        known = ", ".join(sorted(file.stem for file in (home() / "launch/accelerate").glob("*.yaml")))
        raise InputError(f"--accelerate: {path} cannot be read ({error.strerror}); give a path, or one of {known}") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        content = None
    if not isinstance(content, dict):
        raise InputError(f"--accelerate: {path} is no configuration file of accelerate")
    environment = {"ACCELERATE_USE_DEEPSPEED": str(content.get("distributed_type") == "DEEPSPEED").lower()}
    settings = content.get("deepspeed_config") or {}
    environment |= {variable: str(settings[key]) for key, variable in _ENVIRONMENT.items() if key in settings}
    return choose_engine(environment)


def _check_nobody_trains(run_dir: Path) -> None:
    """Of two jobs in one folder the second would fail."""
    status = read_status(run_dir)
    if status and status.state in ("starting", "running") and is_fresh(run_dir):
        raise InputError(f"a process is training in {run_dir}, {status.owner.describe()}: stylegan-dist stop {run_dir} ends "
                         "it; or choose another run.dir")
    job = job_of(read_job(run_dir))
    if job is not None:
        release = f", or let it go on: scontrol release {job.number}" if job.state == "held" else ""
        raise InputError(f"{run_dir} has job {job.number} already, which is {job.state}: scancel {job.number} ends "
                         f"it{release}; or choose another run.dir")


def _check_time(resolved: Resolved, request: Request, state: float) -> list[str]:
    """A start must get past its beginning and write a checkpoint of so many bytes."""
    limit = seconds_of(request.time) if request.time else float("inf")
    needed = request.warning + START_SECONDS + state / WRITE_RATE
    if limit < needed:
        raise InputError(f"--time={request.time} is too short: the run is told to save its state {request.warning} s before "
                         f"the end (--warning), after a start of {START_SECONDS} s, and writes about {state / 1e9:.1f} GB: "
                         f"give at least {needed / 60:.0f} minutes")
    every = resolved.config.checkpoint.every_kimg
    pace = _seconds_per_kimg(Path(resolved.config.run.dir))
    if pace and every * pace > limit - request.warning:
        return [f"a checkpoint every {every:g} kimg takes about {every * pace / 3600:.1f} h, longer than --time={request.time}"
                ": what was not saved on a warning is lost; a smaller checkpoint.every_kimg saves more often"]
    return []


def _seconds_per_kimg(run_dir: Path) -> float | None:
    """As the last tick has measured."""
    try:
        with open(run_dir / METRICS_NAME, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - (1 << 16)))
            pace = json.loads(file.read().splitlines()[-1])["time/sec_per_kimg"]
            return float(pace)
    except (OSError, ValueError, LookupError, TypeError):
        return None


def is_fresh(run_dir: Path) -> bool:
    """Whether the owner of a run has written status.json a moment ago, if the clocks of this machine and the disk agree."""
    try:
        return 0 <= time.time() - os.stat(run_dir / STATUS_NAME).st_mtime <= 2 * BEAT_SECONDS
    except OSError:
        return False


def read_job(run_dir: Path) -> str:
    """The number of the run's newest job in this cluster; empty if it has had none."""
    try:
        with open(run_dir / JOB_NAME, encoding="utf-8", errors="replace") as file:
            number, cluster = [*file.read(1000).split("\n"), "", ""][:2]
    except OSError:
        return ""
    other = cluster.strip() and cluster_name() not in ("", cluster.strip())  # clusters may share a disk
    return "" if other else number.strip()


def render(config: Config, request: Request) -> str:
    """The script for sbatch: slurm/train.sbatch with the options and arguments filled in."""
    run_dir, root = Path(config.run.dir).absolute(), home()
    log = str(run_dir).replace("%", "%%") + "/slurm-%j.out"
    options = [
        f"--job-name={run_dir.name}", f"--output={log}", f"--chdir={os.getcwd()}", f"--nodes={request.nodes}",
        f"--signal=B:USR1@{request.warning}",
        *([f"--time={request.time}"] if request.time else []),
        *([f"--gpus-per-node={request.gpus_per_node}"] if request.gpus_per_node else []),
        *_site_options(), *request.options,
    ]
    environment = {"STYLEGAN_DIST_HOME": str(root), "STYLEGAN_DIST_SITE": str(_site())}
    if request.accelerate:
        environment["STYLEGAN_DIST_ACCELERATE"] = request.accelerate
    if not request.gpus_per_node:
        environment["STYLEGAN_DIST_PROCESSES_PER_NODE"] = str(request.processes)
    head, separator, body = (root / "slurm/train.sbatch").read_text().partition("set -uo pipefail\n")
    assert separator
    return (head + "".join(f"#SBATCH {_quoted(option)}\n" for option in options) + separator
            + "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items())
            + f"set -- {shlex.join(request.arguments)}\n" + body)


def _quoted(option: str) -> str:
    """As sbatch reads a line of options: blanks separate them outside of double quotes."""
    return '"' + option.replace("\\", "\\\\").replace('"', '\\"') + '"' if any(c in option for c in " \t\"'#") else option


def _site() -> Path:
    return Path(os.environ.get("STYLEGAN_DIST_SITE") or home() / "slurm/site.sh").absolute()


def _site_options() -> list[str]:
    """SITE_SBATCH of site.sh."""
    done = subprocess.run(["bash", "-c", 'source "$1" > /dev/null && printf "%s\\0" "${SITE_SBATCH[@]}"', "bash", str(_site())],
                          capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60, check=False)
    if done.returncode:
        raise InputError(f"{_site()} cannot be read: {done.stderr.strip() or 'it ends with an error'}")
    return [option for option in done.stdout.split("\0") if option]


def submit(config: Config, request: Request) -> str:
    """Queue a run that `check` has accepted; returns the number of its job.

    Raises:
        InputError: the run's folder cannot be written, or Slurm refuses.
    """
    run_dir, script = Path(config.run.dir).absolute(), render(config, request)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        write_whole(run_dir / SCRIPT_NAME, script)
    except OSError as error:
        raise InputError(f"cannot write to the run's folder {run_dir}: {error.strerror}; choose another run.dir") from None
    # The variables of a job that this one is submitted from are not its own.
    environment = {name: value for name, value in os.environ.items() if name != "SLURM_RESTART_COUNT"}
    number = call("sbatch", "--parsable", str(run_dir / SCRIPT_NAME), env=environment).strip().partition(";")[0]
    write_whole(run_dir / JOB_NAME, f"{number}\n{cluster_name()}\n")
    return number
