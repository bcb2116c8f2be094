"""Every knob of a run, once, with its unit, its default and its meaning.

A value of `auto` is replaced by a rule before training (see rules.py); what the rule chose is printed
and stored in the run's config.yaml. kimg means thousands of real images shown to the discriminator:
all times of a run are counted in images, never in steps or epochs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from stylegan_dist.ranges import MOST_SEED, Range

if TYPE_CHECKING:
    # Training works on resolved configurations, in which no value is "auto": so says the type, too.
    from typing import NoReturn as Auto
else:
    Auto = Literal["auto"]

MOST_IMAGES = 1 << 20        # of a global batch; so there are at most as many processes
MOST_KIMG = 1e9              # 10^12 images
MOST_STEPS = 1_000_000       # between two of something
MOST_LAYERS = 128
MOST_WIDTH = 8192
MOST_MAPS = 4096             # feature maps of a convolution
MOST_WEIGHT = 1e9            # of a term of the loss
LEAST_KIMG = 1e-6            # between two of something; below one image nothing happens more often


def knob(default: Any, doc: str, *, least: float | None = None, most: float | None = None, above: float | None = None,
         path: Literal["one", "several"] | None = None) -> Any:
    """A configuration field: its documentation, and what may be set.

    Args:
        least, most, above: its range, see `Range`; every number has one. Of a list, that of each item. An upper bound is
            beyond what anybody means, and below what would hang, overflow or exhaust memory before it is an error.
        path: it names one place on this machine, or several places or URLs with blanks between: `~` at their beginning
            stands for a home folder.
    """
    metadata: dict[str, Any] = {"doc": doc, "path": path, "range": None}
    if (least, most, above) != (None, None, None):
        metadata["range"] = Range(least, most, above)
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class RunConfig:
    dir: str = knob("runs/unnamed", "folder of the run; running the same command again continues what is there", path="one")
    seed: int = knob(0, "seed of every random draw", least=0, most=MOST_SEED)
    kimg: float = knob(25000.0, "length of the training, thousands of images", above=0, most=MOST_KIMG)
    batch: int | Auto = knob("auto", "global batch: images per step over all ranks", least=1, most=MOST_IMAGES)
    batch_gpu: int | Auto = knob(
        "auto", "micro-batch: images that a rank computes at once; does not change the result", least=1, most=MOST_IMAGES)
    recompute: int = knob(0, "blocks at this resolution and above compute their activations again in the backward pass "
                             "instead of storing them: less memory, the same result; 0: store all", least=0, most=65536)
    world_size: int | Auto = knob(
        "auto", "number of processes that must take part; a launch with another is refused", least=1, most=MOST_IMAGES)
    device: Literal["auto", "cuda", "cpu"] = knob("auto", "auto: CUDA where there is a GPU")
    threads: int | Auto = knob(
        "auto", "CPU threads of each process; auto: cores / processes on this machine", least=1, most=4096)
    timeout: float = knob(600.0, "seconds after which a rank that waits for another gives up; they must be more "
                            "than writing a checkpoint, drawing samples or compiling can take", above=0, most=1_000_000)
    reduction: Literal["auto", "flat", "buckets"] = knob(
        "auto", "data parallel sum of gradients; flat: one all-reduce a phase; buckets: DDP, during the backward pass")
    compile: bool | Auto = knob("auto", "compile networks where they are differentiated once, if that works; changes "
                                       "rounding; auto: false")
    cuda_graphs: bool | Auto = knob("auto", "record backward passes as CUDA graphs and replay them, if that works; does not "
                                            "change the result; auto: false")
    deterministic: bool = knob(True, "let cuDNN use only algorithms that give the same bits again, at some cost in speed")


@dataclass
class DataConfig:
    shards: str = knob("", "folder or URL (s3, gs, http, hf, ...) of a shard set; several, with braces, wildcards "
                           "and @WEIGHT are mixed: \"s3://a/faces@3 data/{cats,dogs}@1\"", path="several")
    cache: str = knob("auto", "folder on a local disk that keeps the shards of URLs for all processes and runs of a node; "
                              "auto: stylegan-dist-cache-UID in $SLURM_TMPDIR or the temporary folder", path="one")
    cache_gb: float = knob(64.0, "size of that folder at most, GB", least=0, most=1e9)
    verify: Literal["always", "once", "never"] = knob(
        "once", "when shards are compared with the SHA-256 of their index, before they are read; once: unless that was done, "
                "and the file is as it was; always: at every start; changes nothing else")
    conditional: bool | Auto = knob("auto", "train on class labels; auto: if the data has them")
    mirror: bool = knob(False, "flip images left to right with probability one half")
    workers: int = knob(2, "reader processes per rank; 0 reads in the training process, which then waits without a "
                           "limit for a disk or a mount that does not answer", least=0, most=256)
    prefetch: int = knob(4, "batches that each reader prepares ahead", least=1, most=256)
    lanes: int = knob(
        64, "streams that the epoch is cut into; neighbours in a batch come from different lanes", least=1, most=65536)
    max_bad_fraction: float = knob(
        0.001, "corrupt images are replaced; a larger share of them than this stops the run", least=0, most=1)
    block: int = knob(
        4096, "samples of a lane that are shuffled together; more mixes better and touches more shards", least=1, most=1 << 24)


@dataclass
class GeneratorConfig:
    z_dim: int = knob(512, "width of the latent z", least=1, most=MOST_WIDTH)
    w_dim: int = knob(512, "width of the mapping network and of w", least=1, most=MOST_WIDTH)
    mapping_layers: int | Auto = knob("auto", "fully connected layers from z to w; auto: 2", least=1, most=MOST_LAYERS)
    channel_base: int | Auto = knob(
        "auto", "feature maps at resolution r are channel_base / r; auto: 32768 from 512 px", least=1, most=1 << 20)
    channel_max: int = knob(512, "upper limit of the feature maps", least=1, most=MOST_MAPS)
    w_avg_decay: float = knob(0.995, "decay per step of the running mean of w that truncation pulls to", least=0, most=1)


@dataclass
class DiscriminatorConfig:
    architecture: Literal["resnet", "orig"] = knob("resnet", "resnet: residual blocks; orig: none")
    channel_base: int | Auto = knob("auto", "auto: as the generator", least=1, most=1 << 20)
    channel_max: int = knob(512, "upper limit of the feature maps", least=1, most=MOST_MAPS)
    mapping_layers: int = knob(8, "fully connected layers from the class label to the projection", least=1, most=MOST_LAYERS)
    mbstd_group: int | Auto = knob(
        "auto", "images per group of the minibatch standard deviation; auto: at most 4", least=1, most=MOST_IMAGES)


@dataclass
class PrecisionConfig:
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = knob("auto", "of the top resolutions; auto: bf16 on GPUs with it")
    top_resolutions: int = knob(4, "how many of the highest resolutions compute in `dtype`", least=0, most=64)
    clamp: float | Auto = knob(
        "auto", "bound of activations, 0 for none; auto: 256 for fp16, none otherwise", least=0, most=1e9)
    tf32: bool = knob(True, "let fp32 matrix products and convolutions use TF32 on GPUs")
    channels_last: bool | Auto = knob("auto", "memory format of convolutions; auto: true")


@dataclass
class OpsConfig:
    path: Literal["auto", "fused", "closed", "reference"] = knob(
        "auto", "fused: native operators; closed: PyTorch's, with convolutions that are fast on GPUs in penalties, too; "
                "reference: plain PyTorch; changes rounding; auto: fused where that is known to help, else closed on GPUs")
    require_fused: bool = knob(False, "stop at the start where ops.path does not come to fused")


@dataclass
class LossConfig:
    adversarial: str = knob("nonsaturating", "nonsaturating, minimax, hinge, wasserstein, least_squares, relativistic")
    r1_gamma: float | Auto = knob(
        "auto", "weight of the gradient penalty on real images; auto: 0.0002 R^2 / batch", least=0, most=MOST_WEIGHT)
    r2_gamma: float = knob(0.0, "weight of the gradient penalty on generated images", least=0, most=MOST_WEIGHT)
    penalty_interval: int = knob(
        16, "steps between R1 and R2; 1 adds them to every discriminator step", least=1, most=MOST_STEPS)
    penalty: Literal["exact", "approximate"] = knob("exact", "approximate: estimate R1 and R2 without double backward, "
                                                    "in full precision; for networks too large for it")
    penalty_sigma: float = knob(0.01, "approximate penalty: size of the noise added to images in [-1, 1]", above=0, most=10)
    path_length_weight: float = knob(2.0, "weight of path length regularisation; 0 switches it off", least=0, most=MOST_WEIGHT)
    path_length_interval: int = knob(
        4, "steps between path length regularisations; 1 adds it to every generator step", least=1, most=MOST_STEPS)
    path_length_decay: float = knob(
        0.01, "speed at which the target path length follows the measured one, per use", least=0, most=1)
    path_length_shrink: int = knob(2, "path lengths are measured on every n-th image of the batch", least=1, most=MOST_IMAGES)
    style_mixing: float = knob(0.9, "probability that an image uses two latents, split at a random layer", least=0, most=1)


@dataclass
class OptimizerConfig:
    name: str = knob("Adam", "an optimizer of torch.optim: Adam, AdamW, SGD, RMSprop, Adagrad, Adadelta, ...")
    lr: float | Auto = knob("auto", "learning rate; auto (Adam): 0.0025, from 1024 px 0.002", least=0, most=1000)
    betas: list[float] = knob([0.0, 0.99], "Adam family: decay of the first and second moment", least=0, most=1)
    eps: float | Auto = knob("auto", "added to the denominator; auto: the optimizer's own, 1e-8 for Adam", least=0, most=1000)
    momentum: float = knob(0.0, "SGD and RMSprop", least=0, most=1)
    nesterov: bool = knob(False, "SGD with momentum")
    alpha: float | Auto = knob("auto", "RMSprop: decay of the squared gradient; auto: 0.99", least=0, most=1)
    rho: float | Auto = knob("auto", "Adadelta: decay of the squared gradient; auto: 0.9", least=0, most=1)
    weight_decay: float = knob(0.0, "as defined by the optimizer", least=0, most=1000)
    l1: float = knob(0.0, "L1 penalty: adds l1 * sign(parameter) to the gradient of every main step", least=0, most=1000)


@dataclass
class OptimConfig:
    g: OptimizerConfig = field(default_factory=OptimizerConfig)
    d: OptimizerConfig = field(default_factory=OptimizerConfig)


@dataclass
class EmaConfig:
    half_life_kimg: float | Auto = knob(
        "auto", "half-life of the averaged generator; auto: 10 kimg at batch 32, in proportion", least=0, most=MOST_KIMG)
    placement: Literal["auto", "device", "sharded", "cpu"] = knob(
        "auto", "device: whole on every rank; sharded: a part on each; cpu: a part in the host's memory of each")
    rampup: float = knob(
        0.05, "the half-life is at most this share of the images seen so far; 0 switches it off", least=0, most=1000)


@dataclass
class CheckpointConfig:
    every_kimg: float = knob(200.0, "between checkpoints", least=LEAST_KIMG, most=MOST_KIMG)
    keep: int = knob(3, "most recent checkpoints that are kept", least=1, most=1_000_000)
    file_mib: float = knob(
        1024.0, "largest file of a checkpoint; a larger state is cut, and the ranks write different files",
        least=0.001, most=1_000_000)
    archive_kimg: float = knob(0.0, "also keep one checkpoint every so often for ever; 0 for none", least=0, most=MOST_KIMG)


@dataclass
class MonitorConfig:
    tick_kimg: float = knob(4.0, "between status lines and metric records", least=LEAST_KIMG, most=MOST_KIMG)
    samples_kimg: float = knob(100.0, "between pictures of samples", least=LEAST_KIMG, most=MOST_KIMG)
    grid_columns: int = knob(8, "columns of the sample picture; one class per column if conditional", least=1, most=1024)
    grid_rows: int = knob(8, "rows of the sample picture", least=1, most=1024)
    wandb: Literal["auto", "online", "offline", "disabled"] = knob("auto", "auto: online with an API key, else offline; "
                                                                      "WANDB_MODE, `wandb offline` or `disabled` go before it")
    wandb_project: str = knob("", "W&B project; empty for WANDB_PROJECT, or else stylegan_dist")
    wandb_entity: str = knob("", "W&B user or team; empty for WANDB_ENTITY, or else the account's default")
    wandb_name: str = knob("", "W&B display name; empty for WANDB_NAME, or else the name of the run's folder")


@dataclass
class Config:
    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    ops: OpsConfig = field(default_factory=OpsConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
