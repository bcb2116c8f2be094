"""A recipe: short films of moving handwritten digits, for a first try of clips. The digits are those of scikit-learn.

    python shards/moving_digits.py data/circling-films --motion circle
    stylegan-dist pack data/circling-films data/circling --video --resolution 32 --channels 1 --frames 16 --loops yes \\
      --labels folders

Motions:
    circle   a digit goes round in as many frames as a film has, so that films loop
    bounce   a digit goes straight on, and back from the borders; films do not loop

Writes OUT/{0..9}/NNNNN.gif, grey, 8 bits. Digit, place, direction and speed of film n are functions of (--seed, n): running it
again writes the same files again.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits

from stylegan_dist.randomness import uniform

FRAME_MS = 80
SIDE = 8         # pixels of a digit of scikit-learn


def circle(draws: np.ndarray, frames: int, reach: float) -> np.ndarray:
    """Centres [frames, 2] of a digit that goes round once, in one of both directions."""
    radius, start, way = reach * (0.5 + 0.5 * draws[0]), draws[1], 1 if draws[2] < 0.5 else -1
    angle = 2 * np.pi * (start + way * np.arange(frames) / frames)
    return radius * np.stack([np.cos(angle), np.sin(angle)], 1)


def bounce(draws: np.ndarray, frames: int, reach: float) -> np.ndarray:
    """Centres [frames, 2] of a digit that crosses the picture in 6 to 12 frames in each direction, and comes back."""
    start, speed = 2 * draws[0:2], (1 / 12 + draws[2:4] / 12) * np.where(draws[4:6] < 0.5, 1, -1)
    place = (start + speed * np.arange(frames)[:, None]) % 2
    return reach * (1 - 2 * np.abs(1 - place))


def draw(digit: np.ndarray, centre: np.ndarray, size: int, scale: float) -> np.ndarray:
    """A picture uint8 [size, size] of a digit [8, 8] (0 to 16), interpolated bilinearly around its centre."""
    padded = np.pad(digit, 1)
    place = (np.arange(size) - (size - 1) / 2)
    row, column = ((place - offset) / scale + (SIDE - 1) / 2 + 1 for offset in (centre[1], centre[0]))

    def weights(at: np.ndarray) -> np.ndarray:
        return np.clip(1 - np.abs(at[:, None] - np.arange(SIDE + 2)), 0, 1)

    return np.rint(weights(row) @ padded @ weights(column).T * (255 / 16)).astype(np.uint8)


MOTIONS = {"circle": circle, "bounce": bounce}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder for the films; made if it is not there")
    parser.add_argument("--motion", choices=sorted(MOTIONS), default="circle")
    parser.add_argument("--count", type=int, default=4000, help="of the films (default 4000)")
    parser.add_argument("--frames", type=int, default=16, help="of a film (default 16)")
    parser.add_argument("--size", type=int, default=32, help="pixels of a side (default 32)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    digits, scale = load_digits(), args.size / 32 * 1.75
    reach = args.size / 2 - SIDE * scale / 2 - 0.5
    draws = uniform(args.seed, f"moving_digits.{args.motion}", torch.arange(args.count), 7).numpy().astype(np.float64)
    for number, row in enumerate(draws):
        which = int(row[6] * len(digits.images))
        centres = MOTIONS[args.motion](row, args.frames, reach)
        pictures = [Image.fromarray(draw(digits.images[which], centre, args.size, scale)) for centre in centres]
        folder = args.out / str(digits.target[which])
        folder.mkdir(parents=True, exist_ok=True)
        pictures[0].save(folder / f"{number:05d}.gif", save_all=True, append_images=pictures[1:], duration=FRAME_MS, loop=0)
    print(f"{args.count} films of {args.frames} frames are in {args.out}")


if __name__ == "__main__":
    main()
