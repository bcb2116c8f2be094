"""How far is the approximate gradient penalty from the exact one, on a trained discriminator?

    python benchmarks/penalty.py runs/demo
    python benchmarks/penalty.py runs/demo data/digits --images 64 --draws 256

Takes the discriminator and the generator of the run's newest whole checkpoint, and real images from
the run's shards (DATA: where they are now). One row a set of images, a precision of the top
resolutions and a sigma:

  mean, s.e.    of the approximate penalty, over the images and `--draws` draws of noise
  bias, s.e.    of its mean from the exact penalty in fp32, relative. Measured with the first-order term
                (J_i . n)^2, whose mean is known, as a control variate: far sharper than the mean itself
  spread        standard deviation of one draw of the mean over a batch of the run, relative

and of the phase's parameter gradient for one batch of the run (1: a single draw, in the mean; *: the mean
over `--gradient-draws` draws, the rest of the noise taken out of its norm with two independent halves;
nan: nothing but noise is left)

  norm, cos     its norm and its cosine, relative to the gradient of the exact penalty in fp32
  fall          change of the exact penalty of other images by a step against it, 3e-6 of the parameters'
                norm long: whether the gradient does what it is for, without looking at the exact one
"""

from __future__ import annotations

import argparse
import copy
import platform
import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from stylegan_dist import randomness
from stylegan_dist.config import Config
from stylegan_dist.data.index import load_index
from stylegan_dist.data.order import StreamPlan
from stylegan_dist.data.stream import BatchStream
from stylegan_dist.errors import InputError
from stylegan_dist.families.stylegan2.networks import Discriminator
from stylegan_dist.networks.generator import SampleShape
from stylegan_dist.objective.penalties import approximate_gradient_penalty, gradient_penalty
from stylegan_dist.objective.phases import MicroBatch
from stylegan_dist.training.build import build_discriminator, build_generator
from stylegan_dist.training.checkpoint import checkpoint_folder, newest_whole_checkpoint
from stylegan_dist.training.run_folder import read_run_config
from stylegan_dist.training.saved import load_network, load_state
from stylegan_dist.training.step import micro_batches

SIGMAS = (1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3)
STEP = 3e-6  # of "fall", relative to the norm of the parameters


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path)
    parser.add_argument("data", metavar="DATA", nargs="?", help="the shard set (default: data.shards of the run)")
    parser.add_argument("--images", type=int, default=64, help="of each set (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=256, help="of noise, for the means (default: %(default)s)")
    parser.add_argument("--gradient-draws", type=int, default=128, help="for the gradients, even (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    try:
        measure(args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def measure(args: argparse.Namespace) -> None:
    config, device = read_run_config(args.run_dir), torch.device(args.device)
    nimg, _ = newest_whole_checkpoint(args.run_dir)
    if nimg == 0:
        raise InputError(f"{args.run_dir} has no whole checkpoint: train it first")
    batch, group = config.run.batch, config.discriminator.mbstd_group
    if args.images < 2 * batch or args.images % group:
        raise InputError(f"--images {args.images} must be at least {2 * batch} (twice run.batch) and a multiple of {group} "
                         "(discriminator.mbstd_group)")
    folder = checkpoint_folder(args.run_dir, nimg)
    # CUDA has a third arithmetic: fp32 with products of 10-bit mantissas.
    dtypes = ("fp32", "tf32", "bf16") if device.type == "cuda" else ("fp32", "bf16")
    networks = {dtype: load_discriminator(config, folder, dtype, device) for dtype in dtypes}
    num_classes = load_state(folder).data.num_classes
    real = real_images(args.data or config.data.shards, config, args.images, num_classes, device)
    sets = {"real": real, "generated": generated_images(config, folder, real)}
    print(f"{args.run_dir.name} after {nimg / 1000:g} kimg, {real.images.shape[-1]} px, {args.images} images, "
          f"groups of {group}, {args.draws} draws, gradients from {args.gradient_draws} draws of a batch of {batch}; "
          f"torch {torch.__version__}, {torch.get_num_threads()} threads of {platform.machine()}"
          + (f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""))
    for name, images in sets.items():
        compare(name, images, networks, batch, group, args)


def compare(name: str, part: MicroBatch, networks: dict[str, Discriminator], batch: int, group: int,
            args: argparse.Namespace) -> None:
    """Print the table of one set of images."""
    first, rest = (MicroBatch(part.images[s], None if part.labels is None else part.labels[s], part.index[s])
                   for s in (slice(batch), slice(batch, None)))
    use_tf32(False)
    jacobian = jacobian_of_groups(networks["fp32"], part, group)
    exact = exact_penalty(networks["fp32"], part).detach().mean().item()
    target = parameter_gradient(networks["fp32"], exact_penalty(networks["fp32"], first).mean())
    frobenius = jacobian.square().sum() / len(part.images)
    lengths = jacobian.square().sum((1, 2, 3, 4))
    expected_spread = (2 * lengths.square().mean() / batch).sqrt().item() / lengths.mean().item()
    print(f"\n{name}: exact penalty {exact:.6g}; without coupling inside groups {frobenius.item() / exact - 1:+.2%}; "
          f"first-order spread of a batch of {batch} {expected_spread:.2f}")
    for dtype, d in networks.items():
        use_tf32(dtype == "tf32")
        low = exact_penalty(d, part).detach().mean().item()
        gradient = parameter_gradient(d, exact_penalty(d, first).mean())
        cosine, fell = torch.cosine_similarity(gradient, target, dim=0).item(), fall(networks["fp32"], rest, gradient)
        print(f"exact in {dtype}: bias {low / exact - 1:+.2%}, norm {gradient.norm() / target.norm():.3f}, "
              f"cosine {cosine:.4f}, fall {fell:+.1%}")
    print(f"{'dtype':<6}{'sigma':>7}{'mean':>11}{'s.e.':>9}{'bias':>12}{'s.e.':>10}{'spread':>8}{'norm 1':>9}{'norm *':>9}"
          f"{'cos 1':>7}{'cos *':>7}{'fall 1':>8}{'fall *':>8}")
    for dtype, d in networks.items():
        use_tf32(dtype == "tf32")
        for sigma in SIGMAS:
            values, linear = draw_values(d, part, jacobian, sigma, group, args.draws)
            means, paired = values.mean(1), (values - linear).mean(1)
            bias = (frobenius + paired.mean()).item() / exact - 1
            # Batches of the run inside the images, so that the spread is that of a training step.
            spread = (values.var(0).mean() / batch).sqrt().item() / exact
            gradients = [approximate_gradient(d, first, sigma, draw) for draw in range(args.gradient_draws)]
            norm = torch.stack([g.norm() for g in gradients]).mean() / target.norm()
            cosine = torch.stack([torch.cosine_similarity(g, target, dim=0) for g in gradients]).mean()
            total = torch.stack(gradients).mean(0)
            halves = torch.stack(gradients[::2]).mean(0) @ torch.stack(gradients[1::2]).mean(0)
            length = halves.sqrt()
            use_tf32(False)
            falls = [fall(networks["fp32"], rest, g) for g in (*gradients[:16], total)]
            print(f"{dtype:<6}{sigma:>7g}{means.mean().item():>11.5g}{means.std().item() / args.draws**0.5:>9.2g}"
                  f"{bias:>+12.2%}{paired.std().item() / args.draws**0.5 / exact:>10.2%}{spread:>8.2f}"
                  f"{norm.item():>9.2f}{(length / target.norm()).item():>9.2f}"
                  f"{cosine.item():>7.3f}{(total @ target / target.norm() / length).item():>7.3f}"
                  f"{sum(falls[:-1]) / len(falls[:-1]):>+8.1%}{falls[-1]:>+8.1%}", flush=True)


def load_discriminator(config: Config, folder: Path, dtype: str, device: torch.device) -> Discriminator:
    config, data = copy.deepcopy(config), load_state(folder).data
    config.precision.dtype = "bf16" if dtype == "bf16" else "fp32"
    discriminator = build_discriminator(config, SampleShape(data.resolution, data.channels, data.num_classes), device)
    load_network(discriminator, folder, "d")
    return discriminator


def real_images(shards: str, config: Config, count: int, num_classes: int, device: torch.device) -> MicroBatch:
    d = config.data
    index = load_index(shards)
    stream = BatchStream(index, StreamPlan(config.run.seed, d.lanes, d.block, count))
    part, = micro_batches(next(stream), count, num_classes > 0, device, index.kind)
    stream.close()
    return part


def generated_images(config: Config, folder: Path, real: MicroBatch) -> MicroBatch:
    """Images of the generator in training, in full precision, with the labels of the real ones."""
    config, data = copy.deepcopy(config), load_state(folder).data
    config.precision.dtype = "fp32"
    g = build_generator(config, SampleShape(data.resolution, data.channels, data.num_classes), real.images.device)
    load_network(g, folder, "g")
    z = randomness.normal(config.run.seed, "benchmark.z", real.index, (g.z_dim,))
    noise = randomness.NoiseAddresses(g.synthesis.noise_shapes, real.images.device)
    with torch.no_grad():
        images = g(z, real.labels, noise.draw(config.run.seed, "benchmark.noise", real.index))
    return MicroBatch(images, real.labels, real.index)


def use_tf32(allowed: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def exact_penalty(d: Discriminator, part: MicroBatch) -> Tensor:
    images = part.images.detach().requires_grad_(True)
    return gradient_penalty(d(images, part.labels), images)


def jacobian_of_groups(d: Discriminator, part: MicroBatch, group: int) -> Tensor:
    """d D(x)_i / d x_j for the images j of image i's own group: [N, group, C, H, W]."""
    images = part.images.detach().requires_grad_(True)
    logits = d(images, part.labels)
    rows = []
    for k in range(group):  # groups do not see each other: one backward pass serves all
        gradient, = torch.autograd.grad(logits[k::group].sum(), images, retain_graph=True)
        rows.append(gradient.unflatten(0, (-1, group)))
    return torch.stack(rows, 1).flatten(0, 1)


def noise_of(part: MicroBatch, draw: int) -> Tensor:
    return randomness.normal(0, f"benchmark.draw{draw}", part.index, part.images.shape[1:])


@torch.no_grad()
def draw_values(d: Discriminator, part: MicroBatch, jacobian: Tensor, sigma: float, group: int,
                draws: int) -> tuple[Tensor, Tensor]:
    """Approximate penalties and their first-order terms (J_i . n)^2, float64 [draws, N]."""
    values, linear = [], []
    logits = d(part.images, part.labels)
    for draw in range(draws):
        noise = noise_of(part, draw)
        values.append(approximate_gradient_penalty(logits, d(part.images + sigma * noise, part.labels), sigma))
        of_group = noise.unflatten(0, (-1, group)).repeat_interleave(group, 0)
        linear.append((jacobian * of_group).sum((1, 2, 3, 4)).square())
    return torch.stack(values).double(), torch.stack(linear).double()


def approximate_gradient(d: Discriminator, part: MicroBatch, sigma: float, draw: int) -> Tensor:
    disturbed = part.images + sigma * noise_of(part, draw)
    return parameter_gradient(d, approximate_gradient_penalty(
        d(part.images, part.labels), d(disturbed, part.labels), sigma).mean())


def fall(d: Discriminator, part: MicroBatch, gradient: Tensor) -> float:
    """Relative change of the exact penalty of `part` by a step against a gradient; the step is taken back."""
    start = parameters_to_vector(d.parameters()).detach()
    before = exact_penalty(d, part).mean().item()
    vector_to_parameters(start - (STEP * start.norm() / gradient.norm() * gradient).float(), d.parameters())
    after = exact_penalty(d, part).mean().item()
    vector_to_parameters(start, d.parameters())
    return after / before - 1


def parameter_gradient(d: Discriminator, loss: Tensor) -> Tensor:
    gradients = torch.autograd.grad(loss, list(d.parameters()), allow_unused=True, materialize_grads=True)
    return torch.cat([gradient.double().flatten() for gradient in gradients])


if __name__ == "__main__":
    sys.exit(main())
