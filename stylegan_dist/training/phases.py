"""The phases of a step: which network learns, from which losses, how often.

Every loss works on a micro-batch and returns *shares of global means*: sums over its images divided by
the number of images in the global batch. Shares of all micro-batches and all ranks add up to the mean,
so no result depends on how the batch was split.

All randomness is addressed by (seed, "phase.purpose", global image number).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor

from stylegan_dist import ops, randomness
from stylegan_dist.config import Config
from stylegan_dist.networks.layers import Arithmetic
from stylegan_dist.networks.stylegan2 import Discriminator, Generator
from stylegan_dist.objective.adversarial import ADVERSARIAL
from stylegan_dist.objective.penalties import approximate_gradient_penalty, gradient_penalty, path_lengths
from stylegan_dist.objective.result import LossResult


@dataclass
class MicroBatch:
    """Real images that a rank computes at once."""

    images: Tensor        # float [n, C, H, W] in [-1, 1]
    labels: Tensor | None  # int64 [n]; None for an unconditional run
    index: Tensor         # int64 [n], consecutive global image numbers


Loss = Callable[[MicroBatch], LossResult]


@dataclass(frozen=True)
class Phase:
    """One backward pass and optimizer step of one network."""

    name: str
    network: str              # "g" or "d"
    interval: int             # takes place in every interval-th step
    losses: tuple[Loss, ...]  # added up
    second_order: bool        # whether a loss differentiates through a gradient of this network
    regulariser: bool = False  # whether it only regularises, in steps beside those of the game


def main_share(phases: Sequence[Phase], network: str) -> float:
    """Which part of a network's optimizer steps belongs to its game, and not to regularisers: m in (0, 1].

    A regulariser of interval k adds one step to every k of the main phase, m = k / (k + 1) (Karras et al. 2020, appendix B).
    Several add up, m = 1 / (1 + sum of 1 / k), of which the paper says nothing. A main phase may be a rare one, too: that
    alone gives m = 1.
    """
    def steps(regulariser: bool) -> Fraction:
        of_both = (phase for phase in phases if phase.network == network and phase.regulariser == regulariser)
        return sum((Fraction(1, phase.interval) for phase in of_both), Fraction())

    return float(steps(False) / (steps(False) + steps(True)))


class Objective:
    """All losses of a run.

    Args:
        config: resolved.
        label_counts: int64 [classes], how often each class occurs in the data; generated images get
            labels with these frequencies. None for an unconditional run.
    """

    def __init__(self, config: Config, generator: Generator, discriminator: Discriminator, label_counts: Tensor | None):
        self.config = config.loss
        self.seed = config.run.seed
        self.batch = config.run.batch
        self.generator = generator
        self.discriminator = discriminator
        self.adversarial = ADVERSARIAL[config.loss.adversarial]
        device = generator.w_avg.device
        # The label of a generated image is that of a random image of the data.
        self.label_ends = label_counts.cumsum(0).to(device) if label_counts is not None else None
        self.label_total = int(label_counts.sum()) if label_counts is not None else 0
        # Forward passes that are differentiated at most once; compiled.py replaces them by faster ones.
        self.synthesis: Callable[..., Tensor] = generator.synthesis
        self.logits: Callable[..., Tensor] = discriminator
        self.noise = randomness.NoiseAddresses(generator.synthesis.noise_shapes, device)
        # Running mean of path lengths, `a` of Karras et al. 2020, equation 4. Part of the saved state.
        self.path_mean = torch.zeros((), device=device)

    def phases(self) -> list[Phase]:
        """The phases of a step in their order. A regulariser with interval 1 joins the main phase."""
        c, result = self.config, []
        networks = (
            ("g", self.g_main, "g_path", self.g_path, c.path_length_interval, c.path_length_weight > 0),
            ("d", self.d_main, "d_penalty", self.d_penalty, c.penalty_interval, c.r1_gamma > 0 or c.r2_gamma > 0),
        )
        for network, main, name, regulariser, interval, active in networks:
            joined = active and interval == 1
            twice = network == "g" or c.penalty == "exact"
            result.append(Phase(f"{network}_main", network, 1, (main, regulariser) if joined else (main,), joined and twice))
            if active and not joined:
                result.append(Phase(name, network, interval, (regulariser,), twice, regulariser=True))
        return result

    def g_main(self, real: MicroBatch) -> LossResult:
        """The generator's side of the game."""
        fake, labels, ws = self._generate("g_main", real)
        logits = self.logits(fake, labels)
        real_logits = self.logits(real.images, real.labels) if self.adversarial.paired else None
        loss = self.adversarial.generator(logits, real_logits)
        w_mean = ws[:, 0].sum(0) / self.batch  # the first layer never uses the second latent
        return LossResult(self._share(loss), {"loss/g_main": self._share(loss)}, {"w": w_mean})

    def g_path(self, real: MicroBatch) -> LossResult:
        """Path length regularisation (Karras et al. 2020, equation 4), on every n-th image.

        The target `a` is the running mean from before this step, a constant for all images, so that
        the penalty of an image does not depend on which others are in its micro-batch.
        """
        c = self.config
        every = slice(None, None, c.path_length_shrink)
        part = MicroBatch(real.images[every], None if real.labels is None else real.labels[every], real.index[every])
        images, _, ws = self._generate("g_path", part, self.generator.synthesis)
        direction = randomness.normal(self.seed, "g_path.direction", part.index, images.shape[1:])
        lengths = path_lengths(images, ws, direction.to(images.dtype))
        penalty = (lengths - self.path_mean).square() * c.path_length_weight
        share = self._share(penalty) * c.path_length_shrink
        mean = self._share(lengths) * c.path_length_shrink
        return LossResult(share * c.path_length_interval, {"loss/path_length": share}, {"path_length": mean})

    def d_main(self, real: MicroBatch) -> LossResult:
        """The discriminator's side of the game."""
        with torch.no_grad():
            fake, labels, _ = self._generate("d_main", real)
        fake_logits = self.logits(fake, labels)
        real_logits = self.logits(real.images, real.labels)
        loss = self.adversarial.discriminator(real_logits, fake_logits)
        return LossResult(self._share(loss), {
            "loss/d_main": self._share(loss),
            "logits/real": self._share(real_logits),
            "logits/fake": self._share(fake_logits),
            "sign/real": self._share(real_logits.sign()),
            "sign/fake": self._share(fake_logits.sign()),
        })

    def d_penalty(self, real: MicroBatch) -> LossResult:
        """R1 on real and R2 on generated images (Mescheder et al. 2018)."""
        c = self.config
        total, stats = torch.zeros((), device=real.images.device), {}
        if c.r1_gamma > 0:
            share = self._share(self._penalty("r1", real.images, real.labels, real.index)) * (c.r1_gamma / 2)
            total, stats["loss/r1"] = total + share, share
        if c.r2_gamma > 0:
            with torch.no_grad():
                images, labels, _ = self._generate("d_penalty", real)
            share = self._share(self._penalty("r2", images, labels, real.index)) * (c.r2_gamma / 2)
            total, stats["loss/r2"] = total + share, share
        return LossResult(total * c.penalty_interval, stats)

    def _penalty(self, name: str, images: Tensor, labels: Tensor | None, index: Tensor) -> Tensor:
        """The gradient penalty of every image, [n], or its estimate."""
        images, d = images.detach(), self.discriminator
        if self.config.penalty == "exact":
            images = images.requires_grad_(True)
            return gradient_penalty(d(images, labels), images)
        sigma = self.config.penalty_sigma
        noise = randomness.normal(self.seed, f"d_penalty.{name}_noise", index, images.shape[1:]).to(images.dtype)
        with full_precision(d):  # else the difference of the logits is little more than rounding
            return approximate_gradient_penalty(d(images, labels), d(images + sigma * noise, labels), sigma)

    @torch.no_grad()
    def after(self, means: Mapping[str, Tensor], w_avg_decay: float) -> dict[str, Tensor]:
        """Move the running means towards the global means of a phase; returns further statistics to report."""
        if "w" in means:
            self.generator.w_avg.copy_(means["w"].lerp(self.generator.w_avg, w_avg_decay))
        if "path_length" not in means:
            return {}
        mean = means["path_length"]  # one that is not finite would stay in the running mean for ever
        self.path_mean.lerp_(torch.where(mean.isfinite(), mean, self.path_mean), self.config.path_length_decay)
        return {"path_length/mean": mean}

    def _share(self, per_image: Tensor) -> Tensor:
        return per_image.sum() / self.batch

    def _generate(self, phase: str, real: MicroBatch,
                  synthesis: Callable[..., Tensor] | None = None) -> tuple[Tensor, Tensor | None, Tensor]:
        """Images [n, C, H, W], their labels [n] or None, and ws [n, num_ws, w_dim] for a phase."""
        g, index = self.generator, real.index
        labels = self._labels(phase, real)
        z = randomness.normal(self.seed, f"{phase}.z", index, (g.z_dim,))
        ws = g.mapping(z, labels)[:, None].expand(-1, g.num_ws, -1)
        if self.config.style_mixing > 0:
            z2 = randomness.normal(self.seed, f"{phase}.mixing_z", index, (g.z_dim,))
            other = g.mapping(z2, labels)[:, None]
            mixes = randomness.uniform(self.seed, f"{phase}.mixing", index) < self.config.style_mixing
            cutoff = 1 + randomness.integers(self.seed, f"{phase}.cutoff", index, g.num_ws - 1)
            layer = torch.arange(g.num_ws, device=index.device)
            ws = torch.where((mixes & (layer >= cutoff))[:, :, None], other, ws)
        # Layers that draw their noise themselves want to know where it stands, the others all maps at once.
        draw = randomness.noise_address if ops.draws_noise(ws) else self.noise.draw
        noise = draw(self.seed, f"{phase}.noise", index)
        return (synthesis or self.synthesis)(ws, noise), labels, ws

    def _labels(self, phase: str, real: MicroBatch) -> Tensor | None:
        if self.label_ends is None:
            return None
        if self.adversarial.paired:
            return real.labels
        number = randomness.integers(self.seed, f"{phase}.label", real.index, self.label_total)[:, 0]
        return torch.searchsorted(self.label_ends, number, right=True)


@contextlib.contextmanager
def full_precision(network: Discriminator) -> Iterator[None]:
    """Inside, forward passes compute in the precision of the parameters: no bf16 or fp16, and no TF32.

    Backward passes take place later, with TF32 where it is allowed: that is exact enough (docs/penalties.md).
    """
    policy = network.precision
    network.precision = replace(policy, low=torch.float32)
    try:
        with Arithmetic(tf32=False):
            yield
    finally:
        network.precision = policy
