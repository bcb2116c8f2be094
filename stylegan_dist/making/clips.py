"""Clips of videos: which files of a source are videos, and where clips are cut from them."""

from __future__ import annotations

import os
import re
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from stylegan_dist.errors import InputError
from stylegan_dist.kinds.clip import ClipOptions
from stylegan_dist.kinds.film import (
    ANIMATED,
    FOLDER_FPS,
    MOST_FILM_BYTES,
    Facts,
    check_ffmpeg,
    is_by_ffmpeg,
    measure_animation,
    measure_film,
    pixels_of,
    read_film,
)
from stylegan_dist.kinds.pixels import opened
from stylegan_dist.making.containers import Files
from stylegan_dist.making.sources import Item, Source

_KEPT_BYTES = 256 << 20  # of decoded videos, in each worker


class Video(NamedTuple):
    """A file, or a folder of frames."""

    name: str
    files: tuple[str, ...]   # one, or the frames in their order
    label: int | None
    facts: Facts | None      # None where `problem` says why
    problem: str = ""


class ClipFiles(Files):
    """The clips of videos as files: NAME#NUMBER, with the number of the first frame at the rate of the set."""

    def __init__(self, files: Files, videos: Sequence[Video], options: ClipOptions):
        super().__init__(files.paths)
        self.files, self.options = files, options
        self.videos = {video.name: video for video in videos}
        self._kept: OrderedDict[str, np.ndarray] = OrderedDict()

    def list(self) -> dict[str, str]:
        raise NotImplementedError("the files behind it are listed")

    def state(self, names: Iterable[str]) -> str:
        videos = dict.fromkeys(name.rpartition("#")[0] for name in names)
        return self.files.state(file for name in videos for file in self.videos[name].files)

    def _read(self, name: str, most: int | None) -> bytes:
        video, _, first = name.rpartition("#")
        frames = self._frames(self.videos[video])[int(first):][:self.options.frames]
        if len(frames) < self.options.frames:
            raise ValueError(f"{len(frames)} frames at {self.options.fps:g} per second, and a clip has {self.options.frames}")
        return self.options.clip_bytes(frames)

    def _frames(self, video: Video) -> np.ndarray:
        """All frames at the rate of the set: uint8 [n, C, H, W]."""
        if video.facts is None:
            raise ValueError(video.problem)
        if video.name in self._kept:
            self._kept.move_to_end(video.name)
            return self._kept[video.name]
        assert self.options.fps is not None, "it is completed"
        form, wanted = self.options.frame_form, video.facts.places_at(self.options.fps).tolist()
        if len(video.files) == 1:
            (name,) = video.files
            frames = read_film(self.files.read(name), not is_by_ffmpeg(name), form, wanted)
        else:
            sizes: dict[tuple[int, int], str] = {}
            frames = np.stack([self._frame(video.files[number], sizes) for number in wanted])
        self._kept[video.name] = frames
        while len(self._kept) > 1 and sum(one.nbytes for one in self._kept.values()) > _KEPT_BYTES:
            self._kept.popitem(last=False)
        return frames

    def _frame(self, name: str, sizes: dict[tuple[int, int], str]) -> np.ndarray:
        """A frame of a folder, whose others have these sizes. Of different ones it holds single pictures, and no video."""
        try:
            with opened(self.files.read(name)) as picture:
                sizes.setdefault(picture.size, os.path.basename(name))
                if len(sizes) > 1:
                    (width, height), first = next(iter(sizes.items()))
                    raise ValueError(f"{picture.width} x {picture.height} pixels, and {first} has {width} x {height}: frames "
                                     "of a video have one size")
                return pixels_of(picture, self.options.frame_form)
        except ValueError as error:
            raise ValueError(f"frame {os.path.basename(name)}: {error}") from None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_kept": OrderedDict()}


def cut(source: Source, options: ClipOptions) -> tuple[Source, ClipOptions]:
    """The clips of a source of videos, and the options with the rate of frames.

    A file for ffmpeg, and a GIF or WebP that moves, is a video. The other pictures of a folder are the frames of one, in the
    order of the numbers in their names.

    Raises:
        InputError: there is no clip, or ffmpeg is needed and not there.
    """
    videos = _videos(source)
    found = [video.facts.fps for video in videos if video.facts]
    if not found:
        raise InputError(f"none of the videos can be read: {videos[0].name!r} ({videos[0].problem})")
    options = replace(options, fps=options.fps or found[0], stride=options.stride or options.frames)
    assert options.fps is not None
    assert options.stride is not None
    items: list[Item] = []
    checked = [_bounded(video, options) for video in videos]
    if not any(video.facts for video in checked):
        raise InputError(f"none of the videos can be used: {checked[0].name!r} ({checked[0].problem})")
    counts = [video.facts.count_at(options.fps) if video.facts else 0 for video in checked]
    for video, count in zip(checked, counts, strict=True):
        starts = range(0, count - options.frames + 1, options.stride) or range(1)  # what gives no clip is accounted for, too
        items += [Item(f"{video.name}#{first:06d}", video.label) for first in starts]
    if max(counts) < options.frames:
        raise InputError(f"no video has the {options.frames} frames of a clip at {options.fps:g} per second; the longest has "
                         f"{max(counts)}: give fewer --frames, or a larger --fps")
    print(f"{len(videos)} video{'s' * (len(videos) > 1)} with {sum(counts)} frames at {options.fps:g} per second: "
          f"{len(items)} clips of {options.frames}")
    account = deepcopy(source.account)
    account.files += len(items) - len(source.items)  # clips are counted in place of the files that they are cut from
    return Source(items, source.classes, source.sha256, ClipFiles(source.files, checked, options), account), options


def _bounded(video: Video, options: ClipOptions) -> Video:
    """The same, or one that cannot be read because it is too long."""
    assert options.fps is not None, "it is completed"
    count = video.facts.count_at(options.fps) if video.facts else 0
    if count * options.channels * options.resolution**2 <= MOST_FILM_BYTES:
        return video
    return video._replace(facts=None, problem=f"{count} frames are more than {MOST_FILM_BYTES >> 20} MiB at this resolution: "
                          "cut it into shorter videos")


def _videos(source: Source) -> list[Video]:
    videos: list[Video] = []
    folders: dict[str, list[Item]] = defaultdict(list)
    needs = next((item.name for item in source.items if is_by_ffmpeg(item.name)), "")
    if needs:
        check_ffmpeg(needs)
    for item in tqdm(source.items, desc="looking", unit=" files", disable=None, leave=False):
        if is_by_ffmpeg(item.name):
            videos.append(_measured(source, item, measure_film))
        elif os.path.splitext(item.name)[1].lower() in ANIMATED:
            video = _measured(source, item, measure_animation)
            if video.facts and video.facts.frames == 1:
                folders[os.path.dirname(item.name)].append(item)
            else:
                videos.append(video)
        else:
            folders[os.path.dirname(item.name)].append(item)
    for folder, frames in folders.items():
        frames.sort(key=lambda item: _natural(item.name))
        facts = Facts(len(frames), FOLDER_FPS)
        videos.append(Video(folder or ".", tuple(item.name for item in frames), frames[0].label, facts))
    return sorted(videos, key=lambda video: _natural(video.name))


def _measured(source: Source, item: Item, measure: Callable[[bytes], Facts]) -> Video:
    make = partial(Video, item.name, (item.name,), item.label)
    try:
        return make(measure(source.read(item.name)))
    except ValueError as error:
        return make(None, str(error))


def _natural(name: str) -> list:
    """frame2 comes before frame10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"([0-9]+)", name)]
