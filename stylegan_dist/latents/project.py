"""Finds the latents of images, completes images of which a part is missing, and tunes the generator to images."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d
from tqdm import tqdm

from stylegan_dist.errors import InputError
from stylegan_dist.features.network import FeatureNetwork
from stylegan_dist.latents.agreeing import DRAWN, agreeing
from stylegan_dist.latents.derived import check_place, save_derived
from stylegan_dist.latents.inputs import Target, box_mask, read_images, read_mask
from stylegan_dist.latents.loss import OWN, Loss, open_loss_features
from stylegan_dist.latents.pictures import STRIP, save_picture, save_strip
from stylegan_dist.latents.saved import SavedLatents, save_latents
from stylegan_dist.latents.search import Report, Rows, Search, draw, search
from stylegan_dist.latents.starts import PURPOSE, TRIAL_SHARE, TRIALS, Starts, begin, choose, find_starts
from stylegan_dist.latents.trained import Trained, open_trained
from stylegan_dist.latents.tuning import FOLDER, tune
from stylegan_dist.latents.tuning import STEPS as TUNE_STEPS
from stylegan_dist.networks.generator import Generator
from stylegan_dist.ops import native
from stylegan_dist.training.snapshot import Which

FEATURE_WEIGHT = 0.1
PULL = 1e-2               # for images of which a part is missing
_LOSS_SECONDS = 0.5       # between two losses in the bar, each of which waits for the device


@dataclass
class ProjectOptions:
    """How latents are searched for; None where a mask or the device decides the default."""

    space: str | None = None         # "w": one latent; "w+": one for each place, after half of the steps in W; with a mask "w+"
    steps: int = 1000
    label: int | None = None         # class of all images
    every_class: bool = True         # without a class: try all; else start from the mean of all
    starts: int | None = None        # further ones that are drawn; with a mask and W: samples that are compared
    features: str = OWN              # of the loss, see open_loss_features
    weight: float = FEATURE_WEIGHT   # of the features in the loss
    noise: str = "const"             # "const": the fixed noise maps; "fit": they are optimised, too, and saved
    pull: float | None = None        # weight of the squared distance from the mean latent; 0, with a mask PULL
    seed: int = 0
    batch: int = 8                   # images that are computed at once
    mask: str | None = None          # a picture, white where all images miss something
    mask_box: str | None = None      # or "x,y,width,height" in pixels of the run
    feather: int = 0                 # pixels around the hole over which known ones are mixed with generated ones
    tune: bool = False
    tune_steps: int = TUNE_STEPS
    device: str | None = None
    which: Which | None = None       # checkpoint
    ops: str = "reference"           # as of GenerateOptions


class Found(NamedTuple):
    """What was found for an image.

    Attributes:
        label: the class whose mean was the start; None: none in particular.
        picture: uint8 [C, R, R]; with a mask the completed image.
        psnr: of the generated image against the target, where that is known; dB of 8-bit pixels.
        distance: of the features there, None without a network.
        hole: PSNR where the target is missing, against what the file holds there; None without a mask.
    """

    target: Target
    label: int | None
    picture: Tensor
    psnr: float
    distance: float | None
    hole: float | None


def project(images: Sequence[str | os.PathLike], run_dir: str | os.PathLike, out: str | os.PathLike,
            options: ProjectOptions) -> list[Found]:
    """Find the latents of images, and write for each NAME.safetensors and NAME.png, and a strip of all.

    Args:
        images: files of any kind that `pack` takes, or folders of them.
    Raises:
        InputError: no such run or checkpoint, what is no image, a class, network, device or space that does not exist, a
            mask that does not fit, an unwritable folder.
    """
    if options.ops == "fused" and not (found := native.native()).devices:
        raise InputError(f"--ops fused: there are no native operators ({found.reason}): use --ops reference")
    if options.mask is not None and options.mask_box is not None:
        raise InputError("--mask and --mask-box say the same thing: give one of them")
    masked = options.mask is not None or options.mask_box is not None
    if masked and options.tune:
        raise InputError("--tune needs whole images: leave out the mask, or complete the images first and tune to the results")
    with native.using(options.ops):
        trained, out = open_trained(run_dir, options.device, options.which), Path(out)
        options = _complete(options, trained.generator, masked, run_dir)
        targets = read_images(images, trained, (STRIP,))
        missing = None
        if options.mask is not None:
            missing = read_mask(options.mask, targets, trained.shape.resolution)
        elif options.mask_box is not None:
            missing = box_mask(options.mask_box, trained.shape.resolution)
        features = open_loss_features(options.features, trained)
        work = _Work(trained, targets, missing, features, options)
        try:
            out.mkdir(parents=True, exist_ok=True)
            if options.tune:
                check_place(out / FOLDER)
            return work.run(out)
        except OSError as error:
            raise InputError(f"cannot write to {out}: {error.strerror or error}; choose another --out") from None


def _complete(options: ProjectOptions, generator: Generator, masked: bool, run_dir: str | os.PathLike) -> ProjectOptions:
    """The options with what a mask and the generator decide."""
    space = options.space or ("w+" if masked and generator.num_ws else "w")
    if space == "w+" and not generator.num_ws:
        raise InputError(f"--space w+: the generator of {run_dir} takes one latent alone: use --space w")
    pull = options.pull if options.pull is not None else PULL if masked else 0.0
    return replace(options, space=space, pull=pull)


class _Work:
    """One call of `project`; `options` are complete."""

    def __init__(self, trained: Trained, targets: list[Target], missing: Tensor | None, features: FeatureNetwork | None,
                 options: ProjectOptions):
        self.trained, self.targets, self.features, self.options = trained, targets, features, options
        self.missing = None if missing is None else missing.to(trained.device)
        self.numbers = torch.tensor([target.number for target in targets], device=trained.device)
        self.agreeing = missing is not None and bool(trained.generator.num_ws)
        trained.check_class(options.label)
        if not self.agreeing:  # else they follow from samples that are drawn when the work begins
            every = options.every_class and options.label is None
            self.starts = find_starts(trained, options.label, every, options.starts or 0, options.seed)
        self.no_class = not trained.shape.num_classes or (options.label is None and not options.every_class)

    def values(self, part: slice) -> Tensor:
        """The images of a part in the range of networks. Of all, they would need a lot of memory."""
        pixels = torch.stack([target.pixels for target in self.targets[part]])
        return self.trained.kind.to_network(pixels.to(self.trained.device))

    def loss(self, part: slice) -> Loss:
        return Loss(self.values(part), self.missing, self.features, self.options.weight)

    def parts(self) -> list[slice]:
        return [slice(first, first + self.options.batch) for first in range(0, len(self.targets), self.options.batch)]

    def run(self, out: Path) -> list[Found]:
        """Search and write. What is finished stays there whatever comes later."""
        options, found, rows = self.options, [], []
        if self.agreeing:
            self.starts = self.compare()
        tried, wide = 1 if self.agreeing else len(self.starts.latents), options.steps // 2 if options.space == "w+" else 0
        first = options.steps - wide
        steps = options.steps + (0 if tried == 1 else min(tried, TRIALS) * max(1, round(first * TRIAL_SHARE)))
        with _Bar("project", steps * len(self.targets)) as bar:
            for part in self.parts():
                rows.append(self.search(part, first, wide, bar.report))
                if not options.tune:
                    found += self.write(self.trained, rows[-1], part, out)
        if options.tune:
            tuned = self.tune(rows, out)
            for one, part in zip(rows, self.parts(), strict=True):
                found += self.write(tuned, one, part, out)
        save_strip(out / f"{STRIP}.png", torch.stack([one.target.pixels for one in found]),
                   torch.stack([one.picture for one in found]), None if self.missing is None else self.missing.cpu())
        return found

    def compare(self) -> Starts:
        """A start for each image, from drawn samples that agree with what is known of it."""
        options, parts = self.options, [partial(self.values, part) for part in self.parts()]
        assert self.missing is not None
        numbers = torch.arange(options.starts or DRAWN, device=self.trained.device).split(options.batch)
        shown = tqdm(numbers, unit="img", unit_scale=options.batch, desc="compare")
        return agreeing(self.trained, parts, self.missing, options.label, options.seed, shown)

    def search(self, part: slice, first: int, wide: int, report: Report) -> Rows:
        """The rows of a part after `first` steps in W and `wide` steps in W+."""
        options, trained = self.options, self.trained
        how = Search(trained, options.seed, options.batch, options.noise == "fit", report)
        loss, numbers, pull = self.loss(part), self.numbers[part], options.pull or 0.0
        if self.agreeing:
            choice = torch.arange(len(self.targets), device=trained.device)[part]
        else:
            choice = choose(how, loss, self.starts, numbers, first)
        rows = search(how, loss, begin(how, self.starts, numbers, choice), first, PURPOSE, pull)
        if wide:
            rows = search(how, loss, rows.widened(trained.generator.num_ws), wide, f"{PURPOSE}.wide", pull)
        return rows

    def tune(self, rows: list[Rows], out: Path) -> Trained:
        """The generator, tuned to all images and saved."""
        parts = [(one, self.loss(part)) for one, part in zip(rows, self.parts(), strict=True)]
        with _Bar("tune", self.options.tune_steps * len(self.targets)) as bar:
            tuned = tune(self.trained, parts, self.options.tune_steps, bar.report)
        return save_derived(tuned, tuned.generator, out / FOLDER, {"run": str(self.trained.run_dir), "nimg": self.trained.nimg,
                                       "checkpoint": self.trained.digest, "steps": self.options.tune_steps,
                                       "images": [str(target.path) for target in self.targets]})

    def write(self, trained: Trained, rows: Rows, part: slice, out: Path) -> list[Found]:
        """Files and scores of a part."""
        missing = self.missing
        with torch.no_grad():
            drawn = draw(trained, rows)
            pixels = trained.kind.from_network(drawn)
            distances = self.loss(part).distance(trained.kind.to_network(pixels)).tolist()
        shown = drawn if missing is None else pasted(drawn, self.values(part), missing, self.options.feather)
        pictures, generated = trained.kind.from_network(shown).cpu(), pixels.cpu()
        labels = [None] * len(pixels) if self.no_class or rows.labels is None else rows.labels.tolist()
        known = None if missing is None else ~missing[0, 0].cpu()
        results = []
        for number, target in enumerate(self.targets[part]):
            found = Found(target, labels[number], pictures[number], psnr(generated[number], target.pixels, known),
                          distances[number] if self.features else None,
                          None if known is None else psnr(generated[number], target.pixels, ~known))
            point = rows[number:number + 1]
            saved = SavedLatents(point.latents[0], [values[0, 0] for values in point.maps], self._facts(found, trained))
            save_latents(out / f"{target.name}.safetensors", saved)
            save_picture(out / f"{target.name}.png", found.picture)
            results.append(found)
        return results

    def _facts(self, found: Found, trained: Trained) -> dict[str, Any]:
        options = asdict(self.options)
        kept = {name: options[name] for name in ("steps", "seed", "starts", "noise", "pull", "mask", "mask_box")}
        return {"space": self.options.space if trained.generator.num_ws else "z", "class": found.label,
                "image": str(found.target.path),
                "run": str(trained.run_dir), "nimg": trained.nimg, "checkpoint": trained.digest,
                "features": self.features and {"name": self.features.name, "sha256": self.features.sha256,
                                               "weight": self.options.weight},
                "psnr": found.psnr, "distance": found.distance, "hole_psnr": found.hole, **kept}


class _Bar:
    """A progress bar in steps of images, with the loss, which is read from the device twice a second at most."""

    def __init__(self, name: str, total: int):
        self.bar = tqdm(total=total, unit="step", desc=name, mininterval=_LOSS_SECONDS)
        self.report: Report = self._report
        self._read = 0.0

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def _report(self, losses: Tensor) -> None:
        if time.monotonic() > self._read + _LOSS_SECONDS:
            self.bar.set_postfix_str(f"loss {losses.mean().item():.4g}", refresh=False)
            self._read = time.monotonic()
        self.bar.update(len(losses))


def psnr(a: Tensor, b: Tensor, where: Tensor | None = None) -> float:
    """The peak signal-to-noise ratio of two 8-bit images in dB, at most 99.

    Args:
        a, b: uint8 [C, H, W].
        where: bool [H, W], the pixels that count; None for all.
    """
    squares = (a.double() - b.double()).square()
    error = float((squares if where is None else squares[:, where]).mean())
    return min(99.0, 10 * math.log10(255**2 / error)) if error else 99.0


def pasted(made: Tensor, known: Tensor, missing: Tensor, feather: int) -> Tensor:
    """Images whose missing pixels are from `made`, the others from `known`.

    Args:
        made, known: [N, C, H, W].
        missing: bool [1, 1, H, W].
        feather: pixels around the hole over which the share of `made` falls evenly to 0.
    """
    grown = missing.float()
    shares = [grown]
    for _ in range(feather):
        grown = max_pool2d(grown, 3, 1, 1)
        shares.append(grown)
    return torch.lerp(known, made, torch.stack(shares).mean(0))


