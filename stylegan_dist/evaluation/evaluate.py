"""Evaluates checkpoints of a run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from stylegan_dist.data.cache import NodeCache
from stylegan_dist.data.index import DatasetIndex, load_index
from stylegan_dist.data.order import StreamPlan
from stylegan_dist.data.working_set import open_cache, working_set
from stylegan_dist.errors import InputError
from stylegan_dist.evaluation.neighbours import Neighbours
from stylegan_dist.evaluation.reals import BLOCK, LANES, RealSamples
from stylegan_dist.evaluation.record import Evaluation, add_evaluation, best_first, find_known, read_evaluations
from stylegan_dist.evaluation.samples import (
    BATCH,
    GeneratedSamples,
    check_takes,
    gather_rows,
    in_memory,
    is_of_another_form,
    labels_by_frequency,
    pictures_for,
    takes_samples,
)
from stylegan_dist.evaluation.scores import (
    EQUIVARIANCE,
    Rows,
    Scoring,
    class_distances,
    compute_scores,
    describe_classes,
    describe_scores,
    parse_metrics,
    real_scores,
)
from stylegan_dist.families import family_of
from stylegan_dist.features.network import FeatureNetwork, NoFeatures, exactly
from stylegan_dist.features.registry import open_features
from stylegan_dist.files import file_digest
from stylegan_dist.kinds import Kind, Latents
from stylegan_dist.metrics import few_samples
from stylegan_dist.ops import native
from stylegan_dist.ranks import Ranks
from stylegan_dist.scores_file import MOST_CLASSES
from stylegan_dist.training.best import read_best, remember_best
from stylegan_dist.training.checkpoint import checkpoint_folder, list_checkpoints, name_aside
from stylegan_dist.training.pin import pinned
from stylegan_dist.training.run_folder import read_run_config
from stylegan_dist.training.saved import MANIFEST
from stylegan_dist.training.snapshot import load_generator


@dataclass(frozen=True)
class EvaluateOptions:
    """How checkpoints are scored. What is None is as the run's configuration says, in the section `evaluate`.

    Attributes:
        network: of features: a name, or a path of one's own.
        count: samples drawn, and real ones at most.
        seed: of the samples.
        metrics: of `scores.METRICS` and of the kind of samples. The first score of the first one decides which checkpoint is
            the best.
        shards: of the real samples; empty: those of the run.
    """

    network: str | None = None
    count: int | None = None
    seed: int = 0
    metrics: Sequence[str] | None = None
    shards: str = ""


class Evaluator:
    """What is the same for all checkpoints of a run. All ranks make one, and call its methods together.

    Attributes:
        decides: whether the best checkpoint is chosen by these settings and metrics, whatever it was chosen by before. A look
            at a single checkpoint decides nothing.
    Args:
        say: receives a line for people, on rank 0.
        stop: whether this rank was asked to stop.
    Raises:
        InputError: no run, no data, no feature network, or one that does not fit the data.
    """

    def __init__(self, run_dir: Path, options: EvaluateOptions, ranks: Ranks, say: Callable[[str], None],
                 stop: Callable[[], bool] = lambda: False, decides: bool = True):
        self.decides = decides
        self.run_dir, self.ranks, self.say, self.stop = run_dir, ranks, say, stop
        config = ranks.together(lambda: read_run_config(run_dir))
        wanted = config.evaluate
        self.seed, self.count = options.seed, options.count or wanted.count
        self.ops = "auto" if config.ops.path == "fused" and not native.native().devices else config.ops.path
        self.index: DatasetIndex = ranks.together(lambda: self._load_index(options.shards or config.data.shards))
        self.own = self.index.kind.metrics()
        self.metrics = ranks.together(lambda: parse_metrics(",".join(options.metrics), own=self.own) if options.metrics else
                                      parse_metrics(wanted.metrics, "evaluate.metrics=", self.own))
        self.own = {metric: self.own[metric] for metric in self.metrics if metric in self.own}
        self.network: FeatureNetwork = NoFeatures(ranks.device)
        if set(self.metrics) - self.own.keys():
            self.network = ranks.together(lambda: open_features(options.network or wanted.network, ranks.device))
        ranks.together(lambda: check_takes(self.network, self.index))
        self._check_form(self.index.kind)
        decoded = isinstance(self.index.kind, Latents) and not takes_samples(self.network, self.index.kind)
        if self.network.dimensions and decoded:
            say("real samples are decoded latents, so the scores leave out what the autoencoder loses; --shards with the "
                "pictures themselves gives scores that compare with those of runs on pictures")
        if "classes" in self.metrics and not (self.index.num_classes and config.data.conditional):
            raise InputError("the metric classes needs a run that was trained with labels: leave it out")
        if "is" in self.metrics and not self.network.classes:
            raise InputError(f"the metric is needs a network that classifies, and {self.network.name} does not: choose another "
                             "network, or leave it out")
        if "accuracy" in self.metrics:
            self._check_classifier(config.data.conditional)
        self.moving = [metric for metric in self.metrics if metric in EQUIVARIANCE]
        if self.moving and not family_of(config).moves:
            raise InputError(f"the metric {self.moving[0]} needs a generator that can move its content, and those of "
                             f"{config.generator.family} cannot: leave it out")
        self.scoring = Scoring(self.network, self.metrics, self.own)
        self.names = self.scoring.names()
        plan = StreamPlan(0, LANES, BLOCK, BATCH * ranks.world_size, ranks.rank, ranks.world_size)
        size = working_set(self.index, plan, range(ranks.world_size), steps=1)
        self.cache: NodeCache | None = ranks.together(
            lambda: open_cache(config.data.cache, config.data.cache_gb, self.index, size, claim=False))
        warning = few_samples(min(self.count, self.index.num_samples), self.network.dimensions)
        if warning and {"fd", "infinity"} & set(self.metrics):
            say(f"WARNING: {warning}")
        self._neighbours = Neighbours(run_dir, self.index, self.cache, self.seed, self._counts(), say)
        self._real: Rows | None = None
        self._floors: dict[str, float] = {}  # on rank 0

    def _check_form(self, mine: Kind) -> None:
        """Raise InputError where a network has learnt samples of another kind or form, which may have the same shape."""
        theirs = self.network.kind
        if theirs is None or not takes_samples(self.network, mine):
            return
        if is_of_another_form(mine, theirs):
            raise InputError(f"the feature network {self.network.name} has learnt samples of another form: train one "
                             "on this data with `stylegan-dist train-features SHARDS OUT`, and give OUT")

    def _check_own(self, kind: Kind) -> None:
        """Raise InputError where what a generator makes cannot be compared with the real samples, which may be others than its
        data."""
        theirs = kind.metrics()
        for metric, own in self.own.items():
            if metric not in theirs or theirs[metric].common != own.common:
                raise InputError(f"the metric {metric} cannot compare what the generator makes with the real samples, which "
                                 "have another form: give --shards of the form that it was trained on")

    def _check_classifier(self, conditional: bool) -> None:
        """Raise InputError unless the network tells the classes of the data apart, and the generator is asked for them."""
        network, classes = self.network, self.index.num_classes
        if not (classes and conditional):
            raise InputError("the metric accuracy needs a run that was trained with labels: leave it out")
        if network.taught is None:
            raise InputError(f"the metric accuracy needs a network that has learnt the classes of the data, and {network.name} "
                             "has learnt others: train one with `stylegan-dist train-features SHARDS OUT`, and give OUT as "
                             "--network (evaluate.network)")
        if network.classes != classes:
            raise InputError(f"the metric accuracy: the network {network.name} has learnt {network.classes} classes, and the "
                             f"real samples have {classes}: train one on them with `stylegan-dist train-features`")

    def _load_index(self, shards: str) -> DatasetIndex:
        if not shards:
            raise InputError(f"{self.run_dir} was imported without data: give --shards, a folder made by stylegan-dist pack")
        index = load_index(shards)
        return replace(index, kind=index.kind.at(self.run_dir))

    @property
    def _settings(self) -> tuple[str, int, int, str]:
        """What scores have in common that can be compared: `Evaluation.key` without the digest."""
        return self.network.sha256, self.count, self.seed, self.index.fingerprint

    def unscored(self, but: Collection[str] = ()) -> list[int]:
        """Images seen at the checkpoints that have not all of these scores, oldest first, without those of some digests.

        On rank 0.
        """
        known = read_evaluations(self.run_dir)
        found = ((nimg, self.digest(nimg)) for nimg, _ in list_checkpoints(self.run_dir))
        return [nimg for nimg, digest in found if digest and digest not in but and not self._known(known, digest)]

    def known(self, nimg: int) -> Evaluation | None:
        """What is known of a checkpoint, if that is all of these scores. On rank 0."""
        return self._known(read_evaluations(self.run_dir), self.digest(nimg))

    def _known(self, known: Sequence[Evaluation], digest: str) -> Evaluation | None:
        return find_known(known, (digest, *self._settings), self.names)

    def digest(self, nimg: int) -> str:
        """Of the checkpoint that is there now (`Snapshot.digest`); empty if there is none."""
        with contextlib.suppress(OSError):
            return file_digest(checkpoint_folder(self.run_dir, nimg) / MANIFEST)
        return ""

    def evaluate(self, nimg: int) -> Evaluation | None:
        """Score a checkpoint, and add that to evaluation.jsonl.

        Returns: on rank 0 the scores; None where the checkpoint was removed, or the run has gone back from it meanwhile.

        Raises:
            InputError: the checkpoint is damaged; real samples cannot be read; there is too little memory; evaluation.jsonl
            cannot be written. All ranks raise it.
            Stopped: a rank was asked to stop.
        """
        began, ranks, counts = time.monotonic(), self.ranks, self._counts()
        # The same arithmetic inside a training and beside it.
        with pinned(self.run_dir, nimg) as refresh, native.using(self.ops), exactly():
            if not ranks.broadcast(checkpoint_folder(self.run_dir, nimg).is_dir()):
                return None
            snapshot = ranks.together(lambda: in_memory(load_generator, self.run_dir, ranks.device, nimg))
            classes = snapshot.generator.num_classes
            if classes and classes != self.index.num_classes:
                raise InputError(f"the generator has {classes} classes, and the real samples have {self.index.num_classes}: "
                                 "give --shards with the classes that it was trained on")
            self._check_form(snapshot.kind)
            self._check_own(snapshot.kind)
            real, samples = self._reals(), GeneratedSamples(snapshot.generator, self.seed, counts)
            paths, what = "ppl" in self.metrics, f"kimg {nimg / 1000:g}"
            with self._bar(self.count * (1 + paths + len(self.moving)), what) as progress:
                def gather(width: int, function: Callable[[Tensor], Tensor]) -> Tensor:
                    def compute(first: int, length: int) -> Tensor:
                        refresh()
                        return function(torch.arange(first, first + length, device=ranks.device))

                    return gather_rows(self.count, width, compute, ranks, progress, self.stop)

                features, own = self._split(gather(self.network.dimensions + sum(self.widths), lambda index: self._describe(
                    samples.values(index), snapshot.kind)))
                lengths = gather(1, lambda index: samples.path_lengths(
                    index, snapshot.kind, self.network)[:, None])[:, 0] if paths else None
                errors = {metric: gather(2, partial(samples.motion_errors, metric=metric)) for metric in self.moving}
            labels = labels_by_frequency(self.seed, torch.arange(self.count), counts) if counts else None
            generated = Rows(features, labels, lengths, errors, own)

            def finish() -> Evaluation | None:
                found = in_memory(self._record, nimg, snapshot.digest, real, generated, began)
                if found and self.network.dimensions:
                    self._neighbours.show(snapshot, real.features, features)
                return found

            return ranks.on_main_at_length(finish)

    @property
    def widths(self) -> list[int]:
        """Numbers in a row of each metric of the kind of samples."""
        return [one.width(self.index.resolution, self.index.channels) for one in self.own.values()]

    def _describe(self, values: Tensor, kind: Kind) -> Tensor:
        """Features of samples, followed by their rows of the metrics of the kind."""
        features = [self.network(pictures_for(self.network, kind, values))] if self.network.dimensions else []
        return torch.cat([*features, *(one.rows(values) for one in self.own.values())], 1)

    def _split(self, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Rows of `_describe` as features, and by metrics of the kind."""
        parts = rows.split([rows.shape[1] - sum(self.widths), *self.widths], 1)
        return parts[0].contiguous(), dict(zip(self.own, parts[1:], strict=True))

    def _record(self, nimg: int, digest: str, real: Rows, generated: Rows, began: float) -> Evaluation | None:
        device = self.ranks.device
        real, generated = real.to(device), generated.to(device)
        if not self._floors:
            self._floors = real_scores(real, self.scoring, self.index.fingerprint)
        by_class = class_distances(real, generated, self.index.num_classes) if "classes" in self.metrics else ()
        scores = compute_scores(real, generated, self.scoring, self._floors, by_class)
        found = Evaluation(1, nimg, digest, self.network.name, self.network.sha256, self.count, self.seed,
                           self.index.fingerprint, time.monotonic() - began, time.time(), scores,
                           by_class if len(by_class) <= MOST_CLASSES else ())
        if self._is_abandoned(nimg, digest):  # a tracker would take the scores for those of the checkpoint that will follow
            self.say(f"no scores at {nimg / 1000:g} kimg: the run has gone back to an earlier checkpoint")
            return None
        try:
            add_evaluation(self.run_dir, found)
        except OSError as error:
            raise InputError(f"cannot write to {self.run_dir}: {error.strerror or error}") from None
        self._remember_best()
        return found

    def _is_abandoned(self, nimg: int, digest: str) -> bool:
        """Whether the run has gone back from a checkpoint."""
        with contextlib.suppress(OSError):
            aside = name_aside(checkpoint_folder(self.run_dir, nimg))
            return file_digest(aside / MANIFEST) == digest != self.digest(nimg)
        return False

    def _remember_best(self) -> None:
        """Of all checkpoints that are there, by the first score of the first metric."""
        name, settings = self.names[0], f"{self.count:,} samples, seed {self.seed}, data {self.index.fingerprint[:8]}"
        if not self.decides and self._chosen_otherwise(name, settings):
            return
        for one in best_first(read_evaluations(self.run_dir), self._settings, name):
            try:
                if self.digest(one.nimg) == one.digest and remember_best(
                        self.run_dir, name, one.nimg, one.scores[name].value, settings):
                    return
            except OSError as error:
                raise InputError(f"cannot write to {self.run_dir}: {error.strerror or error}") from None

    def _chosen_otherwise(self, name: str, settings: str) -> bool:
        """Whether there is a best checkpoint that was chosen by another score."""
        try:
            best = read_best(self.run_dir)
        except InputError:
            return False
        return (best is not None and (best.metric, best.settings) != (name, settings)
                and checkpoint_folder(self.run_dir, best.nimg).is_dir())

    def best(self) -> str:
        """Which checkpoint is the best so far, for people; empty if none is. On rank 0.

        best.json is written anew: it may be damaged or gone, or known scores may be asked for by another first metric.

        Raises:
            InputError: it cannot be written, or is damaged and no score is known.
        """
        self._remember_best()
        best = read_best(self.run_dir)
        if best is None:
            return ""
        folder = checkpoint_folder(self.run_dir, best.nimg)
        settings = f" ({best.settings})" if best.settings else ""
        return f"best so far: kimg {best.nimg / 1000:g}, {best.metric} {best.value:.4g}{settings} -> {folder} (kept)"

    def _reals(self) -> Rows:
        if self._real is None:
            numbers = [min(self.count, self.index.num_samples)] if self.network.dimensions else []
            numbers += [min(one.most_real, self.index.num_samples) for one in self.own.values()]
            with self._bar(sum(numbers), "real samples") as progress:
                reals = RealSamples(self.index, self.cache, self.ranks, progress, self.stop)
                found = reals.features(self.count, self.network) if self.network.dimensions else Rows(torch.empty(0, 0))
                self._real = replace(found, own={name: reals.rows(one) for name, one in self.own.items()})
        return self._real

    def _counts(self) -> list[int] | None:
        """Samples of each class."""
        if not self.index.num_classes:
            return None
        return self.index.class_counts or [1] * self.index.num_classes

    @contextlib.contextmanager
    def _bar(self, total: int, what: str) -> Iterator[Callable[[int], object]]:
        with tqdm(total=total, unit="img", desc=what, disable=None if self.ranks.is_main else True, leave=False) as bar:
            yield bar.update


def describe(found: Evaluation) -> str:
    """An evaluation for people: a line, and one more for its classes."""
    line = (f"kimg {found.nimg / 1000:g}   {describe_scores(found.scores, found.network)}   {found.count:,} samples, "
            f"{found.network}, {found.seconds:.0f} s")
    return f"{line}\n{describe_classes(found.by_class)}" if found.by_class else line
