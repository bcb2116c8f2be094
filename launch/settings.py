"""What scripts must know of [PRESET] key=value ...: `run.dir`, `data.shards` and `run.device`, a line each."""

import sys

from stylegan_dist.config import load_config
from stylegan_dist.errors import EXIT_BAD_INPUT, InputError

if __name__ == "__main__":
    try:
        arguments = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
        preset = arguments.pop(0) if arguments and "=" not in arguments[0] else None
        config = load_config(preset, arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    print(config.run.dir, config.data.shards, config.run.device, sep="\n")
