"""The verb `import` of the command line."""

from __future__ import annotations

import argparse
from pathlib import Path

from stylegan_dist.arguments import MANY, add_verb, path, whole
from stylegan_dist.errors import EXIT_OK

_EXAMPLES = """\
examples:
  stylegan-dist import ffhq.pkl runs/ffhq
  stylegan-dist generate runs/ffhq --seeds 0-15 --out pictures
  stylegan-dist evaluate runs/ffhq --shards data/ffhq
"""


def add_import(verbs) -> None:
    """Add the verb `import` to the result of `ArgumentParser.add_subparsers`."""
    parser = add_verb(
        verbs, "import", _import,
        help="make a run from a checkpoint of another project", epilog=_EXAMPLES,
        description="Make the folder of a run from a file of StyleGAN2 and StyleGAN2-ADA (TensorFlow or PyTorch), stylegan3,\n"
        "R3GAN or rosinality's stylegan2-pytorch. Such files are pickles. They are read by a program of its own that runs\n"
        "nothing of them, and refuses what no network needs.",
    )
    parser.add_argument("file", metavar="FILE", type=path("FILE"), help="the .pkl or .pt file")
    parser.add_argument("out", metavar="OUT", type=path("OUT"), help="folder of the run; it must not exist")
    parser.add_argument("--nimg", type=whole("--nimg", MANY), metavar="N",
                        help="images that the networks have seen (default: as the file or its name says, or 1)")
    parser.add_argument("--table", action="store_true", help="list every tensor: the name here, and the one in the file")


def _import(args: argparse.Namespace) -> int:
    from stylegan_dist.importing.run import import_file

    imported = import_file(Path(args.file), Path(args.out), args.nimg)
    foreign, classes = imported.foreign, imported.foreign.classes
    print(f"{args.file}: {foreign.format}")
    print(f"{foreign.resolution} px, {foreign.channels} channel{'s' * (foreign.channels > 1)}, "
          + (f"{classes} classes" if classes else "unconditional")
          + "".join(f", {key} {value}" for key, value in foreign.settings.items()))
    print(f"{'':6} {'loaded':>7} {'renamed':>8} {'left out':>9} {'computed':>9} {'missing':>8}")
    for name, table in sorted(imported.tables.items()):
        print(f"{name:6} {len(table.loaded):>7} {len(table.renamed):>8} {len(table.left_out):>9} {len(table.filled):>9} {0:>8}")
        if args.table:
            for ours, theirs in table.loaded.items():
                print(f"  {ours} <- {theirs}")
            for theirs in table.left_out:
                print(f"  (no tensor here) <- {theirs}")
            for ours in table.filled:
                print(f"  {ours} <- (computed)")
    for note in foreign.notes:
        print(f"note: {note}")
    print(f"licence: {foreign.licence}")
    print(f"images seen: {imported.nimg:,} ({imported.counted})")
    print(args.out)
    return EXIT_OK
