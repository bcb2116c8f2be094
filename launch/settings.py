"""Where a run and its data will be, for launch/demo.sh: `run.dir` and `data.shards` of PRESET key=value ..., a line each."""

import sys

from stylegan_dist.config import load_config
from stylegan_dist.errors import EXIT_BAD_INPUT, InputError

if __name__ == "__main__":
    try:
        config = load_config(sys.argv[1], [argument for argument in sys.argv[2:] if not argument.startswith("-")])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    print(config.run.dir, config.data.shards, sep="\n")
