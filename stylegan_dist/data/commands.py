"""The verbs `pack`, `index` and `verify` of the command line."""

from __future__ import annotations

import argparse

from stylegan_dist.data.images import ENCODINGS, FILTERS, FITS, MODES, ImageOptions
from stylegan_dist.data.index import RESOLUTIONS, read_index
from stylegan_dist.data.pack import PackOptions, pack
from stylegan_dist.data.scan import index_shards
from stylegan_dist.data.sources import LABEL_MODES
from stylegan_dist.data.verify import verify
from stylegan_dist.errors import EXIT_BAD_INPUT, EXIT_OK

_SHOWN = 50

_PACK_EXAMPLES = """\
examples:
  # a folder of photos, cropped to squares of 256 pixels
  stylegan-dist pack photos shards/photos --resolution 256

  # one class for each sub-folder: animals/cat/*.jpg, animals/dog/*.jpg
  stylegan-dist pack animals shards/animals --resolution 128 --labels folders

  # a zip in the layout of NVIDIA's dataset tool; its dataset.json gives the classes
  stylegan-dist pack cifar10.zip shards/cifar10 --resolution 32

  # logos with transparency, kept whole
  stylegan-dist pack logos shards/logos --resolution 256 --channels 4 --fit pad

Interrupted? Run the same command again: it continues, and the result is the same to the byte.
"""

_INDEX_EXAMPLES = """\
examples:
  # tar files of img2dataset or any other WebDataset writer, in a folder; the index is written beside them
  stylegan-dist index data/laion

  # shards that stay where they are: only the index is written here
  stylegan-dist index 's3://bucket/photos/{00000..00127}.tar' data/photos
  stylegan-dist train launch/presets/auto.yaml data.shards=data/photos

The images must be squares of one size, PNG, JPEG or WebP; classes are taken from KEY.cls. Anything else: pack.
"""

_VERIFY_EXAMPLES = """\
examples:
  stylegan-dist verify shards/photos            # everything; decodes every image
  stylegan-dist verify shards/photos --quick    # checksums, headers and labels only

Exit code 0: the set is sound. 2: the problems are listed, one a line.
"""


def add_pack(subparsers) -> None:
    """Add the verb `pack` to the result of `ArgumentParser.add_subparsers`."""
    parser = subparsers.add_parser(
        "pack", help="make a shard set from a folder or a zip of images", epilog=_PACK_EXAMPLES,
        description="Bring all images of a folder or a zip into one form and write them as WebDataset shards "
                    "with an index, ready for training.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_run_pack)
    parser.add_argument("source", metavar="SOURCE", help="a folder (searched with its sub-folders) or a zip of images")
    parser.add_argument("out", metavar="OUT", help="the folder for the shards; made if it is not there")

    images = parser.add_argument_group("images")
    images.add_argument("--resolution", type=int, required=True, metavar="PIXELS",
                        help=f"side of the square images: {', '.join(map(str, RESOLUTIONS))}")
    images.add_argument("--channels", type=int, default=3, choices=list(MODES),
                        help="1 grey, 3 colour, 4 colour with transparency (default 3)")
    images.add_argument("--fit", default="crop", choices=FITS,
                        help="crop: the largest square from the centre; pad: the whole image with borders "
                             "(default crop)")
    images.add_argument("--filter", default="lanczos", choices=list(FILTERS),
                        help="how pixels are averaged: lanczos is sharper, box keeps hard edges free of ringing "
                             "(default lanczos)")
    images.add_argument("--background", default="white", metavar="COLOUR",
                        help="a name or #rrggbb: below transparent pixels and in the borders of --fit pad; with "
                             "4 channels both stay transparent (default white)")
    images.add_argument("--encoding", default="png", choices=list(ENCODINGS),
                        help="png: lossless; webp: lossless, smaller, slower to write; jpg: smallest, and the loss "
                             "is learnt by the network (default png)")
    images.add_argument("--quality", type=int, default=95, metavar="1..100", help="of jpg (default 95)")

    content = parser.add_argument_group("labels and order")
    content.add_argument("--labels", default="auto", choices=LABEL_MODES,
                         help="folders: the first-level sub-folder is the class; json: dataset.json at the top of "
                              "SOURCE, {\"labels\": [[\"name.png\", 3], ...]}; none: no classes; auto: dataset.json "
                              "if it is there, else none (default auto)")
    content.add_argument("--no-shuffle", dest="shuffle", action="store_false",
                         help="keep the order of the names; by default the images are mixed, so that every shard "
                              "holds all classes")
    content.add_argument("--seed", type=int, default=0, help="of the mixing (default 0)")
    content.add_argument("--samples-per-shard", type=int, metavar="N",
                         help="default: about 64 MiB of pixels, but 256 to 4096 images, and a multiple of 8 shards "
                              "where there are enough images")

    running = parser.add_argument_group("running")
    running.add_argument("--workers", type=int, metavar="N", help="processes (default: one a core)")
    running.add_argument("--max-skipped", type=int, metavar="N",
                         help="stop when more than N files cannot be read (default: 1 %% of the files, at least 1)")
    running.add_argument("--overwrite", action="store_true", help="replace a shard set that is already in OUT")


def add_index(subparsers) -> None:
    """Add the verb `index` to the result of `ArgumentParser.add_subparsers`."""
    parser = subparsers.add_parser(
        "index", help="make an index for WebDataset shards that other tools made", epilog=_INDEX_EXAMPLES,
        description="Find every image of a set of tar files by its headers, and write index.json and the offsets that "
                    "training reads. The shards stay as they are.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_run_index)
    parser.add_argument("shards", metavar="SHARDS", help="a folder, a URL (s3://, gs://, http://, hf://, ...), or a pattern "
                                                         "of tar files with braces and wildcards")
    parser.add_argument("out", metavar="FOLDER", nargs="?", help="the folder for the index; default: that of the shards")
    parser.add_argument("--checksums", action="store_true",
                        help="read local shards whole and store their SHA-256, which verify and caches check (those of URLs "
                             "are read whole anyway)")
    parser.add_argument("--overwrite", action="store_true", help="replace an index that is already there")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one a core)")


def add_verify(subparsers) -> None:
    """Add the verb `verify` to the result of `ArgumentParser.add_subparsers`."""
    parser = subparsers.add_parser(
        "verify", help="check a shard set: files, checksums, images, labels", epilog=_VERIFY_EXAMPLES,
        description="Check every file of a shard set against its index and decode every image.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_run_verify)
    parser.add_argument("folder", metavar="FOLDER", help="the folder or URL that holds index.json")
    parser.add_argument("--quick", action="store_true", help="do not decode the images")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one a core)")


def _run_pack(args: argparse.Namespace) -> int:
    image = ImageOptions(
        resolution=args.resolution, channels=args.channels, fit=args.fit, filter=args.filter,
        background=args.background, encoding=args.encoding, quality=args.quality,
    )
    pack(args.source, args.out, PackOptions(
        image=image, labels=args.labels, shuffle=args.shuffle, seed=args.seed,
        samples_per_shard=args.samples_per_shard, max_skipped=args.max_skipped, workers=args.workers,
        overwrite=args.overwrite,
    ))
    return EXIT_OK


def _run_index(args: argparse.Namespace) -> int:
    index = index_shards(args.shards, args.out, checksums=args.checksums, overwrite=args.overwrite, workers=args.workers)
    classes = f", {index.num_classes} classes" if index.num_classes else ""
    print(f"{index.num_samples} images of {index.resolution} pixels{classes} in {len(index.shards)} shards")
    return EXIT_OK


def _run_verify(args: argparse.Namespace) -> int:
    problems = verify(args.folder, deep=not args.quick, workers=args.workers)
    for problem in problems[:_SHOWN]:
        print(problem)
    if len(problems) > _SHOWN:
        print(f"... and {len(problems) - _SHOWN} more problems")
    if problems:
        return EXIT_BAD_INPUT
    index = read_index(args.folder)
    print(f"{args.folder}: {index.num_samples} samples in {len(index.shards)} shards, all sound")
    return EXIT_OK
