"""Entry for `accelerate launch launch/label.py SHARDS ...`; same as `stylegan-dist label`."""

import sys

from stylegan_dist.cli import main

if __name__ == "__main__":
    sys.exit(main(["label", *sys.argv[1:]]))
