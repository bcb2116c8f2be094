"""The knobs that all families share, each with unit, default and meaning. A family adds its own (`families`).

A rule replaces a value of `auto` before training (`training/rules.py`). The choice is printed and stored in the run's
config.yaml. kimg means thousands of real images shown to the discriminator. All times of a run are counted in images,
not in steps or epochs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from stylegan_dist.config.knobs import (
    FIXED,
    LEAST_KIMG,
    MOST_IMAGES,
    MOST_KIMG,
    PER_RANK,
    SILENT,
    TOLD,
    Auto,
    knob,
)
from stylegan_dist.config.schedules import Scheduled
from stylegan_dist.families import sections_of
from stylegan_dist.ranges import MOST_SEED


@dataclass
class RunConfig:
    dir: str = knob("runs/unnamed", SILENT,
        "folder of the run; running the same command again continues what is there", path="one")
    seed: int = knob(0, FIXED, "seed of every random draw", least=0, most=MOST_SEED)
    init_from: str = knob("", FIXED,
        "a new run begins with the weights of this run (its newest checkpoint, FOLDER:IMAGES or FOLDER:best), folder of a "
        "checkpoint or .safetensors file of one network; it is read once; empty: with random ones", path="one")
    init_strict: bool = knob(True, SILENT,
        "refuse run.init_from where its networks differ in more than resolution, channels and number of classes; false: what "
        "does not fit begins anew")
    kimg: float = knob(25000.0, SILENT, "length of the training, thousands of images", above=0, most=MOST_KIMG)
    max_hours: float = knob(0.0, SILENT,
        "hours after which this start of the run saves its state and ends; the same command continues; 0: no limit",
        least=0, most=1_000_000)
    batch: int | Auto = knob("auto", TOLD, "global batch: images per step over all ranks", least=1, most=MOST_IMAGES)
    batch_gpu: int | Auto = knob("auto", SILENT,
        "micro-batch: images that a rank computes at once; does not change the result", least=1, most=MOST_IMAGES)
    recompute: int = knob(0, SILENT,
        "blocks at this resolution and above compute their activations again in the backward pass instead of storing them: "
        "less memory, the same result; 0: store all", least=0, most=65536)
    world_size: int | Auto = knob("auto", SILENT,
        "number of processes that must take part; a launch with another is refused", least=1, most=MOST_IMAGES)
    device: Literal["auto", "cuda", "cpu"] = knob("auto", SILENT, "auto: CUDA where there is a GPU")
    threads: int | Auto = knob("auto", PER_RANK,
        "CPU threads of each process; auto: cores / processes on this machine", least=1, most=4096)
    timeout: float = knob(600.0, SILENT,
        "seconds after which a rank that waits for another gives up; they must be more than writing a checkpoint, drawing "
        "samples or compiling can take", above=0, most=1_000_000)
    hang_seconds: float = knob(120.0, SILENT,
        "a training step counts as hanging after so many seconds, or 20 times the longest of the last steps if that is more, "
        "but after half of run.timeout at most; after twice that the run ends; more where storage may be away for longer",
        above=0, most=1_000_000)
    reduction: Literal["auto", "flat", "buckets"] = knob("auto", SILENT,
        "data parallel sum of gradients; flat: one all-reduce a phase; buckets: DDP, during the backward pass")
    compile: bool | Auto = knob("auto", TOLD,
        "compile networks where they are differentiated once, if that works; changes rounding; auto: false")
    cuda_graphs: bool | Auto = knob("auto", SILENT,
        "record backward passes as CUDA graphs and replay them, if that works; does not change the result; auto: false")
    deterministic: bool = knob(True, TOLD, "let cuDNN use only algorithms that give the same bits again, at some cost in speed")


@dataclass
class DataConfig:
    shards: str = knob("", PER_RANK,
        "folder or URL (s3, gs, http, hf, ...) of a shard set; several, with braces, wildcards and @WEIGHT are mixed: "
        "\"s3://a/faces@3 data/{cats,dogs}@1\"", path="several")
    cache: str = knob("auto", PER_RANK,
        "folder on a local disk that keeps the shards of URLs for all processes and runs of a node; auto: "
        "stylegan-dist-cache-UID in $SLURM_TMPDIR or the temporary folder", path="one")
    cache_gb: float = knob(64.0, PER_RANK, "size of that folder at most, GB", least=0, most=1e9)
    verify: Literal["always", "once", "never"] = knob("once", SILENT,
        "when shards are compared with the SHA-256 of their index, before they are read; once: unless that was done, and the "
        "file is as it was; always: at every start; changes nothing else")
    conditional: bool | Auto = knob("auto", FIXED, "train on class labels; auto: if the data has them")
    mirror: bool = knob(False, FIXED, "flip images left to right with probability one half")
    workers: int = knob(2, PER_RANK,
        "reader processes per rank; 0 reads in the training process, which then waits without a limit for a disk or a mount "
        "that does not answer", least=0, most=256)
    prefetch: int = knob(4, PER_RANK, "batches that each reader prepares ahead", least=1, most=256)
    lanes: int = knob(64, FIXED,
        "streams that the epoch is cut into; neighbours in a batch come from different lanes", least=1, most=65536)
    max_bad_fraction: float = knob(0.001, SILENT,
        "corrupt images are replaced; a larger share of them than this stops the run", least=0, most=1)
    block: int = knob(4096, FIXED,
        "samples of a lane that are shuffled together; more mixes better and touches more shards", least=1, most=1 << 24)


@dataclass
class PrecisionConfig:
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = knob("auto", TOLD, "of the top resolutions; auto: bf16 on GPUs with it")
    top_resolutions: int = knob(4, TOLD, "how many of the highest resolutions compute in `dtype`", least=0, most=64)
    clamp: float | Auto = knob("auto", TOLD,
        "bound of activations, 0 for none; auto: 256 for fp16, none otherwise", least=0, most=1e9)
    tf32: bool = knob(True, TOLD, "let fp32 matrix products and convolutions use TF32 on GPUs")
    channels_last: bool | Auto = knob("auto", TOLD, "memory format of convolutions; auto: true")


@dataclass
class OpsConfig:
    path: Literal["auto", "fused", "closed", "reference"] = knob("auto", TOLD,
        "fused: native operators; closed: PyTorch's, with convolutions that are fast on GPUs in penalties, too; reference: "
        "plain PyTorch; changes rounding; auto: fused where that is known to help, else closed on GPUs")
    require_fused: bool = knob(False, TOLD, "stop at the start where ops.path does not come to fused")


@dataclass
class AugmentConfig:
    pipe: str = knob("none", TOLD,
        "what happens to all images that the discriminator sees; none, bg, bgc, bgcf, bgcfn, bgcfnc, diffaugment, "
        "diffaugment-places (translation and cutout alone, which arrays can have), or some of "
        "blit, geom, color, filter, noise, cutout with multipliers of p, such as bg,color:0.5,cutout")
    p: Scheduled | Literal["ada"] = knob("ada", TOLD,
        "probability of each transform; ada: follows how well the discriminator knows real images; diffaugment has "
        "none", least=0, most=1)
    controller: Literal["auto", "r_t", "r_v"] = knob("auto", TOLD,
        "ada: what p follows; r_t: the mean sign of the logits of real images; r_v: how far the logits of held-out images are "
        "from those of real ones, on the way to those of generated ones; auto: r_v with augment.held_out, else r_t")
    target: float | Auto = knob("auto", TOLD,
        "ada: what it follows is to be this, and p stays as it is there; auto: 0.6 for r_t, 0.5 for r_v", least=0, most=1)
    held_out: str = knob("", TOLD,
        "shards of real images that are not trained on, named as data.shards; every fourth step the discriminator judges a "
        "batch of them: ticks have logits/held_out and augment/r_v", path="several")
    kimg: float | Auto = knob("auto", TOLD,
        "ada: thousands of images in which p may go from 0 to 1; auto: 500, with run.init_from 100", above=0, most=MOST_KIMG)


@dataclass
class OptimizerConfig:
    name: str = knob("Adam", FIXED, "an optimizer of torch.optim: Adam, AdamW, SGD, RMSprop, Adagrad, Adadelta, ...")
    lr: Scheduled | Auto = knob("auto", TOLD, "learning rate; auto (Adam): 0.0025, from 1024 px 0.002", least=0, most=1000)
    betas: list[Scheduled] = knob([0.0, 0.99], TOLD, "Adam family: decay of the first and second moment", least=0, most=1)
    eps: float | Auto = knob("auto", TOLD,
        "added to the denominator; auto: the optimizer's own, 1e-8 for Adam", least=0, most=1000)
    momentum: float = knob(0.0, FIXED, "SGD and RMSprop", least=0, most=1)
    nesterov: bool = knob(False, TOLD, "SGD with momentum")
    alpha: float | Auto = knob("auto", TOLD, "RMSprop: decay of the squared gradient; auto: 0.99", least=0, most=1)
    rho: float | Auto = knob("auto", TOLD, "Adadelta: decay of the squared gradient; auto: 0.9", least=0, most=1)
    weight_decay: float = knob(0.0, TOLD, "as defined by the optimizer", least=0, most=1000)
    clip: float = knob(0.0, TOLD,
        "a longer gradient of the whole network is scaled to this norm, before l1 is added; 0: none", least=0, most=1e9)
    l1: float = knob(0.0, TOLD, "L1 penalty: adds l1 * sign(parameter) to the gradient of every main step", least=0, most=1000)


@dataclass
class OptimConfig:
    g: OptimizerConfig = field(default_factory=OptimizerConfig)
    d: OptimizerConfig = field(default_factory=OptimizerConfig)


@dataclass
class EmaConfig:
    half_life_kimg: Scheduled | Auto = knob("auto", TOLD,
        "half-life of the averaged generator; auto: 10 kimg at batch 32, in proportion", least=0, most=MOST_KIMG)
    placement: Literal["auto", "device", "sharded", "cpu"] = knob("auto", SILENT,
        "device: whole on every rank; sharded: a part on each; cpu: a part in the host's memory of each")
    rampup: float | Auto = knob("auto", TOLD,
        "the half-life is at most this share of the images seen so far; 0 switches it off; auto: 0.05, with run.init_from 0",
        least=0, most=1000)


@dataclass
class CheckpointConfig:
    every_kimg: float = knob(200.0, SILENT, "between checkpoints", least=LEAST_KIMG, most=MOST_KIMG)
    keep: int = knob(3, SILENT, "most recent checkpoints that are kept", least=1, most=1_000_000)
    file_mib: float = knob(1024.0, SILENT,
        "largest file of a checkpoint; a larger state is cut, and the ranks write different files", least=0.001, most=1_000_000)
    archive_kimg: float = knob(0.0, SILENT,
        "also keep one checkpoint every so often for ever; 0 for none", least=0, most=MOST_KIMG)


@dataclass
class GuardConfig:
    nonfinite: Literal["replace", "skip"] = knob("replace", TOLD,
        "gradients that are not finite; replace: NaN by 0, infinities by 1e5; skip: leave out the update of that phase, which "
        "waits for the device in each phase")
    limit: int = knob(50, TOLD,
        "steps of the last 100 that may have values that are not finite; with more the run goes back to its last healthy "
        "checkpoint; 100: any number", least=0, most=100)
    rollbacks: int = knob(2, TOLD, "how often a run goes back at most, before it ends; 0: it ends at once", least=0, most=1000)
    lr_factor: float = knob(1.0, TOLD, "multiplies both learning rates each time the run goes back", above=0, most=1)


DEFAULT_METRICS = "fid,kid,pr"  # of samples whose kind has no scores of its own


@dataclass
class EvaluateConfig:
    every_kimg: float = knob(0.0, SILENT,
        "score a checkpoint every so often, on all ranks, while training waits; 0: never, as `stylegan-dist evaluate --watch` "
        "does it beside a training", least=0, most=MOST_KIMG)
    metrics: str = knob("auto", SILENT,
        "some of fid, kid, pr, is, infinity, accuracy, classes, ppl, eq_t, eq_t_frac, eq_r, and of those that the kind of the "
        "data has; the first decides which checkpoint is the best; auto: those of the kind, or fid,kid,pr where it has none")
    network: str = knob("efficientnet-lite0", SILENT,
        "of features: efficientnet-lite0, inception, dinov2-s, dinov2-l, clip, or a folder made with train-features")
    count: int = knob(50_000, SILENT, "samples drawn for a score, and real ones at most", least=1, most=1 << 40)


@dataclass
class MonitorConfig:
    tick_kimg: float = knob(4.0, SILENT, "between status lines and metric records", least=LEAST_KIMG, most=MOST_KIMG)
    samples_kimg: float = knob(100.0, SILENT, "between pictures of samples", least=LEAST_KIMG, most=MOST_KIMG)
    pictures_kimg: float = knob(1000.0, SILENT,
        "between pictures of what the averaged generator has learned (truncation, classes, interpolation), also at the end; "
        "0: none", least=0, most=MOST_KIMG)
    grid_columns: int = knob(8, SILENT,
        "columns of the sample picture; one class per column if conditional", least=1, most=1024)
    grid_rows: int = knob(8, SILENT, "rows of the sample picture", least=1, most=1024)
    wandb: Literal["auto", "online", "offline", "disabled"] = knob("auto", SILENT,
        "auto: online with an API key, else offline; WANDB_MODE, `wandb offline` or `disabled` go before it")
    wandb_project: str = knob("", SILENT, "W&B project; empty for WANDB_PROJECT, or else stylegan_dist")
    wandb_entity: str = knob("", SILENT, "W&B user or team; empty for WANDB_ENTITY, or else the account's default")
    wandb_name: str = knob("", SILENT, "W&B display name; empty for WANDB_NAME, or else the name of the run's folder")
    tensorboard: bool = knob(False, SILENT, "write RUN/tensorboard, too: the same content")


@dataclass
class Config:
    """A whole configuration. The sections `generator`, `discriminator` and `loss` are those of a family (`config_of`)."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    generator: Any = field(default_factory=lambda: sections_of()["generator"]())
    discriminator: Any = field(default_factory=lambda: sections_of()["discriminator"]())
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    ops: OpsConfig = field(default_factory=OpsConfig)
    loss: Any = field(default_factory=lambda: sections_of()["loss"]())
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)


def config_of(family: str) -> Config:
    """The defaults of a family of networks.

    Raises:
        InputError: there is no such family.
    """
    config = Config(**{name: section() for name, section in sections_of(family).items()})
    config.generator.family = family
    return config
