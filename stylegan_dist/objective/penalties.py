"""Gradient penalties and path length regularisation. Each returns one value per image, [N]."""

from __future__ import annotations

import torch
from torch import Tensor


def gradient_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """|grad_x D(x)|^2 of every image (Mescheder et al. 2018, R1 on real and R2 on generated images).

    Multiply by gamma / 2 for the penalty of the paper.

    Args:
        logits: D(images), [N].
        images: [N, ...], a leaf that requires a gradient.
    Returns: [N], differentiable with respect to the discriminator's parameters.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().sum(dim=tuple(range(1, gradient.dim())))


def approximate_gradient_penalty(logits: Tensor, disturbed_logits: Tensor, sigma: float) -> Tensor:
    """|D(x) - D(x + sigma n)|^2 / sigma^2 of every image, n standard normal (Lin et al. 2025, "Diffusion
    adversarial post-training for one-step video generation", approximated R1).

    Estimates `gradient_penalty` from two evaluations of D, without a second derivative. For independent images its mean over n
    is |grad_x D|^2 + O(sigma^2), and its standard deviation is sqrt(2) |grad_x D|^2. docs/penalties.md has the theory, the
    effect of the minibatch standard deviation, and the precision that the logits need.

    Args:
        logits: D(x), [N].
        disturbed_logits: D(x + sigma n), [N].
        sigma: > 0, in the units of the images.
    Returns: [N], differentiable with respect to the discriminator's parameters, through both logits.
    """
    return ((disturbed_logits - logits) / sigma).square()


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
