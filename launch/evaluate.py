"""Entry for `accelerate launch launch/evaluate.py RUN ...`; same as `stylegan-dist evaluate`."""

import sys

from stylegan_dist.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
