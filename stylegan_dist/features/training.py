"""Trains a feature network on the labels of a shard set, or on faults of motion, as a function of (data, options)."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from stylegan_dist import randomness
from stylegan_dist.data.index import DatasetIndex, load_index
from stylegan_dist.data.passes import bar_interval, batches, held_out, held_samples, new_folder
from stylegan_dist.errors import InputError
from stylegan_dist.features.faults import FAULTS, with_fault
from stylegan_dist.features.inputs import OwnSamples
from stylegan_dist.features.layers import ready
from stylegan_dist.features.network import FeatureNetwork, exactly
from stylegan_dist.features.own import MOST_CLASSES, OwnNetwork, OwnRecord, own_features, save_record, save_weights
from stylegan_dist.kinds import Array, Clip
from stylegan_dist.machine import usable_device

_LEAST_IMAGES, _EPOCHS = 50_000, 10   # of a training whose length is not given: the greater of both
HELD_OUT = "features.held_out"        # purpose of the draw of what is held out
_BATCH = 64
_RATE, _DECAY = 2e-3, 0.02            # learning rate at its highest, and weight decay
_WARM = 0.05                          # share of the training in which the learning rate rises


@dataclass(frozen=True)
class FeatureOptions:
    """What decides a training."""

    seed: int = 0
    images: int | None = None   # None: ten times the data, 50,000 at least
    device: str = "cpu"
    workers: int = 0            # reader processes; they change nothing but the speed
    motion: bool = False        # learn to tell `faults.FAULTS` of clips apart, in place of the labels


def train_features(data: str | os.PathLike, out: str | os.PathLike, options: FeatureOptions) -> OwnRecord:
    """Train a small classifier on all samples with labels (or on all clips) but those held out, and save it.

    On one machine, with one PyTorch and one number of threads, the same arguments give the same files to the last bit.

    Args:
        data: as `data.shards`; a set with labels, or of clips.
        out: folder for the two files; new or empty.
    Returns: what the record says, with the accuracy on the samples that were held out.

    Raises:
        InputError: the data is unusable or has no labels, or no clips; a folder that cannot be used.
    """
    index, folder = load_index(data), Path(out)
    if options.motion and not isinstance(index.kind, Clip):
        raise InputError(f"{os.fspath(data)} holds {index.kind.noun}, and --motion needs clips: pack videos with --video")
    if not options.motion and not index.classes:
        raise InputError(f"{os.fspath(data)} has no labels to learn from: pack it with --labels"
                         + (", or learn from its motion with --motion" if isinstance(index.kind, Clip) else ""))
    classes = len(FAULTS) if options.motion else len(index.classes or ())
    if not 2 <= classes <= MOST_CLASSES:
        raise InputError(f"{os.fspath(data)} has {classes} classes, and a classifier tells 2 to {MOST_CLASSES} "
                         "apart: pack it with other --labels")
    device = usable_device(options.device, "--device")
    new_folder(folder)
    images = options.images or max(_LEAST_IMAGES, _EPOCHS * index.num_samples)
    network = OwnNetwork(index.resolution, index.channels, classes)
    network.initialise(options.seed)
    held = held_out(index, options.seed, HELD_OUT)
    with exactly():
        _train(network.to(device), index, held, images, options)
    try:
        digest = save_weights(network, folder)
        samples = OwnSamples(index.kind, index.resolution, index.channels)
        assert isinstance(ready(network), OwnNetwork), "it is the same"
        learned: Literal["labels", "motion"] = "motion" if options.motion else "labels"
        accuracy = _accuracy(own_features(network, samples, digest, device, learned=learned), index, held, options)
        record = OwnRecord(index.resolution, index.channels, classes, index.fingerprint, options.seed, images,
                           len(held), accuracy, digest, index.kind if isinstance(index.kind, Array) else None, learned)
        save_record(record, folder)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror or error}; choose another folder") from None
    return record


def _train(network: OwnNetwork, index: DatasetIndex, held: list[int], images: int, options: FeatureOptions) -> None:
    parameters = list(network.parameters())
    optimizer = torch.optim.AdamW([{"params": [one for one in parameters if one.dim() > 1], "weight_decay": _DECAY},
                                   {"params": [one for one in parameters if one.dim() <= 1], "weight_decay": 0.0}])
    losses: list[Tensor] = []
    with tqdm(total=images, desc="train-features", unit="img", mininterval=bar_interval()) as bar:
        for nimg, numbers, samples, labels in batches(index, held, images, _BATCH, options.seed, options.workers):
            if options.motion:
                labels = randomness.integers(options.seed, "features.fault", numbers, len(FAULTS))[:, 0]
            known = labels >= 0
            numbers, samples, labels = numbers[known], samples[known], labels[known]
            done = nimg / images
            rate = _RATE * min(done / _WARM, 1.0) * 0.5 * (1 + math.cos(math.pi * done))
            for group in optimizer.param_groups:
                group["lr"] = rate
            if len(labels):
                values = index.kind.to_network(samples.to(options.device))
                if options.motion:
                    values = _faulty(index, values, labels, options.seed, numbers)
                loss = F.cross_entropy(network.classify(network(values)), labels.to(options.device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
            if len(losses) >= 50:  # asking a GPU for a number waits for it
                bar.set_postfix(loss=f"{float(torch.stack(losses).mean()):.3f}", refresh=False)
                losses.clear()
            bar.update(min(_BATCH, images - nimg))


def _faulty(index: DatasetIndex, values: Tensor, faults: Tensor, seed: int, number: Tensor) -> Tensor:
    """Clips [n, T * C, H, W] with a fault each, drawn by their numbers, int64 [n]."""
    film = index.kind.as_film(values)
    assert film is not None, "they are clips"
    return with_fault(film.frames, faults.to(values.device), seed, number.to(values.device)).flatten(1, 2)


def _accuracy(network: FeatureNetwork, index: DatasetIndex, held: list[int], options: FeatureOptions) -> float:
    """The share of held-out samples whose label, or fault, has the largest logit. What is unreadable or has no label does not
    count."""
    right = count = 0
    for number, sample, label in held_samples(index, held):
        if options.motion:
            label = number % len(FAULTS)
            faulty = _faulty(index, index.kind.to_network(sample), torch.tensor([label]), options.seed, torch.tensor([number]))
            sample = index.kind.from_network(faulty)
        if label >= 0:
            right += int(network.logits(sample).argmax()) == label
            count += 1
    return right / count if count else 0.0
