"""The training mathematics of StyleGAN2 in its plainest form, to test the fast form against.

Written from the papers, not from the implementation: loops over samples, explicit per-sample weights,
explicit zeros, explicit 4x4 filter, logarithms of sigmoids. Everything is differentiable and works in
the dtype of its arguments; the tests use float64. Networks are given by their state dict alone.

Sources: Karras et al. 2018 (equalised learning rate, minibatch standard deviation, average of the
generator), 2019 (mapping, style mixing, truncation), 2020 (modulation, path length, lazy
regularisation, architecture), 2020b (conditioning, ramp-up), Mescheder et al. 2018 (R1, R2),
Jolicoeur-Martineau 2019 and Huang et al. 2024 (relativistic pairing), Kingma and Ba 2015 (Adam).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
MARGIN = 8  # zeros around a feature map that stand for the infinite plane; more than all kernels reach


def weights_of(network: torch.nn.Module) -> State:
    """Parameters and buffers in float64, the parameters as leaves that collect gradients."""
    state = {name: value.detach().double().clone() for name, value in network.state_dict().items()}
    for name, _ in network.named_parameters():
        state[name].requires_grad_(True)
    return state


def below(state: State, prefix: str) -> State:
    """The entries below a prefix such as "synthesis.", without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


# Layers


def lrelu(x: Tensor) -> Tensor:
    """Leaky ReLU of slope 0.2, times the square root of two."""
    return torch.where(x > 0, x, 0.2 * x) * math.sqrt(2)


def bounded(x: Tensor, clamp: float | None) -> Tensor:
    return x if clamp is None else torch.minimum(torch.maximum(x, torch.full_like(x, -clamp)), torch.full_like(x, clamp))


def normalized(x: Tensor) -> Tensor:
    """[N, C], each row divided by its root mean square."""
    return torch.stack([row / torch.sqrt((row * row).sum() / len(row) + 1e-8) for row in x])


def dense(state: State, name: str, x: Tensor, lr_multiplier: float = 1.0) -> Tensor:
    """Fully connected layer with an equalised learning rate, without activation."""
    weight = state[f"{name}.weight"] * lr_multiplier / math.sqrt(x.shape[1])
    bias = state[f"{name}.bias"] * lr_multiplier
    return (weight[None] * x[:, None]).sum(2) + bias


def mapping(state: State, z: Tensor | None, label: Tensor | None) -> Tensor:
    """z [N, z_dim] or None and label [N] or None -> w [N, w_dim]."""
    inputs = []
    if z is not None:
        inputs.append(normalized(z))
    if label is not None:
        classes = state["embed.weight"].shape[1]
        one_hot = torch.zeros(len(label), classes, dtype=state["embed.weight"].dtype)
        for n, k in enumerate(label.tolist()):
            one_hot[n, k] = 1
        inputs.append(normalized(dense(state, "embed", one_hot)))
    x = torch.cat(inputs, 1)
    layer = 0
    while f"layers.{layer}.weight" in state:
        x = lrelu(dense(state, f"layers.{layer}", x, lr_multiplier=0.01))
        layer += 1
    return x


# Convolutions on the infinite plane, where shifts and filters commute


def fir_kernel(dtype: torch.dtype) -> Tensor:
    """[1, 3, 3, 1] times itself, 4x4, of sum one."""
    rows = [[1, 3, 3, 1], [3, 9, 9, 3], [3, 9, 9, 3], [1, 3, 3, 1]]
    return torch.tensor(rows, dtype=dtype) / 64


def filtered(x: Tensor, before: int, after: int) -> Tensor:
    """The 4x4 filter on [N, C, H, W], after padding with zeros `before` and `after`."""
    kernel = fir_kernel(x.dtype)
    x = F.pad(x, (before, after, before, after))
    height, width = x.shape[2] - 3, x.shape[3] - 3
    return sum(kernel[i, j] * x[:, :, i:i + height, j:j + width] for i in range(4) for j in range(4))


def with_zeros(x: Tensor) -> Tensor:
    """One zero behind every pixel: [N, C, H, W] -> [N, C, 2H, 2W]."""
    n, c, h, w = x.shape
    bigger = torch.zeros(n, c, 2 * h, 2 * w, dtype=x.dtype)
    bigger[:, :, ::2, ::2] = x
    return bigger


def upsampled(x: Tensor) -> Tensor:
    """Twice the size. The filter is centred between its middle taps; pixel i covers 2i and 2i + 1."""
    return filtered(with_zeros(x), 2, 1) * 4


def downsampled(x: Tensor) -> Tensor:
    """Half the size; pixel i lies between 2i and 2i + 1."""
    return filtered(x, 1, 1)[:, :, ::2, ::2]


def same_conv(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, padding=weight.shape[2] // 2)


def conv_up(x: Tensor, weight: Tensor) -> Tensor:
    """Insert zeros, filter with gain 4, convolve: on a plane of zeros, cropped at the very end.

    A convolution in the sense of mathematics, which mirrors the kernel; `same_conv` does not. Kernels are
    learned, so this is a convention and no part of the papers: it is that of a transposed convolution.
    """
    plane = F.pad(with_zeros(x), (MARGIN,) * 4)
    plane = same_conv(filtered(plane, 2, 1) * 4, weight.flip([2, 3]))
    return plane[:, :, MARGIN:-MARGIN, MARGIN:-MARGIN]


def conv_down(x: Tensor, weight: Tensor) -> Tensor:
    """Filter, convolve at full resolution, keep every second pixel: on a plane of zeros."""
    plane = F.pad(x, (MARGIN,) * 4)
    plane = same_conv(filtered(plane, 1, 2), weight)
    return plane[:, :, MARGIN:-MARGIN, MARGIN:-MARGIN][:, :, ::2, ::2]


def modulated_conv(x: Tensor, weight: Tensor, style: Tensor, up: int = 1, demodulate: bool = True) -> Tensor:
    """Equations 1 to 3 of Karras et al. 2020, one sample and its own weights at a time."""
    images = []
    for n in range(len(x)):
        w = style[n][None, :, None, None] * weight
        if demodulate:
            w = torch.stack([filters / torch.sqrt((filters * filters).sum() + 1e-8) for filters in w])
        images.append(conv_up(x[n:n + 1], w) if up == 2 else same_conv(x[n:n + 1], w))
    return torch.cat(images)


def noise_shapes(resolution: int) -> list[int]:
    """Sizes of the noise maps: one at 4x4, two at each higher resolution."""
    sizes = [4]
    while sizes[-1] < resolution:
        sizes += [2 * sizes[-1]] * 2
    return sizes


# Networks


def synthesis_layer(state: State, name: str, x: Tensor, w: Tensor, noise: Tensor | None, up: int,
                    clamp: float | None) -> Tensor:
    style = dense(state, f"{name}.affine", w)
    x = modulated_conv(x, state[f"{name}.weight"], style, up)
    if noise is not None:
        x = x + noise * state[f"{name}.noise_strength"]
    return bounded(lrelu(x + state[f"{name}.bias"][None, :, None, None]), clamp)


def to_rgb(state: State, name: str, x: Tensor, w: Tensor, clamp: float | None) -> Tensor:
    style = dense(state, f"{name}.affine", w) / math.sqrt(x.shape[1])
    x = modulated_conv(x, state[f"{name}.weight"], style, demodulate=False)
    return bounded(x + state[f"{name}.bias"][None, :, None, None], clamp)


def synthesis(state: State, ws: Tensor, noise: list[Tensor] | None, clamp: float | None = None) -> Tensor:
    """ws [N, num_ws, w_dim] -> images. Layers and w are used up from the front, in the order of the paper."""
    resolution, layer, maps = 4, 0, list(noise) if noise is not None else None
    x = torch.stack([state["b4.const"]] * len(ws))
    rgb = None
    while f"b{resolution}.torgb.weight" in state:
        name = f"b{resolution}"
        for conv, up in (("conv0", 2), ("conv1", 1)):
            if resolution == 4 and conv == "conv0":
                continue
            x = synthesis_layer(state, f"{name}.{conv}", x, ws[:, layer], maps.pop(0) if maps is not None else None, up, clamp)
            layer += 1
        addition = to_rgb(state, f"{name}.torgb", x, ws[:, layer], clamp)  # shares the next convolution's w
        rgb = addition if rgb is None else upsampled(rgb) + addition
        resolution *= 2
    assert ws.shape[1] == layer + 1, "one w for each convolution and one more"
    assert not maps, "one noise map for each convolution"
    return rgb


def generator(state: State, z: Tensor, label: Tensor | None, noise: list[Tensor] | None, clamp: float | None = None) -> Tensor:
    """Images without mixing and truncation."""
    w = mapping(below(state, "mapping."), z, label)
    return synthesis(below(state, "synthesis."), torch.stack([w] * num_ws(state), 1), noise, clamp)


def num_ws(state: State) -> int:
    """Convolutions of the synthesis network and one more for the last toRGB layer."""
    return sum(name.endswith(("conv0.weight", "conv1.weight")) for name in state) + 1


def mixed(w1: Tensor, w2: Tensor, cutoff: list[int], layers: int) -> Tensor:
    """Style mixing: layers before an image's cut-off take its w1, the others its w2. -> [N, layers, w_dim]."""
    return torch.stack([
        torch.stack([w1[n] if layer < cutoff[n] else w2[n] for layer in range(layers)]) for n in range(len(w1))
    ])


def truncated(w: Tensor, w_avg: Tensor, psi: float) -> Tensor:
    return psi * w + (1 - psi) * w_avg


def conv_layer(state: State, name: str, x: Tensor, down: int = 1, activate: bool = True) -> Tensor:
    """Convolution with an equalised learning rate, bias if there is one, leaky ReLU if asked for."""
    weight = state[f"{name}.weight"]
    weight = weight / math.sqrt(weight.shape[1] * weight.shape[2] * weight.shape[3])
    x = conv_down(x, weight) if down == 2 else same_conv(x, weight)
    if f"{name}.bias" in state:
        x = x + state[f"{name}.bias"][None, :, None, None]
    return lrelu(x) if activate else x


def minibatch_std(x: Tensor, group: int) -> Tensor:
    """One more channel: the mean standard deviation of each run of `group` consecutive images."""
    channel = []
    for start in range(0, len(x), group):
        images = x[start:start + group]
        centre = sum(images) / group
        variance = sum((image - centre) ** 2 for image in images) / group
        deviation = torch.sqrt(variance + 1e-8)
        mean = deviation.sum() / deviation.numel()
        channel += [mean * torch.ones(1, *x.shape[2:], dtype=x.dtype)] * group
    return torch.cat([x, torch.stack(channel)], 1)


def discriminator(state: State, images: Tensor, label: Tensor | None, group: int, clamp: float | None = None) -> Tensor:
    """Logits [N]. Residual blocks if the state has skip weights, plain blocks otherwise."""
    x = bounded(conv_layer(state, "fromrgb", images), clamp)
    while (resolution := x.shape[2]) > 4:
        name = f"b{resolution}"
        main = bounded(conv_layer(state, f"{name}.conv0", x), clamp)
        main = bounded(conv_layer(state, f"{name}.conv1", main, down=2), clamp)
        if f"{name}.skip.weight" in state:
            weight = state[f"{name}.skip.weight"] / math.sqrt(x.shape[1])
            x = (main + same_conv(downsampled(x), weight)) / math.sqrt(2)
        else:
            x = main
    x = bounded(conv_layer(state, "conv", minibatch_std(x, group)), clamp)
    x = lrelu(dense(state, "dense", x.reshape(len(x), -1)))
    x = dense(state, "out", x)
    if label is None:
        return x[:, 0]
    return (x * mapping(below(state, "mapping."), None, label)).sum(1) / math.sqrt(x.shape[1])


# Losses, one value per image, minimised


def log_probability(logit: Tensor) -> Tensor:
    """log sigmoid(logit), as it is written; exact enough in float64 between -700 and 700."""
    return torch.log(1 / (1 + torch.exp(-logit)))


DISCRIMINATOR_LOSS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "nonsaturating": lambda real, fake: -log_probability(real) - log_probability(-fake),  # 1 - sigmoid(x) = sigmoid(-x)
    "minimax": lambda real, fake: -log_probability(real) - log_probability(-fake),
    "hinge": lambda real, fake: -torch.minimum(0 * real, real - 1) - torch.minimum(0 * fake, -fake - 1),
    "wasserstein": lambda real, fake: -(real - fake),
    "least_squares": lambda real, fake: (real - 1) ** 2 / 2 + fake**2 / 2,
    "relativistic": lambda real, fake: -log_probability(real - fake),
}
GENERATOR_LOSS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "nonsaturating": lambda real, fake: -log_probability(fake),
    "minimax": lambda real, fake: log_probability(-fake),
    "hinge": lambda real, fake: -fake,
    "wasserstein": lambda real, fake: -fake,
    "least_squares": lambda real, fake: (fake - 1) ** 2 / 2,
    "relativistic": lambda real, fake: -log_probability(fake - real),
}


# Regularisers, one value per image


def squared_gradients(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """|d f(x)_n / d x_n|^2 of every image, for a function whose outputs may look at other images.

    As in Mescheder et al. 2018 with a batch statistic inside D: the gradient of the sum of all outputs.
    """
    images = images.detach().requires_grad_(True)
    gradient, = torch.autograd.grad(function(images).sum(), images, create_graph=True)
    return torch.stack([(g * g).sum() for g in gradient])


def numeric_gradient(function: Callable[[Tensor], Tensor], x: Tensor, step: float = 1e-6) -> Tensor:
    """Central differences of a scalar function, one coordinate at a time."""
    x = x.detach()
    gradient = torch.zeros_like(x)
    for i in range(x.numel()):
        offset = torch.zeros_like(x)
        offset.view(-1)[i] = step
        gradient.view(-1)[i] = (function(x + offset) - function(x - offset)) / (2 * step)
    return gradient


def path_lengths(function: Callable[[Tensor], Tensor], ws: Tensor, direction: Tensor) -> Tensor:
    """|J^T y| for each image, with the whole Jacobian written out; the square is averaged over layers."""
    y = direction / math.sqrt(direction.shape[2] * direction.shape[3])
    lengths = []
    for n in range(len(ws)):
        # J: [1, C, H, W, 1, num_ws, w_dim] of image n with respect to its own ws
        jacobian = torch.autograd.functional.jacobian(lambda w, n=n: function(w, n), ws[n:n + 1], create_graph=True)
        product = (jacobian[0, :, :, :, 0] * y[n][..., None, None]).sum((0, 1, 2))
        lengths.append(torch.sqrt((product**2).sum(1).mean()))
    return torch.stack(lengths)


# Optimisation


def lazy_adam(lr: float, betas: tuple[float, float], interval: int) -> tuple[float, tuple[float, float]]:
    """Hyper-parameters of Adam with a regularisation step every `interval` steps (2020, appendix B)."""
    if interval == 1:
        return lr, betas
    share = interval / (interval + 1)
    return share * lr, (betas[0] ** share, betas[1] ** share)


def adam(parameter: Tensor, gradients: list[Tensor], lr: float, betas: tuple[float, float], eps: float) -> Tensor:
    """The parameter after one step for each gradient (Kingma and Ba 2015, algorithm 1)."""
    m, v = torch.zeros_like(parameter), torch.zeros_like(parameter)
    for t, g in enumerate(gradients, start=1):
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        m_hat = m / (1 - betas[0] ** t)
        v_hat = v / (1 - betas[1] ** t)
        parameter = parameter - lr * m_hat / (torch.sqrt(v_hat) + eps)
    return parameter


def ema_weight(seen: int, batch: int, half_life: float, rampup: float) -> float:
    """Weight of the old average, `batch` images after the first `seen`; the half-life is counted in images."""
    if rampup > 0:
        half_life = min(half_life, rampup * seen)
    return 0.0 if half_life == 0 else 2 ** (-batch / half_life)


# Comparison


def randomize(network: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Give all parameters and buffers normal values, so that no term is zero, or one, by accident.

    The mapping's layers are multiplied by 0.01 when used, so they get a hundred times as much.
    """
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            scale = 100 if "mapping.layers." in name else 1
            value.copy_(torch.randn(value.shape, generator=source, dtype=torch.float64) * scale)
    return network


def normals(seed: int, *shape: int) -> Tensor:
    """Standard normal values, float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def difference(value: Tensor, expected: Tensor) -> float:
    """Largest deviation relative to the largest expected value, which must not be zero."""
    assert value.shape == expected.shape, f"{tuple(value.shape)} instead of {tuple(expected.shape)}"
    size = expected.detach().abs().max().item()
    assert size > 0, "nothing to compare"
    deviation = (value.detach().double() - expected.detach().double()).abs().max().item()
    return math.inf if math.isnan(deviation) else deviation / size


def gradient_differences(network: torch.nn.Module, state: State) -> dict[str, float]:
    """For each parameter, how far its `.grad` is from that of the reference's leaf; None counts as zero.

    Relative to the parameter's own gradient, but not to less than 1e-3 of the largest one: where a bias
    cancels, both sides hold nothing but rounding.
    """
    pairs = {
        name: [torch.zeros_like(p) if p.grad is None else p.grad.double() for p in (parameter, state[name])]
        for name, parameter in network.named_parameters()
    }
    largest = max(there.abs().max().item() for _, there in pairs.values())
    assert largest > 0, "no gradient at all"
    result = {}
    for name, (here, there) in pairs.items():
        size = max(there.abs().max().item(), 1e-3 * largest)
        deviation = (here - there).abs().max().item()
        result[name] = math.inf if math.isnan(deviation) else deviation / size
    return result
