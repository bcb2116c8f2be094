"""Pivotal tuning (Roich et al. 2021): the weights of the generator are tuned until fixed latents give the wanted images.

One generator is tuned for all images that are given. The result is a folder like that of a run.
"""

from __future__ import annotations

import copy

import torch

from stylegan_dist.latents.loss import Loss
from stylegan_dist.latents.search import Report, Rows, draw
from stylegan_dist.latents.trained import Trained

FOLDER = "tuned"
LR = 3e-4
STEPS = 350


def tune(trained: Trained, parts: list[tuple[Rows, Loss]], steps: int, report: Report) -> Trained:
    """A tuned copy of the generator; Adam with the mean loss of all images.

    Args:
        parts: latents, which stay as they are, and their losses; each part is computed at once.
        report: takes the losses of a part in each step.
    """
    generator = copy.deepcopy(trained.generator).requires_grad_(True)
    tuned = Trained(trained.run_dir, generator, trained.shape, trained.kind, trained.nimg, trained.digest, trained.device)
    optimizer = torch.optim.Adam(generator.parameters(), lr=LR)
    images = sum(len(rows.numbers) for rows, _ in parts)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        for rows, loss in parts:
            each = loss(draw(tuned, rows))
            (each.sum() / images).backward()
            report(each.detach())
        optimizer.step()
    generator.requires_grad_(False)
    return tuned
