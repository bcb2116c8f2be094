"""The verb `train-features` of the command line."""

from __future__ import annotations

import argparse

from stylegan_dist.arguments import add_training, add_verb, path, places, training_of
from stylegan_dist.errors import EXIT_OK

_EXAMPLES = """\
examples:
  stylegan-dist train-features data/digits features/digits          # 50,000 images, a few minutes on 2 cores
  stylegan-dist train-features shards/spectra features/spectra --kimg 500 --device cuda
  stylegan-dist train-features data/clips features/motion --motion   # clips: tells ordered from shuffled, frozen, stuttering

When: the usual feature networks know photographs. They say little about digits, drawings, spectrograms or measurements, and
take no arrays and no 4 channels. A network that has learnt the classes of your own data looks at what tells your samples
apart. It needs labels: pack the data with --labels.

What it is: a small residual network. A tenth of the samples (10,000 at most, drawn by their numbers) is held out, and the
accuracy on them is told at the end. Far above chance (1 / classes): its features mean something. Near chance: the labels
cannot be seen in the samples, or train longer with --kimg.

What it is not: a judge of everything. It sees what helps to tell the classes apart, and may be blind to the rest, such as
noise in the background. Scores made with it compare generators of this data only, and are named after it (fd_own_1a2b3c4d).
Keep OUT: another training is another ruler. The same command on one machine makes the same files, to the last bit.
"""


def add_train_features(subparsers) -> None:
    """Add the verb `train-features` to the result of `ArgumentParser.add_subparsers`."""
    parser = add_verb(
        subparsers, "train-features", _run,
        help="train a network that compares samples of your own data", epilog=_EXAMPLES,
        description="Train a small classifier on the labels of a shard set. Its features measure how alike generated and real\n"
        "samples are, where networks for photographs cannot. Give OUT wherever a feature network is asked for.",
    )
    parser.add_argument("shards", metavar="SHARDS", type=places("SHARDS"), help="a shard set with labels, as of training")
    parser.add_argument("out", metavar="OUT", type=path("OUT"), help="new folder for features.safetensors and features.json")
    parser.add_argument("--motion", action="store_true",
                        help="of clips: learn to tell them from shuffled, frozen and stuttering ones; needs no labels")
    add_training(parser, "samples", 50, "the first weights, the order, and what is held out")


def _run(args: argparse.Namespace) -> int:
    from stylegan_dist.features.training import FeatureOptions, train_features

    record = train_features(args.shards, args.out, FeatureOptions(*training_of(args), args.motion))
    print(f"{args.out}: {100 * record.accuracy:.1f} % of {record.held_out} held-out samples are told right "
          f"({100 / record.classes:.1f} % by chance)")
    return EXIT_OK
