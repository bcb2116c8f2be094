"""What the folder of a run has on record, for trackers that have not seen it.

    metrics.jsonl           a record a tick
    histograms.jsonl        histograms, at the times of pictures
    samples/                reals.png, and nimg-*.png; of sounds also .wav, of clips .gif, of text .txt
    evaluation.jsonl        scores of checkpoints
    evaluation/             pictures and clips of what the generator has learned, the newest
"""

from __future__ import annotations

import contextlib
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from stylegan_dist.errors import InputError
from stylegan_dist.files import open_regular, write_whole
from stylegan_dist.monitor.histograms import Histogram
from stylegan_dist.monitor.jsonl import MAX_LINE, from_json
from stylegan_dist.records import parse_json, read_record
from stylegan_dist.scores_file import NAME as SCORES_NAME
from stylegan_dist.scores_file import Evaluation, Score, read_evaluations

METRICS_NAME = "metrics.jsonl"
HISTOGRAMS_NAME = "histograms.jsonl"
SAMPLES_NAME = "samples"
PICTURES_NAME = "evaluation"
PICTURE_SUFFIXES, CLIP_SUFFIXES = (".png", ".webp"), (".gif", ".mp4", ".webm")  # W&B shows a WebP as a picture
SOUND_SUFFIX, SOUNDS = ".wav", "_sounds"  # of files, and of the names of what is heard
MOVING_SUFFIX, MOVING = ".gif", "_clip"   # likewise, of what moves
MOST_PICTURES = 32             # of samples, that a tracker is given again
MOST_PICTURE_BYTES = 1 << 26   # all of them: W&B copies each
MAX_BOOK = 1 << 24             # bytes
_GRID = re.compile(r"nimg-(\d{8,18})\.png")
_ABOUT = ("nimg", "kimg", "segment", "time")


@dataclass
class Moment:
    """What was recorded at `nimg` images.

    Attributes:
        metrics: by name; None where there is no record.
        segment, time: of the record.
        pictures: paths by name.
    """

    nimg: int
    metrics: dict[str, float] | None = None
    segment: int = 0
    time: float | None = None
    pictures: dict[str, Path] = field(default_factory=dict)
    histograms: dict[str, Histogram] = field(default_factory=dict)


def history(run_dir: Path, beyond: int, upto: int) -> list[Moment]:
    """What was recorded with more than `beyond` images and at most `upto`, in order. What cannot be read is left out.

    Of the pictures of samples these are at most `MOST_PICTURES`, evenly over the run, the newest among them.
    """
    moments: dict[int, Moment] = {}

    def at(nimg: int) -> Moment:
        return moments.setdefault(nimg, Moment(nimg))

    for record in _records(run_dir / METRICS_NAME, beyond, upto):
        with contextlib.suppress(ValueError, TypeError):
            metrics = {name: from_json(value) for name, value in record.items() if name not in _ABOUT}
            segment, when = int(record.get("segment", 0)), float(record["time"]) if "time" in record else None
            moments[record["nimg"]] = Moment(record["nimg"], metrics, segment, when)
    for record in _records(run_dir / HISTOGRAMS_NAME, beyond, upto):
        for name in record.keys() - set(_ABOUT):
            with contextlib.suppress(ValueError):
                at(record["nimg"]).histograms[name] = read_record(Histogram, json.dumps(record[name]))
    for nimg, name, path in _pictures(run_dir / SAMPLES_NAME, beyond, upto):
        at(nimg).pictures[name] = path
    return [moments[nimg] for nimg in sorted(moments)]


def _records(path: Path, beyond: int, upto: int) -> Iterator[dict[str, Any]]:
    with contextlib.suppress(OSError), open_regular(path) as file:
        for line in file:
            with contextlib.suppress(ValueError):
                record = parse_json(line, MAX_LINE)
                if isinstance(record, dict) and type(nimg := record.get("nimg")) is int and beyond < nimg <= upto:
                    yield record


def _pictures(folder: Path, beyond: int, upto: int) -> Iterator[tuple[int, str, Path]]:
    if beyond < 0 and (folder / "reals.png").is_file():
        yield from _with_others(0, "reals", folder / "reals.png")
    with contextlib.suppress(OSError):
        found = sorted((int(match[1]), path) for path in folder.iterdir() if (match := _GRID.fullmatch(path.name)))
        found = [(nimg, path) for nimg, path in found if beyond < nimg <= upto]
        size = max((sum(one.stat().st_size for *_, one in _with_others(nimg, "", path)) for nimg, path in found), default=0)
        most = max(1, min(MOST_PICTURES, MOST_PICTURE_BYTES // max(size, 1), len(found)))
        step = (len(found) - 1) / max(most - 1, 1)
        for number in sorted({len(found) - 1 - round(number * step) for number in range(most)} if found else ()):
            yield from _with_others(found[number][0], "samples", found[number][1])


def _with_others(nimg: int, name: str, path: Path) -> Iterator[tuple[int, str, Path]]:
    """A picture, and what lies beside it of the same samples, to be heard or moving."""
    yield nimg, name, path
    for suffix, what in ((SOUND_SUFFIX, SOUNDS), (MOVING_SUFFIX, MOVING)):
        if (other := path.with_suffix(suffix)).is_file():
            yield nimg, name + what, other


_Key = Annotated[str, Field(pattern=r"^\d{1,19} ")]  # of an evaluation; images seen come first


@dataclass
class _Book:
    """What a tracker was given: names of scores by evaluation, how files looked; and the evaluations that it must not have."""

    scores: dict[_Key, list[str]] = field(default_factory=dict)
    files: dict[str, list[int]] = field(default_factory=dict)
    abandoned: list[_Key] = field(default_factory=list)


class Results:
    """What evaluators and the training leave in the folder of a run beside its record, and what of that a tracker was given.

    The book of that is a small file of the tracker. So nothing is given twice, also after restarts.

    Args:
        book: path of that file.
    """

    def __init__(self, run_dir: Path, book: Path):
        self._run_dir, self._book = run_dir, book
        self._look: tuple[int, int, int] | None = None  # of what was read
        self._evaluations: list[Evaluation] = []
        before = _Book()
        with contextlib.suppress(OSError, ValueError), open_regular(book) as file:
            before = read_record(_Book, file.read(MAX_BOOK + 1), MAX_BOOK)
        self._scores = defaultdict(set, {key: set(names) for key, names in before.scores.items()})
        self._files, self._abandoned = before.files, set(before.abandoned)
        self._saved = ""

    def forget(self, beyond: int = -1) -> None:
        """The tracker has no scores of checkpoints with more than `beyond` images any more; with -1, it has nothing."""
        for key in [key for key in self._scores if int(key.partition(" ")[0]) > beyond]:
            del self._scores[key]
        if beyond < 0:
            self._files.clear()

    def abandon(self, keys: set[str]) -> None:
        """The run has gone back from these (`keys_beyond`)."""
        self._abandoned |= keys

    def scores(self, upto: int) -> list[tuple[Evaluation, dict[str, Score]]]:
        """Evaluations of checkpoints with at most `upto` images, and their scores that were not given yet; oldest first.

        Not those that the run has gone back from. Of two of checkpoints with equally many images the newer one counts.
        """
        if (look := _look(self._run_dir / SCORES_NAME)) != self._look:
            with contextlib.suppress(InputError):  # a disk that does not answer may do so later
                self._evaluations = sorted(read_evaluations(self._run_dir), key=lambda one: (one.nimg, one.time))
                self._look = look
        newest = {(one.nimg, one.network_sha256, one.count, one.seed): one
                  for one in self._evaluations if _key(one) not in self._abandoned}
        found = []
        for one in newest.values():
            given = self._scores.get(_key(one), set())
            if one.nimg <= upto and (left := {name: score for name, score in one.scores.items() if name not in given}):
                found.append((one, left))
        return found

    def files(self) -> list[tuple[str, Path]]:
        """Pictures and clips of generators that are new or have changed: name, path."""
        found = []
        with contextlib.suppress(OSError):
            for path in sorted((self._run_dir / PICTURES_NAME).iterdir()):
                if path.suffix in PICTURE_SUFFIXES + CLIP_SUFFIXES and not self.has_file(path):
                    found.append((picture_name(path), path))
        return found

    def has_news(self, upto: int) -> bool:
        """Whether there is anything that the tracker was not given."""
        return bool(self.scores(upto) or self.files())

    def given(self, one: Evaluation, names: set[str]) -> None:
        """Note that the tracker has these scores; `save` makes it last."""
        self._scores[_key(one)] |= names

    def has_file(self, path: Path) -> bool:
        """Whether the tracker has this file of the folder of pictures as it is."""
        return path.parent == self._run_dir / PICTURES_NAME and list(_look(path)) == self._files.get(path.name)

    def given_file(self, path: Path) -> None:
        """Note that the tracker has this file as it is, if it is one of that folder; `save` makes it last."""
        if path.parent == self._run_dir / PICTURES_NAME:
            self._files[path.name] = list(_look(path))

    def save(self) -> None:
        """Write the book. Where that fails, a restart may give some things again."""
        book = _Book({key: sorted(names) for key, names in self._scores.items()}, self._files, sorted(self._abandoned))
        if (text := json.dumps(asdict(book)) + "\n") != self._saved:
            with contextlib.suppress(OSError):
                write_whole(self._book, text)
                self._saved = text


def keys_beyond(run_dir: Path, nimg: int) -> set[str]:
    """The evaluations so far of checkpoints with more images, for `Results.abandon`."""
    with contextlib.suppress(InputError):
        return {_key(one) for one in read_evaluations(run_dir) if one.nimg > nimg}
    return set()


def picture_name(path: Path) -> str:
    """What trackers call a file of the folder of pictures."""
    return f"pictures/{path.stem}{'_clip' if is_clip(path) else ''}"


def is_clip(path: Path) -> bool:
    """Whether a file is shown as a clip, and not as a picture."""
    return path.suffix in CLIP_SUFFIXES


def _key(one: Evaluation) -> str:
    return " ".join(map(str, (one.nimg, *one.key)))


def _look(path: Path) -> tuple[int, int, int]:
    """Changes when the file does."""
    with contextlib.suppress(OSError):
        state = path.stat()
        return state.st_mtime_ns, state.st_size, state.st_ino
    return 0, 0, 0
