"""A recipe: the 1,797 handwritten digits of scikit-learn as a folder of images, for a first try in a minute.

    python shards/digits.py data/digits-png
    stylegan-dist pack data/digits-png data/digits --resolution 32 --channels 1 --labels folders

Writes OUT/{0..9}/NNNN.png: 8 x 8 pixels, grey, 8 bits. Running it again writes the same files again.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder for the images; made if it is not there")
    out = parser.parse_args().out
    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # [1797, 8, 8], values 0 to 16 -> 0 to 255
    for number, (image, label) in enumerate(zip(grey, digits.target, strict=True)):
        folder = out / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number:04d}.png")
    print(f"{len(grey)} digits are in {out}")


if __name__ == "__main__":
    main()
