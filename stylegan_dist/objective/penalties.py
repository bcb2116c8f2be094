"""Gradient penalties and path length regularisation. Each returns one value per image, [N]."""

from __future__ import annotations

import torch
from torch import Tensor


def gradient_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """|grad_x D(x)|^2 of every image (Mescheder et al. 2018, R1 on real and R2 on generated images).

    Multiply by gamma / 2 for the penalty of the paper.

    Args:
        logits: D(images), [N].
        images: [N, C, H, W], a leaf that requires a gradient.
    Returns: [N], differentiable with respect to the discriminator's parameters.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3))


def path_lengths(images: Tensor, ws: Tensor, direction: Tensor) -> Tensor:
    """|J^T y| of every image, with J the Jacobian of the images to w (Karras et al. 2020, section 3.2).

    Args:
        images: synthesis(ws), [N, C, H, W].
        ws: [N, num_ws, w_dim]; the squared length is averaged over the num_ws layers.
        direction: y, standard normal [N, C, H, W]; scaled here by (H W)^(-1/2) so that the length does
            not depend on the resolution.
    Returns: [N], differentiable with respect to the generator's parameters.
    """
    y = direction / (images.shape[2] * images.shape[3]) ** 0.5
    (gradient,) = torch.autograd.grad((images * y).sum(), ws, create_graph=True)
    return gradient.square().sum(dim=2).mean(dim=1).sqrt()
