"""The verbs `peek` and `bench-data` of the command line."""

from __future__ import annotations

import argparse

from stylegan_dist.arguments import CELLS, SEEDS, WORKERS, add_verb, path, places, real, whole
from stylegan_dist.config.knobs import MOST_IMAGES
from stylegan_dist.errors import EXIT_OK, InputError
from stylegan_dist.machine import available_cores
from stylegan_dist.ranges import Range

_MOST_COUNTS = 64

_PEEK_EXAMPLES = """\
examples:
  stylegan-dist peek shards/photos                          # 16 x 8 pictures in peek.png
  stylegan-dist peek shards/photos --seed 1 --out more.png  # others

Look at it before a long run: wrong crops, borders, turned or doubled pictures are learnt like everything else.
"""

_BENCH_EXAMPLES = """\
examples:
  stylegan-dist bench-data shards/photos                    # 0, 1, 2, 4, ... readers up to the number of cores
  stylegan-dist bench-data shards/photos --need 800         # how many readers feed a rank that trains 800 img/s?

read:    bytes of a sample from the disk, or from memory where the system has kept them
decode:  bytes to pixels, straight into the batch
collate: flips, labels and the rest; only told for 0 readers
Every number of readers is measured twice: cold, on the first pass, with the system's memory of the files dropped and a
cache of its own for remote shards; and warm, which is what prefetching leaves of it in training.
Rates beyond the number of cores are extrapolated and say so.
"""


def add_peek(subparsers) -> None:
    """Add the verb `peek` to the result of `ArgumentParser.add_subparsers`."""
    parser = add_verb(
        subparsers, "peek", _run_peek,
        help="a contact sheet of a shard set, as PNG", epilog=_PEEK_EXAMPLES,
        description="Draw samples from all over a shard set on one sheet.",
    )
    parser.add_argument("shards", metavar="SHARDS", type=places("SHARDS"), help="the folder or URL that holds index.json")
    parser.add_argument("--columns", type=whole("--columns", CELLS), default=16, help="of the sheet (default: %(default)s)")
    parser.add_argument("--rows", type=whole("--rows", CELLS), default=8, help="of the sheet (default: %(default)s)")
    parser.add_argument("--seed", type=whole("--seed", SEEDS), default=0, help="which samples (default: %(default)s)")
    parser.add_argument("--out", type=path("--out"), default="peek.png", metavar="PNG", help="(default: %(default)s)")


def add_bench_data(subparsers) -> None:
    """Add the verb `bench-data` to the result of `ArgumentParser.add_subparsers`."""
    parser = add_verb(
        subparsers, "bench-data", _run_bench_data,
        help="how fast a shard set is read and decoded here", epilog=_BENCH_EXAMPLES,
        description="Measure the stream of a shard set by stage and number of reader processes.",
    )
    parser.add_argument("shards", metavar="SHARDS", type=places("SHARDS"), help="the folder or URL that holds index.json")
    parser.add_argument("--workers", default=None, metavar="N,N,...",
                        help="numbers of reader processes (default: 0, 1, 2, 4, ... up to the number of cores)")
    parser.add_argument("--seconds", type=real("--seconds", Range(above=0, most=1_000_000)), default=5.0,
                        help="of each measurement (default: %(default)s)")
    parser.add_argument("--batch", type=whole("--batch", Range(1, MOST_IMAGES)), default=32,
                        help="images of a batch (default: %(default)s)")
    parser.add_argument("--folder", type=path("--folder"),
                        help="for the temporary caches of remote shards (default: the system's temporary folder)")
    parser.add_argument("--need", type=real("--need", Range(above=0, most=1e9)), metavar="IMG_PER_S",
                        help="tell how many readers feed this rate")


def _run_peek(args: argparse.Namespace) -> int:
    from stylegan_dist.tools.peek import peek

    for fault in peek(args.shards, args.out, args.columns, args.rows, args.seed):
        print(f"corrupt: {fault}")
    print(args.out)
    return EXIT_OK


def _run_bench_data(args: argparse.Namespace) -> int:
    from stylegan_dist.tools.bench_data import bench_data, workers_for

    cores = available_cores()
    count = whole("--workers", Range(0, WORKERS.most))
    counts = [count(part) for part in args.workers.split(",")] if args.workers else _usual_counts(cores)
    if len(counts) > _MOST_COUNTS:
        raise InputError(f"--workers names {len(counts)} numbers, more than {_MOST_COUNTS}")
    speeds = bench_data(args.shards, counts, args.seconds, args.batch, args.folder)
    print(f"{'readers':>7} {'cache':>6} {'samples/s':>10} {'read us':>9} {'decode us':>10} {'collate us':>11}")
    for speed in speeds:
        collate = "" if speed.collate_us is None else f"{speed.collate_us:.1f}"
        print(f"{speed.workers:>7} {'cold' if speed.cold else 'warm':>6} {speed.samples_per_s:>10.0f} {speed.read_us:>9.1f} "
              f"{speed.decode_us:>10.1f} {collate:>11}")
    if args.need:
        number = workers_for(args.need, speeds)
        if number is None:
            print("measure with at least one reader (--workers 0,1) to know how many are needed")
        else:
            known = "" if number in counts else f", extrapolated; this machine has {cores} cores"
            print(f"{args.need:g} img/s: data.workers={number}{known}")
    return EXIT_OK


def _usual_counts(cores: int) -> list[int]:
    return [0] + [2**power for power in range(cores.bit_length())]
