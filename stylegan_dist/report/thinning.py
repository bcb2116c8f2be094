"""Fewer of what would be too many: points of a curve, pictures, rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

Point = tuple[int, float]


def evenly(count: int, most: int) -> list[int]:
    """At most `most` of the numbers 0 to count - 1, evenly spaced; the first and the last are always there (from 2 on)."""
    if count <= most:
        return list(range(count))
    if most < 2:
        return [count - 1][:max(most, 0)]
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def trend(points: Sequence[Point], most: int) -> list[Point]:
    """The course of a noisy curve: the mean of each of `most` buckets, as (images seen, value).

    Values that are not finite are passed over.
    """
    means = []
    for bucket in range(most):
        inside = points[bucket * len(points) // most:(bucket + 1) * len(points) // most]
        finite = [(nimg, value) for nimg, value in inside if math.isfinite(value)]
        if finite:
            means.append((round(math.fsum(nimg for nimg, _ in finite) / len(finite)), _mean([value for _, value in finite])))
    return means


def _mean(values: Sequence[float]) -> float:
    """Geometric where all are positive, so that a spike does not carry it away, as on a logarithmic scale."""
    if min(values) > 0:
        return math.exp(math.fsum(map(math.log, values)) / len(values))
    return math.fsum(value / len(values) for value in values)


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """At most some `most` points of a curve: the lowest and the highest of each bucket, in order, so that no spike is lost.

    The first and the last point stay. A bucket in which a value is not finite keeps one such point, where the line is broken.
    """
    if len(points) <= most:
        return list(points)
    buckets = max(most // 2 - 1, 1)
    kept = {0, len(points) - 1}
    for bucket in range(buckets):
        inside = range(bucket * len(points) // buckets, (bucket + 1) * len(points) // buckets)
        finite = [i for i in inside if math.isfinite(points[i][1])]
        if finite:
            kept.add(min(finite, key=lambda i: points[i][1]))
            kept.add(max(finite, key=lambda i: points[i][1]))
        if len(finite) < len(inside):
            kept.add(next(i for i in inside if not math.isfinite(points[i][1])))
    return [points[i] for i in sorted(kept)]
