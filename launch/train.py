"""Entry for `accelerate launch launch/train.py PRESET key=value ...`; same as `stylegan-dist train`."""

import sys

from stylegan_dist.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
