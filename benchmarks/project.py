"""How near are projections, and how good are completions, of images that the run has not seen?

    python benchmarks/project.py runs/faces --images held-out/ --labels '-class(\\d)' --steps 300

Projects the images of a folder in several ways, and completes them where the right half, or a square in the middle, is
missing. A row is the mean over the images: PSNR, the distance by a feature network that no search has used (--judge), and
PSNR in the hole. The hole is also filled with the mean of generated images, of all classes and, where --labels finds the class
in a file's name, of the right class. Generated images are projected as well, which must find them again.
"""

from __future__ import annotations

import argparse
import re
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from stylegan_dist.features.registry import open_features
from stylegan_dist.latents.inputs import Target, box_mask, read_images
from stylegan_dist.latents.pictures import save_picture
from stylegan_dist.latents.project import ProjectOptions, project, psnr
from stylegan_dist.latents.trained import Trained, open_trained

PLAIN = {
    "w, pixels": {"features": "none"},
    "w, pixels + discriminator": {},
    "w, pixels + discriminator, weight 0.02": {"weight": 0.02},
    "w, the same, noise maps fitted": {"noise": "fit"},
    "w+, pixels": {"features": "none", "space": "w+"},
    "w+, pixels + discriminator": {"space": "w+"},
    "w, tuned": {"tune": True},
}
HOLES = {
    "w": {"space": "w"},
    "w, no class": {"space": "w", "every_class": False},
    "w+, no pull": {"pull": 0.0},
    "w+": {},
    "w+, no class": {"every_class": False},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run of images")
    parser.add_argument("--images", required=True, help="folder of images that it was not trained on")
    parser.add_argument("--most", type=int, default=16, help="of them, evenly taken")
    parser.add_argument("--labels", help="pattern that finds the class in a file's name")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--judge", default="none", help="feature network")
    parser.add_argument("--only", choices=["plain", "holes", "generated"])
    parser.add_argument("--ways", help="pattern of the rows that are wanted", default="")
    parser.add_argument("--out", help="keep the files here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    trained = open_trained(args.run)
    files = sorted(Path(args.images).iterdir())
    files = files[::max(1, len(files) // args.most)][:args.most]
    targets = read_images(files, trained)
    labels = [int(re.search(args.labels, file.name)[1]) for file in files] if args.labels else None  # type: ignore[index]
    judge = None if args.judge == "none" else open_features(args.judge, trained.device)
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(args.out or temporary)
        out.mkdir(parents=True, exist_ok=True)

        def row(name: str, images: Sequence[str | Path], options: dict, right: Sequence[int] | None = None) -> None:
            if not re.search(args.ways, name):
                return
            began = time.perf_counter()
            found = project(images, args.run, out / re.sub(r"\W+", "-", name),
                            ProjectOptions(steps=args.steps, batch=args.batch, **options))
            text = f"{name:<44} PSNR {statistics.mean(one.psnr for one in found):6.2f} dB"
            if judge:
                pairs = [torch.stack(side) for side in zip(*((one.picture, one.target.pixels) for one in found), strict=True)]
                text += f"  judge {float(judge.distance(*pairs).mean()):.4f}"
            if found[0].hole is not None:
                text += f"  hole {statistics.mean(one.hole for one in found):6.2f} dB"  # type: ignore[misc]
            if right:
                text += f"  right class {sum(one.label == label for one, label in zip(found, right, strict=True))}/{len(right)}"
            print(f"{text}  {time.perf_counter() - began:.0f} s", flush=True)

        print(f"{args.run} at {trained.nimg} images, {len(files)} images, {args.steps} steps")
        if args.only in (None, "generated"):
            made = generated(trained, len(files), out)
            for name in ("w, pixels + discriminator", "w, the same, noise maps fitted"):
                row(f"generated: {name}", made, PLAIN[name])
        if args.only in (None, "plain"):
            for name, options in PLAIN.items():
                row(name, files, options, labels)
        if args.only in (None, "holes"):
            side = trained.shape.resolution
            for hole, box in (("right half", f"{side // 2},0,{side // 2},{side}"),
                              ("middle", f"{side // 4},{side // 4},{side // 2},{side // 2}")):
                means(trained, targets, box, hole, labels)
                for name, options in HOLES.items():
                    row(f"{hole}: {name}", files, {**options, "mask_box": box}, labels)
                if labels:
                    for label in sorted(set(labels)):
                        own = [file for file, one in zip(files, labels, strict=True) if one == label]
                        row(f"{hole}: w+, class {label} given", own, {"label": label, "mask_box": box})


@torch.no_grad()
def generated(trained: Trained, count: int, out: Path) -> list[Path]:
    """Files of generated images."""
    index = torch.arange(count, device=trained.device)
    labels = index % trained.shape.num_classes if trained.shape.num_classes else None
    latents = trained.generator.latents(0, "benchmark", index, labels)
    files = []
    for number, pixels in enumerate(trained.kind.from_network(trained.generator.synthesize(latents, labels)).cpu()):
        files.append(out / f"generated{number}.png")
        save_picture(files[-1], pixels)
    return files


@torch.no_grad()
def means(trained: Trained, targets: list[Target], box: str, hole: str, labels: list[int] | None) -> None:
    """PSNR in the hole where it is filled with the mean of 1000 generated images."""
    missing = box_mask(box, trained.shape.resolution)[0, 0]
    index = torch.arange(1000, device=trained.device)

    def mean(label: int | None) -> torch.Tensor:
        classes = trained.shape.num_classes
        given = None if not classes else index % classes if label is None else torch.full_like(index, label)
        parts = []
        for some in index.split(100):
            labels = None if given is None else given[some]
            parts.append(trained.generator.synthesize(trained.generator.latents(0, "means", some, labels), labels))
        return trained.kind.from_network(torch.cat(parts).clamp(-1, 1).mean(0)).cpu()

    whole = mean(None)
    scores = [psnr(whole, target.pixels, missing) for target in targets]
    print(f"{f'{hole}: mean image':<44} hole {statistics.mean(scores):6.2f} dB")
    if labels:
        of_class = {label: mean(label) for label in set(labels)}
        scores = [psnr(of_class[label], target.pixels, missing) for target, label in zip(targets, labels, strict=True)]
        print(f"{f'{hole}: mean image of the right class':<44} hole {statistics.mean(scores):6.2f} dB", flush=True)


if __name__ == "__main__":
    main()
