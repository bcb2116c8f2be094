"""Comparing batches."""

from __future__ import annotations

from dataclasses import replace

import torch


def same(a, b) -> bool:
    return torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and torch.equal(a.index, b.index)


def joined(parts):
    """The parts of all ranks as one batch."""
    first = parts[0]
    return replace(first, **{name: torch.cat([getattr(part, name) for part in parts]) for name in vars(first)})
