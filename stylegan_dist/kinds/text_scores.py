"""Scores of lines of text: n-grams of symbols against held-out text, words that exist, copies of the data."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from stylegan_dist.kinds.array import TextForm
from stylegan_dist.kinds.scores import Measured, SampleMetric

ORDERS = (4, 3, 2, 1)      # of n-grams
MOST_REAL = 1 << 18        # lines: more than these are not searched for copies and words


@dataclass(frozen=True)
class LineMetric(SampleMetric):
    """A score of lines. Their rows are the numbers of their symbols."""

    form: TextForm
    most_real = MOST_REAL

    @property
    def common(self) -> tuple[str, int]:
        return self.form.symbols, self.form.length

    def width(self, resolution: int, channels: int) -> int:
        return self.form.length

    def rows(self, values: Tensor) -> Tensor:
        return likeliest(values, self.form).float()

    def held_out(self, real: Sequence[str]) -> Sequence[str]:
        """Lines that no network has seen; where the set has none, each second one of the real lines."""
        return self.form.held_out or real[1::2] or real

    def measure(self, real: Tensor, generated: Tensor) -> Mapping[str, Measured]:
        lines = spelled(real, self.form)
        return self.compare(lines, self.held_out(lines), spelled(generated, self.form))

    def compare(self, real: Sequence[str], held_out: Sequence[str], generated: Sequence[str]) -> Mapping[str, Measured]:
        """The scores of generated lines."""
        raise NotImplementedError


class Ngrams(LineMetric):
    """Jensen-Shannon divergences, in bits. The floor is that of equally many real lines."""

    about = "Jensen-Shannon divergence of sequences of 1 to 4 symbols from those of held-out lines, in bits"
    scores = tuple(f"ngrams_{n}" for n in ORDERS)

    def compare(self, real: Sequence[str], held_out: Sequence[str], generated: Sequence[str]) -> Mapping[str, Measured]:
        count = min(len(real), len(generated))  # with fewer lines a divergence is larger
        found = {}
        for n in ORDERS:
            target = ngrams(held_out, n)
            value, floor = (divergence(ngrams(lines[:count], n), target) for lines in (generated, real))
            found[f"ngrams_{n}"] = Measured(value, None, floor)
        return found


class Words(LineMetric):
    """The floor of both is that of held-out lines, of which the words of the other real lines are counted; none where the set
    has none."""

    about = "share of the words that occur in the data, and of the lines that consist of such words alone"
    scores = ("lines", "words")

    def compare(self, real: Sequence[str], held_out: Sequence[str], generated: Sequence[str]) -> Mapping[str, Measured]:
        trained = words_of(real)
        value, floor = known_shares(generated, trained | words_of(held_out)), known_shares(held_out, trained)
        return {name: Measured(value[i], _error(value[i], len(generated)) if name == "lines" else None,
                               floor[i] if self.form.held_out else None, False) for i, name in enumerate(self.scores)}


class Copies(LineMetric):
    """The floor of `verbatim` is that of held-out lines, and none where the set has none; that of `distinct` is that of equally
    many real lines."""

    about = "share of the lines that are in the data word for word, and of those that are different"
    scores = ("verbatim", "distinct")

    def compare(self, real: Sequence[str], held_out: Sequence[str], generated: Sequence[str]) -> Mapping[str, Measured]:
        trained, count = set(real), min(len(real), len(generated))
        value, floor = (sum(line in trained for line in lines) / len(lines) for lines in (generated, held_out))
        distinct, usual = (len(set(lines[:count])) / count for lines in (generated, real))
        return {"verbatim": Measured(value, _error(value, len(generated)), floor if self.form.held_out else None),
                "distinct": Measured(distinct, None, usual, False)}


def likeliest(values: Tensor, form: TextForm) -> Tensor:
    """The numbers of the likeliest symbols of samples [N, 1, R, R]: int64 [N, length]."""
    return values[:, 0, :len(form.symbols), :form.length].argmax(1)


def spelled(symbols: Tensor, form: TextForm) -> list[str]:
    """The lines of numbers of symbols [N, length], without the blanks at their ends."""
    return ["".join(form.symbols[int(i)] for i in row).rstrip() for row in symbols.tolist()]


def ngrams(lines: Iterable[str], n: int) -> Counter[str]:
    """How often each sequence of n symbols occurs in lines that have a blank on either side."""
    found: Counter[str] = Counter()
    for line in lines:
        padded = f" {line} "
        found.update(padded[i:i + n] for i in range(len(padded) - n + 1))
    return found


def divergence(one: Counter[str], other: Counter[str]) -> float:
    """Jensen-Shannon divergence of two distributions given by counts, in bits: from 0 to 1 (Lin 1991, equation 4.1)."""
    sums = one.total(), other.total()
    if 0 in sums:
        return 0.0 if sums == (0, 0) else 1.0
    total = 0.0
    for counts, whole in zip((one, other), sums, strict=True):
        for key, count in counts.items():
            share = count / whole
            total += share * math.log2(share / ((one[key] / sums[0] + other[key] / sums[1]) / 2)) / 2
    return total


def words_of(lines: Iterable[str]) -> set[str]:
    """The different words of lines."""
    return {word for line in lines for word in line.split()}


def known_shares(lines: Sequence[str], known: set[str]) -> tuple[float, float]:
    """The share of lines that have words and only known ones, and the share of words that are known."""
    words = [line.split() for line in lines]
    whole = sum(bool(one) and known.issuperset(one) for one in words)
    count = sum(map(len, words))
    return whole / max(len(lines), 1), sum(word in known for one in words for word in one) / max(count, 1)


def _error(share: float, count: int) -> float:
    """Standard error of the share of so many."""
    return math.sqrt(share * (1 - share) / count)
