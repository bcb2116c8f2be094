"""The verbs `pack`, `index` and `verify` of the command line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields

from stylegan_dist.arguments import MANY, SEEDS, WORKERS, add_verb, path, real, whole, word
from stylegan_dist.data.index import read_index
from stylegan_dist.errors import EXIT_BAD_INPUT, EXIT_OK, InputError
from stylegan_dist.kinds import PACKINGS, Packing, TextOptions
from stylegan_dist.kinds.base import Options
from stylegan_dist.making.labels import MODES as LABEL_MODES
from stylegan_dist.making.pack import PackOptions, pack
from stylegan_dist.making.scan import index_shards
from stylegan_dist.making.sources import Listing, kind_of, list_source
from stylegan_dist.making.survey import ForeignArrays
from stylegan_dist.making.text_file import PYTHON_DOCS, open_text
from stylegan_dist.making.verify import verify
from stylegan_dist.ranges import Range
from stylegan_dist.records import shorten

_SHOWN = 50
_PACK_EXAMPLES = """\
examples:
  # a folder of photos, cropped to squares of 256 pixels
  stylegan-dist pack photos shards/photos --resolution 256

  # one class for each sub-folder: animals/cat/*.jpg, animals/dog/*.jpg
  stylegan-dist pack animals shards/animals --resolution 128 --labels folders

  # a zip in the layout of NVIDIA's dataset tool; its dataset.json gives the classes
  stylegan-dist pack cifar10.zip shards/cifar10 --resolution 32

  # WebDataset shards whose images have any size, with their classes (KEY.cls)
  stylegan-dist pack laion shards/laion --resolution 256

  # logos with transparency, kept whole
  stylegan-dist pack logos shards/logos --resolution 256 --channels 4 --fit pad

  # latents, each a .npy file [4, 32, 32] of float32: mean 0, standard deviation 1/2 in training, stored as float16
  stylegan-dist pack latents shards/latents --resolution 32 --normalise std --dtype float16

  # the latents of an autoencoder, for training on latents whose pictures are decoded
  stylegan-dist pack photos shards/latents --resolution 256 --encode encoders/photos --flips stored

  # spoken digits, 8 kHz: spectrograms of 64 bands and 64 frames; 7_jackson_0.wav is of class 7
  stylegan-dist pack recordings.tar shards/digits --resolution 64 --log-mel --labels names

  # the same with linear spectrograms of 128 bands, or with phases too
  stylegan-dist pack recordings.tar shards/digits --resolution 128 --form linear --labels names

  # clips of 16 frames from films and folders of frames, 12 frames a second
  stylegan-dist pack films shards/clips --video --resolution 64 --frames 16 --fps 12

  # lines of up to 16 letters, whole words, from Python's own documentation
  stylegan-dist pack --text python-docs shards/lines --length 16 --unit words --clean letters

  # on three machines that share the folders: one command on each, then the same without --part, which makes the index
  stylegan-dist pack photos shards/photos --resolution 256 --part 1/3
  stylegan-dist pack photos shards/photos --resolution 256

Interrupted? Run the same command again: it continues, and the result is the same to the byte.
"""

_INDEX_EXAMPLES = """\
examples:
  # tar files of img2dataset or any other WebDataset writer, in a folder; the index is written beside them
  stylegan-dist index data/laion

  # shards that stay where they are: only the index is written here
  stylegan-dist index 's3://bucket/photos/{00000..00127}.tar' data/photos
  stylegan-dist train launch/presets/auto.yaml data.shards=data/photos

Most images must be squares of one size, all of them PNG, JPEG or WebP; training converts the others as pack would. Or all
samples are arrays of one form, NPY or NPZ. Classes are taken from KEY.cls. Anything else: pack.
"""

_VERIFY_EXAMPLES = """\
examples:
  stylegan-dist verify shards/photos            # everything; decodes every sample
  stylegan-dist verify shards/photos --quick    # checksums, headers and labels only

Exit code 0: the set is sound. 2: the problems are listed, one a line.
"""


def add_pack(subparsers) -> None:
    """Add the verb `pack` to the result of `ArgumentParser.add_subparsers`."""
    parser = add_verb(
        subparsers, "pack", _run_pack,
        help="make a shard set from a folder, a zip or a tar of images, arrays, sounds or videos, or from text",
        epilog=_PACK_EXAMPLES,
        description="Bring all images, arrays, sounds or videos of a folder, a zip or a tar, or the lines of a text, into one "
                    "form and write them as WebDataset shards with an index, ready for training.",
    )
    parser.add_argument("source", metavar="SOURCE", type=path("SOURCE", url=True),
                        help="a folder (searched with its sub-folders), a zip or a tar; a folder or a pattern of tars, such as "
                        "WebDataset shards")
    parser.add_argument("out", metavar="OUT", type=path("OUT", url=True),
                        help="the folder for the shards; made if it is not there")

    common = parser.add_argument_group("samples")
    kinds = common.add_mutually_exclusive_group()
    kinds.add_argument("--arrays", action="store_const", dest="kind", const="arrays",
                       help="take the .npy and .npz files, all [C, H, W] or [H, W] of one form, of which training sees "
                            "(x - offset) / scale; found by itself where there is no image")
    kinds.add_argument("--log-mel", action="store_const", dest="kind", const="sounds",
                       help="take the sound files (WAV, FLAC, Ogg, MP3), of one sample rate, and make a log-mel spectrogram of "
                            "each, with as many bands and frames as --resolution says: what is longer than frames x hop is "
                            "cut off, what is shorter is followed by silence; --form makes other ones")
    kinds.add_argument("--video", action="store_const", dest="kind", const="videos",
                       help="cut clips of --frames frames from videos (mp4, webm, mov, ...; GIF, animated WebP) and from "
                            "folders whose pictures are frames")
    kinds.add_argument("--text", action="store_const", dest="kind", const="text",
                       help="SOURCE is a file of text in UTF-8, whose lines of at most --length symbols become samples; or "
                            f"{PYTHON_DOCS}, which is what Python's own help has to say")
    _add_options(parser, PACKINGS, common)

    content = parser.add_argument_group("labels and order")
    content.add_argument("--labels", default="auto", choices=LABEL_MODES,
                         help="folders: the first-level sub-folder is the class; names: what a file's name begins with, up to "
                              "the first _ or -, is; json: dataset.json at the top of "
                              "SOURCE, {\"labels\": [[\"name.png\", 3], ...]}; cls: KEY.cls beside KEY.jpg, as in "
                              "WebDataset; none: no classes; auto: dataset.json if it is there, else KEY.cls if these are, "
                              "else none (default auto)")
    content.add_argument("--no-shuffle", dest="shuffle", action="store_false",
                         help="keep the order of the names; by default the samples are mixed, so that every shard "
                              "holds all classes")
    content.add_argument("--seed", type=whole("--seed", SEEDS), default=0, help="of the mixing (default 0)")
    content.add_argument("--samples-per-shard", type=whole("--samples-per-shard", MANY), metavar="N",
                         help="default: about 64 MiB of pixels or values, but 256 to 4096 samples, and a multiple of 8 "
                              "shards where there are enough samples")

    running = parser.add_argument_group("running")
    running.add_argument("--workers", type=whole("--workers", WORKERS), metavar="N", help="processes (default: one a core)")
    running.add_argument("--max-skipped", type=whole("--max-skipped", Range(0, MANY.most)), metavar="N",
                         help="stop when more than N files cannot be read (default: 1 %% of the files, at least 1)")
    running.add_argument("--overwrite", action="store_true", help="replace a shard set that is already in OUT")
    running.add_argument("--part", type=_part, metavar="K/N",
                         help="pack shards K, K + N, K + 2 N, ... only, and make no index; N such commands, K from 1 to N, may "
                              "run at once on machines that share OUT, and the same command without --part ends the set")


def add_index(subparsers) -> None:
    """Add the verb `index` to the result of `ArgumentParser.add_subparsers`."""
    parser = add_verb(
        subparsers, "index", _run_index,
        help="make an index for WebDataset shards that other tools made", epilog=_INDEX_EXAMPLES,
        description="Find every sample of a set of tar files by its headers, and write index.json and the offsets that "
                    "training reads. The shards stay as they are.",
    )
    parser.add_argument("shards", metavar="SHARDS", type=path("SHARDS", url=True),
                        help="a folder, a URL (s3://, gs://, http://, hf://, ...), or a pattern "
                                                         "of tar files with braces and wildcards")
    parser.add_argument("out", metavar="FOLDER", type=path("FOLDER", url=True), nargs="?",
                        help="the folder for the index; default: that of the shards")
    parser.add_argument("--checksums", action="store_true",
                        help="store the SHA-256 of local shards, too, which are read whole for it: verify compares with it. "
                             "That of shards at URLs is stored anyway, and compared whenever one is fetched; with --checksums "
                             "it counts only once two readings agree on it, or the storage confirms the first (MD5 of S3)")
    parser.add_argument("--overwrite", action="store_true", help="replace an index that is already there")
    parser.add_argument("--workers", type=whole("--workers", WORKERS), metavar="N", help="processes (default: one a core)")
    _add_options(parser, {"arrays": ForeignArrays})


def add_verify(subparsers) -> None:
    """Add the verb `verify` to the result of `ArgumentParser.add_subparsers`."""
    parser = add_verb(
        subparsers, "verify", _run_verify,
        help="check a shard set: files, checksums, samples, labels", epilog=_VERIFY_EXAMPLES,
        description="Check every file of a shard set against its index (sizes, SHA-256 where the index has it, headers, "
                    "offsets, labels) and decode every sample.",
    )
    parser.add_argument("folder", metavar="FOLDER", type=path("FOLDER", url=True),
                        help="the folder or URL that holds index.json")
    parser.add_argument("--quick", action="store_true", help="do not decode the samples")
    parser.add_argument("--workers", type=whole("--workers", WORKERS), metavar="N", help="processes (default: one a core)")


def _run_pack(args: argparse.Namespace) -> int:
    if args.kind is None and hasattr(args, "length"):
        args.kind = "text"
    listing = None if args.kind == "text" else list_source(args.source)
    packing = _packing(args, listing)
    if isinstance(packing, TextOptions):
        packing.check()
        listing, packing = open_text(args.source, packing, args.seed)
    pack(args.source, args.out, PackOptions(
        packing=packing, labels=args.labels, shuffle=args.shuffle, seed=args.seed,
        samples_per_shard=args.samples_per_shard, max_skipped=args.max_skipped, workers=args.workers,
        overwrite=args.overwrite, part=args.part,
    ), listing)
    return EXIT_OK


def _part(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise InputError(f"--part must be K/N with K from 1 to N, such as 2/3, not {shorten(text)}")
    return int(found[1]), int(found[2])


def _packing(args: argparse.Namespace, listing: Listing | None) -> Packing:
    """The options of the kind of samples that was asked for, or that the source holds."""
    kind = args.kind or ("latents" if hasattr(args, "encode") else "sounds" if hasattr(args, "form") else
                         kind_of(listing) if listing else "images")
    if kind == "sounds" and args.kind is None and not hasattr(args, "form"):
        raise InputError(f"{args.source} holds sound files: --log-mel makes spectrograms of them, and --form linear or phase "
                         "others")
    if kind == "videos" and args.kind is None:
        raise InputError(f"{args.source} holds videos: --video cuts clips from them")
    wanted = {field.name for field in fields(PACKINGS[kind]) if field.metadata}
    given = {field.name: getattr(args, field.name) for packing in PACKINGS.values() for field in fields(packing)
             if hasattr(args, field.name)}
    if foreign := sorted(given.keys() - wanted):
        owners = [name for name, packing in PACKINGS.items() if foreign[0] in {one.name for one in fields(packing)}]
        how = " (--encode ENCODER)" if owners == ["latents"] else ""
        raise InputError(f"--{foreign[0].replace('_', '-')} has no meaning for {kind}, only for {', '.join(owners)}{how}: "
                         "leave it out")
    for field in fields(PACKINGS[kind]):
        if field.metadata and field.default is MISSING and field.name not in given:
            raise InputError(f"--{field.name.replace('_', '-')} is needed for {kind}: {field.metadata['text']}")
    return PACKINGS[kind](**given)


def _add_options(parser: argparse.ArgumentParser, kinds: Mapping[str, type[Options]], common=None) -> None:
    """The options of kinds of samples, each in the group of its kind, or in `common` if several kinds have it.

    One that is not given leaves no trace: so it is known what was asked for, and the defaults stand in one place.
    """
    found: dict[str, dict[str, Field]] = {}
    for name, options in kinds.items():
        for field in fields(options):
            if field.metadata:
                found.setdefault(field.name, {})[name] = field
    groups = {name: parser.add_argument_group(name) for name in kinds}
    for name, by_kind in found.items():
        flag, first = f"--{name.replace('_', '-')}", next(iter(by_kind.values()))
        texts = {name: field.metadata["text"] + (f" (default {field.default})" * (field.default not in (None, MISSING)))
                 for name, field in by_kind.items()}
        alike = len(set(texts.values())) == 1
        choices = list(dict.fromkeys(choice for field in by_kind.values() for choice in field.metadata["choices"]))
        number, span = first.metadata["number"], first.metadata["span"]
        if number is None:
            kind: Callable = word(flag)
        elif number is int:
            choices.sort()
            spans = [one for field in by_kind.values() if (one := field.metadata["span"])]  # of any kind; each checks its own
            kind = whole(flag, Range(min([*choices[:1], *(one.least or 0 for one in spans)]),
                                     max([*choices[-1:], *(one.most or 0 for one in spans)])))
        else:
            kind = real(flag, span)
        shown = first.metadata["metavar"] or "{" + ",".join(map(str, choices)) + "}"
        group = common if common and len(by_kind) > 1 else groups[next(iter(by_kind))]
        told = texts.popitem()[1] if alike else "; ".join(f"of {name}: {text}" for name, text in texts.items())
        group.add_argument(flag, type=kind, choices=None if number else choices or None, metavar=shown,
                           nargs=first.metadata["nargs"], default=argparse.SUPPRESS, help=told,
                           required=first.default is MISSING and len(by_kind) == len(kinds))


def _run_index(args: argparse.Namespace) -> int:
    arrays = ForeignArrays(**{one.name: getattr(args, one.name) for one in fields(ForeignArrays) if hasattr(args, one.name)})
    index = index_shards(args.shards, args.out, checksums=args.checksums, overwrite=args.overwrite, workers=args.workers,
                         arrays=arrays)
    classes = f", {index.num_classes} classes" if index.num_classes else ""
    print(f"{index.num_samples} {index.kind.noun} of {index.resolution} pixels{classes} in {len(index.shards)} shards")
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
    if unknown := sum(not shard.sha256 for shard in index.shards):
        print(f"{unknown} of {len(index.shards)} shards have no SHA-256 in the index, so bytes that differ but decode were not "
              "found; stylegan-dist index --checksums stores it")
    return EXIT_OK
