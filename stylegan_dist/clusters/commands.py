"""The verb `label` of the command line."""

from __future__ import annotations

import argparse
from pathlib import Path

from stylegan_dist.arguments import MANY, SEEDS, add_verb, add_which, path, whole, word
from stylegan_dist.errors import EXIT_OK, InputError
from stylegan_dist.making.labels import MAX_CLASSES
from stylegan_dist.ranges import Range

_SHOWN = 20  # sizes of clusters
_EXAMPLES = """\
examples:
  stylegan-dist label data/photos --clusters 100                # makes data/photos-100-clusters
  stylegan-dist label data/photos --clusters 100 --dry-run      # how large are they?
  stylegan-dist label data/photos --clusters 50 --run runs/photos --out data/photos-50
  stylegan-dist train launch/presets/auto.yaml data.shards=data/photos-100-clusters run.dir=runs/photos-100
  accelerate launch --config_file launch/accelerate/8gpu.yaml launch/label.py data/photos --clusters 100

No image is copied: the new set refers to the shards of the old one, which stay where and as they are. Cluster 0 is the largest.
Look at clusters.png before a long run: a row for each cluster, with the samples that are nearest to its centre.
"""


def add_label(verbs) -> None:
    """Add the verb `label` to the result of `ArgumentParser.add_subparsers`."""
    parser = add_verb(
        verbs, "label", _run,
        help="make labels for a shard set without any: clusters of features", epilog=_EXAMPLES,
        description="Find K clusters of samples that look alike to a network (k-means), and make a shard set with these as\n"
        "classes. A run on it is class-conditional.",
    )
    parser.add_argument("shards", metavar="SHARDS", type=path("SHARDS", url=True), help="folder or URL of one shard set")
    parser.add_argument("--clusters", type=whole("--clusters", Range(1, MAX_CLASSES)), required=True, metavar="K",
                        help="how many classes to make")
    parser.add_argument("--out", type=path("--out"), metavar="FOLDER",
                        help="new folder of the new set (default: SHARDS-K-clusters)")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--features", type=word("--features"), metavar="NETWORK",
                        help="efficientnet-lite0, inception, dinov2-s, dinov2-l, clip, or the folder of one made with "
                        "train-features (default: efficientnet-lite0)")
    source.add_argument("--run", dest="run_dir", type=path("--run"), metavar="RUN",
                        help="what the discriminator of a run on this data sees in front of its last layer")
    add_which(parser)
    parser.add_argument("--sample", type=whole("--sample", MANY), default=50_000, metavar="N",
                        help="samples that decide the clusters, at most; all get labels (default: %(default)s)")
    parser.add_argument("--seed", type=whole("--seed", SEEDS), default=0, help="of the first centres (default: %(default)s)")
    parser.add_argument("--replace", action="store_true", help="take data that has labels, and make a set with others")
    parser.add_argument("--dry-run", action="store_true", help="tell the sizes in the sample, and write nothing")
    parser.add_argument("--device", type=word("--device"), default="auto", help="cpu or cuda (default: cuda if there is one)")


def _run(args: argparse.Namespace) -> int:
    from stylegan_dist.clusters.discriminator import discriminator_features
    from stylegan_dist.clusters.label import SHEET, LabelOptions, label
    from stylegan_dist.config.schema import RunConfig
    from stylegan_dist.data.storage import is_remote
    from stylegan_dist.engine import Engine
    from stylegan_dist.features.network import FeatureNetwork
    from stylegan_dist.features.registry import DEFAULT, open_features

    if args.which and not args.run_dir:
        raise InputError("--nimg and --best choose a checkpoint of a run: give --run, too")
    if args.out is None and is_remote(args.shards):
        raise InputError(f"say where the set with labels shall be: stylegan-dist label {args.shards} --out FOLDER ...")
    ranks = Engine(RunConfig(device=args.device))

    def network() -> FeatureNetwork:
        if args.run_dir:
            return discriminator_features(Path(args.run_dir), ranks.device, args.which or "newest")
        return open_features(args.features or DEFAULT, ranks.device)

    out = None if args.dry_run else args.out or f"{args.shards.rstrip('/')}-{args.clusters}-clusters"
    found = label(args.shards, out, network, LabelOptions(args.clusters, args.sample, args.seed, args.replace), ranks)
    if found:
        sizes = found.sizes.tolist()
        more = f", ... {sizes[-1]:,}" if len(sizes) > _SHOWN else ""
        of = f"of {found.origin['sample']:,} samples:" if out is None else f"{out}:"
        print(f"{of} {len(sizes)} clusters of {', '.join(f'{size:,}' for size in sizes[:_SHOWN])}{more} samples")
        print(f"they explain {max(0.0, found.explained):.0%} of the variance of the features ({found.origin['features']}); "
              f"median size {sorted(sizes)[len(sizes) // 2]:,}, {sizes.count(0)} empty")
        if out is not None:
            print(f"look at {Path(out) / SHEET}")
    ranks.close()
    return EXIT_OK
