"""Do generated images help a classifier that has few real ones?

    python benchmarks/classifier.py WORK --count 10 20 50 --seeds 5 --kimg 30

The data are the handwritten digits of scikit-learn at 16 pixels: 1,497 to choose from, 300 for tests that nothing else sees.
For each count k and each seed, k real images a class are chosen. Two generators are trained, both class-conditional and with
augmentation (no mirrored digits):

    few    on these k a class and nothing else
    more   the same, but from the weights of a run on all 1,497 images without their labels (`run.init_from`)

and `augment-dataset` draws 5 k images a class from each. The classifier, a small convolutional network, sees in each arm the
same number of batches, half of each batch from either source where there are two:

    real                    the k real images
    + classical             the same, shifted and rotated
    few, more               generated images alone: the classification accuracy score (Ravuri and Vinyals 2019)
    + few, + more           real and generated
    + few + classical, ...  all of it

Results stand in WORK/results.jsonl, a line for each choice of real images. The same command goes on after an interruption.
At the end it prints means and standard deviations over the seeds, and the paired difference to the arm `real` or `+ classical`.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES, SIDE, HELD_OUT = 10, 16, 300
STEPS, BATCH = 1500, 64
TIMES = 5                # generated images for each real one
NETWORKS = [f"{network}.{knob}" for network in ("generator", "discriminator")
            for knob in ("channel_base=512", "channel_max=32")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", metavar="WORK", type=Path, help="folder for data, runs and results")
    parser.add_argument("--count", type=int, nargs="+", default=[10, 20, 50], help="real images a class (default: 10 20 50)")
    parser.add_argument("--seeds", type=int, default=5, help="choices of real images (default: 5)")
    parser.add_argument("--kimg", type=float, default=30, help="length of each training (default: 30)")
    parser.add_argument("--first-kimg", type=float, default=100, help="of the run without labels (default: 100)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    images, labels = digits()
    order = np.random.Generator(np.random.Philox(0)).permutation(len(images))
    held, rest = order[:HELD_OUT], order[HELD_OUT:]
    results = args.work / "results.jsonl"
    done = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    unlabelled = args.work / "unlabelled"
    train(unlabelled, pack(args.work / "all", images[rest], None), args.first_kimg)
    for seed in range(args.seeds):
        for count in args.count:
            if any((one["seed"], one["count"]) == (seed, count) for one in done):
                continue
            chosen = choice(labels, rest, count, seed)
            folder = args.work / f"{count}-{seed}"
            shards = pack(folder / "reals", images[chosen], labels[chosen])
            sets = {"real": (images[chosen], labels[chosen])}
            for name, origin in (("few", None), ("more", unlabelled)):
                train(folder / name, shards, args.kimg, origin)
                sets[name] = generated(folder / name, folder / f"{name}-images", TIMES * count)
            scores = {}
            for arm, sources, classical in arms():
                network = classifier([sets[source] for source in sources], classical, seed)
                scores[arm] = accuracy(network, images[held], labels[held])
            done.append({"count": count, "seed": seed, "kimg": args.kimg, "accuracy": scores})
            with open(results, "a") as file:
                file.write(json.dumps(done[-1]) + "\n")
            print(json.dumps(done[-1]), flush=True)
    table(done)


def digits() -> tuple[np.ndarray, np.ndarray]:
    """uint8 [1797, 16, 16] and their classes."""
    data = load_digits()
    pixels = np.rint(data.images * (255 / 16)).astype(np.uint8)
    larger = [Image.fromarray(one).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for one in pixels]
    return np.stack([np.asarray(one) for one in larger]), data.target


def choice(labels: np.ndarray, among: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`count` images of each class."""
    mixed = np.random.Generator(np.random.Philox(seed + 1)).permutation(among)
    return np.concatenate([mixed[labels[mixed] == label][:count] for label in range(CLASSES)])


def arms() -> Iterator[tuple[str, list[str], bool]]:
    """Name, sources, and whether images are shifted and rotated."""
    for classical in (False, True):
        word = " + classical" if classical else ""
        yield f"real{word}", ["real"], classical
        for name in ("few", "more"):
            yield f"real + {name}{word}", ["real", name], classical
    for name in ("few", "more"):
        yield name, [name], False


def stylegan_dist(*words: object) -> None:
    """Call the command; its output is shown if it fails."""
    result = subprocess.run([sys.executable, "-m", "stylegan_dist.cli", *map(str, words)], text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)
    if result.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}\n{result.stdout[-2000:]}")


def pack(folder: Path, images: np.ndarray, labels: np.ndarray | None) -> Path:
    """A shard set of images; without labels, it has none."""
    shards = folder / "shards"
    if not (shards / "index.json").exists():
        for number, image in enumerate(images):
            place = folder / "images" / ("all" if labels is None else str(labels[number]))
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{number:04d}.png")
        stylegan_dist("pack", folder / "images", shards, "--resolution", SIDE, "--channels", 1, "--labels",
                      "none" if labels is None else "folders")
    return shards


def train(run: Path, shards: Path, kimg: float, origin: Path | None = None) -> None:
    """A small StyleGAN2 of `demo.yaml`. A finished run is left as it is."""
    preset = Path(__file__).parents[1] / "launch/presets/demo.yaml"
    stylegan_dist("train", preset, f"data.shards={shards}", f"run.dir={run}", f"run.kimg={kimg}",
                  "run.batch=32", "run.device=cpu", "run.threads=1", "monitor.wandb=disabled", "augment.pipe=geom,color",
                  "augment.kimg=50", *NETWORKS, *([f"run.init_from={origin}"] if origin else []))


def generated(run: Path, out: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` images of each class, and their classes."""
    if not (out / "index.json").exists():
        stylegan_dist("augment-dataset", run, out, "--per-class", count, "--device", "cpu")
    images, labels = {}, {}
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, ending = member.name.partition(".")
                data = tar.extractfile(member).read()  # type: ignore[union-attr]
                if ending == "cls":
                    labels[path.name, key] = int(data)
                else:
                    images[path.name, key] = np.asarray(Image.open(io.BytesIO(data)))
    return np.stack(list(images.values())), np.array([labels[key] for key in images])


def classifier(sets: Sequence[tuple[np.ndarray, np.ndarray]], classical: bool, seed: int) -> nn.Module:
    """Trained on sets of images and classes, as many of each in a batch."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in ((1, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(256, CLASSES))
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=STEPS)
    data = [(values(images), torch.from_numpy(labels)) for images, labels in sets]
    for _ in range(STEPS):
        picked = [(x[rows], y[rows]) for x, y in data for rows in [torch.randint(len(x), (BATCH // len(data),))]]
        x, y = (torch.cat(parts) for parts in zip(*picked, strict=True))
        loss = F.cross_entropy(network(moved(x) if classical else x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def values(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images)[:, None].float() / 127.5 - 1


def moved(x: Tensor) -> Tensor:
    """Rotated by up to 15 degrees, scaled by up to 15 %, shifted by up to 2 pixels."""
    count = len(x)
    angle = (torch.rand(count) * 2 - 1) * 0.26
    size = 1 + (torch.rand(count) * 2 - 1) * 0.15
    shift = (torch.rand(count, 2) * 2 - 1) * (4 / SIDE)
    cosine, sine = angle.cos() * size, angle.sin() * size
    matrix = torch.stack([torch.stack([cosine, -sine, shift[:, 0]], 1), torch.stack([sine, cosine, shift[:, 1]], 1)], 1)
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    return F.grid_sample(x + 1, grid, align_corners=False) - 1  # black beyond the border


@torch.no_grad()
def accuracy(network: nn.Module, images: np.ndarray, labels: np.ndarray) -> float:
    return float((network(values(images)).argmax(1) == torch.from_numpy(labels)).double().mean())


def table(results: Sequence[dict]) -> None:
    """In percent: mean, standard deviation, and mean difference with its standard error."""
    for count in sorted({one["count"] for one in results}):
        rows = [one["accuracy"] for one in results if one["count"] == count]
        print(f"\n{count} real images a class, {len(rows)} seeds")
        for arm, _, classical in arms():
            base = "real + classical" if classical else "real"
            own, apart = [100 * row[arm] for row in rows], [100 * (row[arm] - row[base]) for row in rows]
            error = statistics.stdev(apart) / len(apart)**0.5 if len(apart) > 1 else float("nan")
            print(f"{arm:<28} {statistics.mean(own):6.2f} +- {statistics.stdev(own) if len(own) > 1 else 0:.2f}"
                  f"   against {base}: {statistics.mean(apart):+6.2f} +- {error:.2f}")


if __name__ == "__main__":
    main()
