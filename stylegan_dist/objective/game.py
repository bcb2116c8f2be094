"""The game of a generator and a discriminator with gradient penalties, for generators of any family.

The address of every draw is (seed, "phase.purpose", global image number).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from stylegan_dist import augment, randomness
from stylegan_dist.config import Config
from stylegan_dist.config.schedules import Schedule, Scheduled, extremes, value_at
from stylegan_dist.networks.generator import Generator
from stylegan_dist.networks.layers import Arithmetic
from stylegan_dist.objective.adversarial import ADVERSARIAL
from stylegan_dist.objective.penalties import approximate_gradient_penalty, gradient_penalty
from stylegan_dist.objective.phases import MicroBatch, Phase, Regulariser, phases_of
from stylegan_dist.objective.result import LossResult


class Objective:
    """The losses of a run.

    Attributes:
        seed: of every draw; another one after a roll-back of the run, so losses read it each time.
        forwards: the forward passes that are differentiated at most once, "g" (whatever `generate` gives it) and "d"; they
            may be replaced by compiled ones.
        weights: numbers of the losses that a schedule may move. They are tensors on the device, so that recorded
            graphs and compiled networks see a new value; `set_weight` sets it in place. float64 [].
        schedules: of those weights that have one, by their names.
        running: running statistics by name, float32 [], which begin at 0. Part of the saved state. Those of the controller of
            augmentation are there if it is in use.
        augmentation: of everything that the discriminator sees; None for none.
    Args:
        config: resolved; its section `loss` is a `GameConfig`.
        label_counts: int64 [classes], how often each class occurs in the data; generated images get
            labels with these frequencies. None for an unconditional run.
    """

    RUNNING: tuple[str, ...] = ()  # names of the running statistics
    OBSERVED = "g_main"  # the phase whose generated images `observe` sees, or "d_main"

    def __init__(self, config: Config, generator: Generator, discriminator: nn.Module, label_counts: Tensor | None):
        self.config = config.loss
        self.seed = config.run.seed
        self.batch = config.run.batch
        self.generator = generator
        self.discriminator = discriminator
        self.adversarial = ADVERSARIAL[config.loss.adversarial]
        self.device = next(generator.parameters()).device
        # The label of a generated image is that of a random image of the data.
        self.label_ends = label_counts.cumsum(0).to(self.device) if label_counts is not None else None
        self.label_total = int(label_counts.sum()) if label_counts is not None else 0
        self.forwards: dict[str, Callable[..., Tensor]] = {"g": generator, "d": discriminator}
        self.weights: dict[str, Tensor] = {}
        self.schedules: dict[str, Schedule] = {}
        self.add_weight("r1_gamma", config.loss.r1_gamma)
        self.add_weight("r2_gamma", config.loss.r2_gamma)
        self.running = {name: torch.zeros((), device=self.device) for name in self.RUNNING}
        self.augmentation = augment.augmentation_of(config.augment)
        self.controller: augment.Controller | None = None
        if self.augmentation and self.augmentation.uses_p:
            if config.augment.p == "ada":
                kind = augment.CONTROLLERS[config.augment.controller]
                self.running |= {name: torch.zeros((), device=self.device) for name in kind.names}
                self.controller = kind(config.augment, self.running, self.batch)
                self.weights["augment_p"] = self.controller.p
            else:
                self.add_weight("augment_p", config.augment.p)

    def generate(self, phase: str, index: Tensor, labels: Tensor | None) -> tuple[Tensor, Any]:
        """Images [n, C, H, W] by `forwards["g"]`, and the input of `observe`; as here for a generator of z and labels alone.

        Args:
            phase: its name; begins the purpose of every draw.
            index: int64 [n], global image numbers.
            labels: int64 [n], or None for an unconditional run.
        """
        return self.forwards["g"](self.generator.draw(self.seed, phase, index), labels), None

    def observe(self, made: Any) -> dict[str, Tensor]:
        """Shares of the global means for `update_running`, from the second value of `generate` in `OBSERVED`."""
        return {}

    def generator_regulariser(self) -> Regulariser | None:
        """What regularises the generator, if anything does."""
        return None

    def after_phase(self, means: Mapping[str, Tensor]) -> None:
        """Take over the global sums of `LossResult.running_means` of a phase whose update took place."""
        if self.controller:
            self.controller.update(means)
        self.update_running(means)

    def update_running(self, means: Mapping[str, Tensor]) -> None:
        """What a family takes over of `LossResult.running_means` of a phase."""

    def reported(self) -> dict[str, Tensor]:
        """Numbers [] of a family that a tick reports as they are then."""
        return {}

    def add_weight(self, name: str, value: Scheduled) -> None:
        """A new one of `weights`, from its knob."""
        if isinstance(value, Schedule):
            self.schedules[name] = value
        self.set_weight(name, value_at(value, 0))

    def move_weights(self, nimg: int) -> None:
        """Set the weights that have a schedule, for the step after `nimg` images."""
        for name, schedule in self.schedules.items():
            self.set_weight(name, schedule.at(nimg))

    def now(self) -> dict[str, Tensor]:
        """Numbers [] of the family and of augmentation that a tick reports as they are then."""
        p = {"augment/p": self.weights["augment_p"]} if "augment_p" in self.weights else {}
        return {**self.reported(), **p}

    def set_weight(self, name: str, value: float) -> None:
        """Set one of `weights`, in place where it is there."""
        if name not in self.weights:
            self.weights[name] = torch.empty((), dtype=torch.float64, device=self.device)
        self.weights[name].fill_(value)

    def phases(self) -> list[Phase]:
        """The phases of a step in their order."""
        c, penalty = self.config, None
        if ever(c.r1_gamma) or ever(c.r2_gamma):
            penalty = Regulariser("d_penalty", self.d_penalty, c.penalty_interval, c.penalty == "exact")
        return [*phases_of("g", self.g_main, self.generator_regulariser()), *phases_of("d", self.d_main, penalty)]

    def g_main(self, real: MicroBatch) -> LossResult:
        """The generator's side of the game."""
        labels = self.labels("g_main", real)
        fake, made = self.generate("g_main", real.index, labels)
        logits = self.judge("g_main", "fake", fake, labels, real.index)
        real_logits = None
        if self.adversarial.paired:
            real_logits = self.judge("g_main", "real", real.images, real.labels, real.index)
        loss = self.share(self.adversarial.generator(logits, real_logits))
        return LossResult(loss, {"loss/g_main": loss}, self.observe(made) if self.OBSERVED == "g_main" else {})

    def d_main(self, real: MicroBatch) -> LossResult:
        """The discriminator's side of the game."""
        held_out = self.judge_held_out(real)  # before there are activations of the game
        with torch.no_grad():
            labels = self.labels("d_main", real)
            fake, made = self.generate("d_main", real.index, labels)
            observed = self.observe(made) if self.OBSERVED == "d_main" else {}
        fake_logits = self.judge("d_main", "fake", fake, labels, real.index)
        real_logits = self.judge("d_main", "real", real.images, real.labels, real.index)
        result = self.discriminator_result(real_logits, fake_logits, held_out)
        return result._replace(running_means={**result.running_means, **observed})

    @torch.no_grad()
    def judge_held_out(self, real: MicroBatch) -> Tensor | None:
        """Logits [n] of the held-out images, in the steps that have some, augmented as real ones. They teach nothing."""
        if real.held_out is None:
            return None
        # Not by a compiled network: without gradients that would be compiled again, in the middle of a run.
        return self.judge("d_main", "held_out", real.held_out, real.held_out_labels, real.index, twice=True)

    def discriminator_result(self, real_logits: Tensor, fake_logits: Tensor, held_out: Tensor | None) -> LossResult:
        """The discriminator's side of the game, from logits [n] of images of the same numbers.

        Args:
            held_out: what `judge_held_out` gave.
        """
        loss = self.share(self.adversarial.discriminator(real_logits, fake_logits))
        more = {} if held_out is None else {"logits/held_out": self.share(held_out)}
        return LossResult(loss, {
            "loss/d_main": loss,
            "logits/real": self.share(real_logits),
            "logits/fake": self.share(fake_logits),
            "sign/real": self.share(real_logits.sign()),
            "sign/fake": self.share(fake_logits.sign()),
            **more,
        }, self.controller.sums(real_logits, fake_logits, held_out) if self.controller else {})

    def d_penalty(self, real: MicroBatch) -> LossResult:
        """R1 on real and R2 on generated images (Mescheder et al. 2018)."""
        c = self.config
        total, statistics = torch.zeros((), device=real.images.device), {}
        if ever(c.r1_gamma):
            penalty = self.share(self._penalty("r1", "real", real.images, real.labels, real.index))
            statistics["loss/r1"] = penalty * self.weight("r1_gamma", penalty) / 2
            total = total + statistics["loss/r1"]
        if ever(c.r2_gamma):
            with torch.no_grad():
                labels = self.labels("d_penalty", real)
                images, _ = self.generate("d_penalty", real.index, labels)
            penalty = self.share(self._penalty("r2", "fake", images, labels, real.index))
            statistics["loss/r2"] = penalty * self.weight("r2_gamma", penalty) / 2
            total = total + statistics["loss/r2"]
        return LossResult(total * c.penalty_interval, statistics)

    def judge(self, phase: str, side: str, images: Tensor, labels: Tensor | None, index: Tensor,
              twice: bool = False) -> Tensor:
        """Logits [n]. All phases pass real and generated images to the discriminator through this function alone.

        Args:
            phase, side, index: address what is drawn for each image; side: "real", "fake" or "held_out".
            twice: whether a gradient of the logits will be differentiated again, which a compiled network cannot do.
        """
        if self.augmentation:
            images = self.augmented(self.augmentation, f"{phase}.augment.{side}", images, index)
        return self.discriminate(phase, side, images, labels, index, twice)

    def augmented(self, augmentation: augment.Augmentation, purpose: str, images: Tensor, index: Tensor) -> Tensor:
        """The first part of `judge`; of a family whose images have more than one tensor of values."""
        return augmentation(images, self.seed, purpose, index, self.weights.get("augment_p"))

    def discriminate(self, phase: str, side: str, images: Tensor, labels: Tensor | None, index: Tensor,
                     twice: bool) -> Tensor:
        """The part of `judge` after augmentation; of a family whose discriminator draws something, or has more inputs."""
        return (self.discriminator if twice else self.forwards["d"])(images, labels)

    def weight(self, name: str, like: Tensor) -> Tensor:
        """One of `weights`, in the dtype of another tensor."""
        return self.weights[name].to(like.dtype)

    def share(self, per_image: Tensor) -> Tensor:
        """The share of these images [n] in the mean over the global batch."""
        return per_image.sum() / self.batch

    def labels(self, phase: str, real: MicroBatch) -> Tensor | None:
        """Labels for generated images: int64 [n], or None for an unconditional run."""
        if self.label_ends is None:
            return None
        if self.adversarial.paired:
            return real.labels
        number = randomness.integers(self.seed, f"{phase}.label", real.index, self.label_total)[:, 0]
        return torch.searchsorted(self.label_ends, number, right=True)

    def _penalty(self, name: str, side: str, images: Tensor, labels: Tensor | None, index: Tensor) -> Tensor:
        """The gradient penalty of every image, [n], or its estimate."""
        images = images.detach()
        if self.config.penalty == "exact":
            images = images.requires_grad_(True)
            return gradient_penalty(self.judge("d_penalty", side, images, labels, index, twice=True), images)
        with self.precision_of_penalties():
            logits, disturbed = (self.judge("d_penalty", side, each, labels, index, twice=True)
                                 for each in (images, self.disturbed(name, images, index)))
        return approximate_gradient_penalty(logits, disturbed, self.config.penalty_sigma)

    def disturbed(self, name: str, images: Tensor, index: Tensor) -> Tensor:
        """Images [n, ...] with the noise of the approximate penalty of a name, "r1" or "r2"."""
        noise = randomness.normal(self.seed, f"d_penalty.{name}_noise", index, images.shape[1:]).to(images.dtype)
        return images + self.config.penalty_sigma * noise

    def precision_of_penalties(self) -> contextlib.AbstractContextManager[None]:
        """In which the logits of approximate penalties are computed."""
        if self.config.penalty_precision == "run":
            return contextlib.nullcontext()
        return full_precision(self.discriminator)  # otherwise the difference of the logits is mostly rounding


def ever(weight: Scheduled) -> bool:
    """Whether a weight is above zero at any time of a run."""
    return max(extremes(weight)) > 0


@contextlib.contextmanager
def full_precision(network: Any) -> Iterator[None]:
    """Inside, forward passes compute in the precision of the parameters: no bf16 or fp16, and no TF32.

    Backward passes take place later, with TF32 where it is allowed: that is exact enough (docs/penalties.md).

    Args:
        network: one with a policy `precision`.
    """
    policy = network.precision
    network.precision = replace(policy, low=torch.float32)
    try:
        with Arithmetic(tf32=False):
            yield
    finally:
        network.precision = policy
