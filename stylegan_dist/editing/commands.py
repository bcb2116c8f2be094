"""The verb `edit` and what it does."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stylegan_dist.arguments import MANY, add_verb, add_which, path, real, whole, word
from stylegan_dist.errors import EXIT_OK, InputError
from stylegan_dist.ranges import Range
from stylegan_dist.records import shorten

_EXAMPLES = """\
examples:
  stylegan-dist edit find runs/faces age.safetensors --method sefa --layers 0-5    # directions, and a sheet of them
  stylegan-dist edit apply runs/faces --directions age.safetensors --number 2 --seeds 0-7
  stylegan-dist edit apply runs/faces --directions age.safetensors --latents projections/me.safetensors
  stylegan-dist edit mix runs/faces --rows 0-3 --columns 10-15 --layers 0-3
  stylegan-dist edit walk runs/faces --seeds 1,5,9 --out walk.mp4
  stylegan-dist edit truncate runs/faces --seeds 0-3
  stylegan-dist edit layers runs/faces                                              # what each layer changes
  stylegan-dist edit blend runs/faces runs/cartoons runs/toons --at 16              # a run of both

`stylegan-dist edit ACTION --help` shows the options of an action. Layers are the places of W+, 0 the coarsest.
"""
_SEEDS = Range(1, 10_000)
_PSI = Range(-1000, 1000)


def add_edit(verbs: Any) -> None:
    """Add the verb `edit` to the result of `ArgumentParser.add_subparsers`."""
    parser = add_verb(verbs, "edit", _explain, help="directions, mixing, walks, sheets of layers, blended generators",
                      description="Edit what the averaged generator of a run makes.", epilog=_EXAMPLES)
    parser.set_defaults(parser=parser)
    actions = parser.add_subparsers(title="actions", metavar="ACTION")
    _add_find(actions)
    _add_apply(actions)
    _add_mix(actions)
    _add_walk(actions)
    _add_truncate(actions)
    _add_layers(actions)
    _add_blend(actions)


def _explain(args: argparse.Namespace) -> int:
    args.parser.print_help()
    return EXIT_OK


def _action(actions: Any, name: str, run: Any, text: str, out: str = "") -> argparse.ArgumentParser:
    parser = add_verb(actions, name, run, help=text, description=text[:1].upper() + text[1:] + ".")
    parser.add_argument("run_dir", metavar="RUN", type=path("RUN"), help="folder of the run")
    add_which(parser)
    parser.add_argument("--device", type=word("--device"), help="cpu or cuda (default: cuda if there is one)")
    if out:
        parser.add_argument("--out", type=path("--out"), default=out, help="(default: %(default)s)")
    return parser


def _add_points(parser: argparse.ArgumentParser, default: str) -> None:
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--seeds", default=default, help="as of generate (default: %(default)s)")
    source.add_argument("--latents", nargs="+", type=path("--latents"), metavar="FILE", help="files of stylegan-dist project")
    _add_drawing(parser)


def _add_drawing(parser: argparse.ArgumentParser, truncates: bool = True) -> None:
    parser.add_argument("--class", dest="label", type=whole("--class", Range(0, MANY.most)), metavar="C",
                        help="of seeds (default: all in turn)")
    if truncates:
        parser.add_argument("--trunc", type=real("--trunc", _PSI), default=1.0, metavar="PSI", help="of seeds (default: 1)")


def _add_find(actions: Any) -> None:
    parser = _action(actions, "find", _find, "find directions in W, without labels, and draw a sheet of them beside the file")
    parser.add_argument("file", metavar="FILE", type=path("FILE"), help="to write, safetensors")
    parser.add_argument("--method", choices=["sefa", "ganspace"], default="sefa",
                        help="sefa: from the weights (Shen and Zhou 2021); ganspace: principal components of w (Härkönen et "
                        "al. 2020) (default: %(default)s)")
    parser.add_argument("--layers", default="all", help="analysed and moved, for example 0-5 (default: %(default)s)")
    parser.add_argument("--count", type=whole("--count", Range(1, 512)), default=10,
                        help="of directions (default: %(default)s)")
    parser.add_argument("--seed", type=whole("--seed", Range(0, MANY.most)), default=0,
                        help="of the sample on the sheet (default: %(default)s)")
    _add_drawing(parser)


def _add_apply(actions: Any) -> None:
    parser = _action(actions, "apply", _apply, "move samples along a direction, by several strengths", "edit.png")
    parser.add_argument("--directions", required=True, type=path("--directions"), metavar="FILE", help="of edit find")
    parser.add_argument("--number", type=whole("--number", Range(0, 511)), default=0,
                        help="of the direction (default: %(default)s)")
    parser.add_argument("--strengths", default="-3,-2,-1,0,1,2,3",
                        help="in standard deviations of w along the direction; if the first is negative, as --strengths=-2,2 "
                        "(default: %(default)s)")
    parser.add_argument("--layers", help="that are moved (default: those of FILE)")
    _add_points(parser, "0-5")


def _add_mix(actions: Any) -> None:
    parser = _action(actions, "mix", _mix, "give the samples of rows the styles of columns in some layers", "mix.png")
    parser.add_argument("--rows", default="0-3", help="seeds (default: %(default)s)")
    parser.add_argument("--columns", default="10-15", help="seeds (default: %(default)s)")
    parser.add_argument("--layers", help="taken from columns (default: the coarser half)")
    _add_drawing(parser)


def _add_walk(actions: Any) -> None:
    parser = _action(actions, "walk", _walk, "film a closed walk through samples; the end joins the start without a jump",
                     "walk.mp4")
    parser.add_argument("--frames", type=whole("--frames", Range(2, 100_000)), default=60,
                        help="from each sample to the next (default: %(default)s)")
    parser.add_argument("--fps", type=whole("--fps", Range(1, 100)), default=30, help="(default: %(default)s)")
    _add_points(parser, "0-3")


def _add_truncate(actions: Any) -> None:
    parser = _action(actions, "truncate", _truncate, "draw seeds under several truncations", "truncation.png")
    parser.add_argument("--psis", default="0,0.25,0.5,0.7,1,1.25", help="(default: %(default)s)")
    parser.add_argument("--seeds", default="0-3", help="as of generate (default: %(default)s)")
    _add_drawing(parser, truncates=False)


def _add_layers(actions: Any) -> None:
    parser = _action(actions, "layers", _layers, "show what each layer changes: a sample takes the style of the next in one",
                     "layers.png")
    _add_points(parser, "0-3")


def _add_blend(actions: Any) -> None:
    parser = add_verb(actions, "blend", _blend, help="make a run of two related ones: coarse stages of A, fine stages of B",
                      description="Make a run whose averaged generator has the stages up to a resolution of A and the\n"
                      "others of B. B must come from A, or A from B, by transfer (run.init_from). Shapes are those\n"
                      "of A, texture and colour those of B.")
    parser.add_argument("run_dir", metavar="A", type=path("A"), help="folder of the run with the coarse stages")
    parser.add_argument("fine", metavar="B", type=path("B"), help="folder of the run with the fine stages")
    parser.add_argument("out", metavar="OUT", type=path("OUT"), help="new folder")
    parser.add_argument("--at", type=whole("--at", Range(4, 4096)), required=True, metavar="R", help="largest resolution of A")
    parser.add_argument("--width", type=real("--width", Range(0, 100)), default=0.0,
                        help="of the transition, in octaves; 0: a hard switch (default: %(default)s)")


def _numbers(text: str, name: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(number in _PSI for number in numbers):
        raise InputError(f"{name} {shorten(text)} is no list of numbers: write for example -2,0,2 as {name}=-2,0,2")
    return numbers


def _opened(args: argparse.Namespace) -> Any:
    from stylegan_dist.editing.points import require_w
    from stylegan_dist.latents.trained import open_trained

    trained = open_trained(args.run_dir, args.device, args.which)
    require_w(trained)
    return trained


def _seeds(text: str, name: str) -> list[int]:
    from stylegan_dist.tools.generate import parse_seeds

    seeds = parse_seeds(text)
    if len(seeds) not in _SEEDS:
        raise InputError(f"{name} {shorten(text)}: at most {_SEEDS.most} fit here")
    return seeds


def _count(args: argparse.Namespace, least: int = 1) -> int:
    """How many samples are given. Raises InputError where these are fewer than `least`."""
    count = len(args.latents or _seeds(args.seeds, "--seeds"))
    if count < least:
        raise InputError(f"this needs {least} samples or more: give more --seeds or --latents")
    return count


def _points(trained: Any, args: argparse.Namespace) -> list:
    from stylegan_dist.editing.points import points_of_files, points_of_seeds

    if args.latents:
        if args.label is not None or args.trunc != 1:
            raise InputError("--class and --trunc are of --seeds: a file of latents has its own class, and is drawn as it is")
        return points_of_files(trained, args.latents)
    return points_of_seeds(trained, _seeds(args.seeds, "--seeds"), args.label, args.trunc)


def _bar(total: int, unit: str = "img") -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc="edit", unit=unit)


def _find(args: argparse.Namespace) -> int:
    from stylegan_dist.editing.directions import DRAWS, ganspace, parse_layers, save_directions, sefa
    from stylegan_dist.editing.points import points_of_seeds
    from stylegan_dist.editing.sheets import directions_sheet

    file = Path(args.file)
    if file.suffix != ".safetensors":  # its sheet is beside it
        raise InputError(f"FILE {file}: directions are written as .safetensors")
    trained = _opened(args)
    trained.check_class(args.label)
    layers = parse_layers(args.layers, trained.generator.num_ws)
    if args.method == "sefa":
        found = sefa(trained, layers, args.count, args.label)
    else:
        with _bar(DRAWS, "w") as bar:
            found = ganspace(trained, layers, args.count, args.label, bar.update)
    strengths, picture = (-3.0, -1.5, 0.0, 1.5, 3.0), file.with_suffix(".png")
    _check_sheet(trained, len(found.vectors) * len(strengths), str(picture))
    (point,) = points_of_seeds(trained, [args.seed], args.label, args.trunc)
    with _bar(len(found.vectors) * len(strengths)) as bar:
        sheet = directions_sheet(trained, point, found, strengths, bar.update)
    with _writing(file):
        save_directions(file, found)
        sheet.save(picture)
    print(f"{file}: {len(found.vectors)} directions by {args.method}; {picture} shows them, by -3 to 3 standard deviations")
    return EXIT_OK


def _apply(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from stylegan_dist.editing.directions import load_directions, parse_layers
    from stylegan_dist.editing.sheets import strengths_sheet

    trained, strengths = _opened(args), _numbers(args.strengths, "--strengths")
    directions = load_directions(args.directions, trained)
    if args.number >= len(directions.vectors):
        raise InputError(f"--number {args.number}: {args.directions} has the directions 0 to {len(directions.vectors) - 1}")
    if args.layers:
        layers = parse_layers(args.layers, trained.generator.num_ws)
        directions = replace(directions, facts=replace(directions.facts, layers=layers))
    _check_sheet(trained, _count(args) * len(strengths), args.out)
    points = _points(trained, args)
    with _bar(len(points) * len(strengths)) as bar:
        sheet = strengths_sheet(trained, points, directions, args.number, strengths, bar.update)
    return _saved(sheet, args.out)


def _mix(args: argparse.Namespace) -> int:
    from stylegan_dist.editing.directions import parse_layers
    from stylegan_dist.editing.points import points_of_seeds
    from stylegan_dist.editing.sheets import mixing_sheet

    trained = _opened(args)
    count = trained.generator.num_ws
    layers = parse_layers(args.layers, count) if args.layers else tuple(range(count // 2))
    seeds = _seeds(args.rows, "--rows"), _seeds(args.columns, "--columns")
    _check_sheet(trained, (len(seeds[0]) + 1) * (len(seeds[1]) + 1), args.out)
    rows, columns = (points_of_seeds(trained, some, args.label, args.trunc) for some in seeds)
    with _bar(len(rows) * len(columns)) as bar:
        sheet = mixing_sheet(trained, rows, columns, layers, bar.update)
    return _saved(sheet, args.out)


def _walk(args: argparse.Namespace) -> int:
    from dataclasses import replace

    import torch

    from stylegan_dist.editing.points import draw
    from stylegan_dist.editing.walks import between, check_film, closed_spline, save_film

    out, trained, count = Path(args.out), _opened(args), _count(args, 2) * args.frames
    check_film(out, count, trained.kind.shown_side(trained.shape.resolution))
    points = _points(trained, args)
    with _bar(count, "frame") as bar, _writing(out):
        def frames() -> Any:
            for number, ws in enumerate(closed_spline(torch.stack([point.ws for point in points]), args.frames)):
                first, part = divmod(number, args.frames)
                one, two = points[first], points[(first + 1) % len(points)]
                maps = between(trained.generator, one.maps, two.maps, part / args.frames)
                yield draw(trained, replace(one, ws=ws, maps=maps))
                bar.update()

        save_film(out, frames(), args.fps)
    print(f"{out}: {count} frames, {count / args.fps:.1f} s")
    return EXIT_OK


def _truncate(args: argparse.Namespace) -> int:
    from stylegan_dist.editing.points import points_of_seeds
    from stylegan_dist.editing.sheets import truncation_sheet

    trained, psis, seeds = _opened(args), _numbers(args.psis, "--psis"), _seeds(args.seeds, "--seeds")
    _check_sheet(trained, len(seeds) * len(psis), args.out)
    rows = [[points_of_seeds(trained, [seed], args.label, psi)[0] for psi in psis] for seed in seeds]
    with _bar(len(rows) * len(psis)) as bar:
        sheet = truncation_sheet(trained, rows, psis, bar.update)
    return _saved(sheet, args.out)


def _layers(args: argparse.Namespace) -> int:
    from stylegan_dist.editing.sheets import layers_sheet

    trained = _opened(args)
    _check_sheet(trained, 2 * _count(args, 2) * trained.generator.num_ws, args.out)
    points = _points(trained, args)
    with _bar(len(points) * trained.generator.num_ws) as bar:
        sheet, changes = layers_sheet(trained, points, bar.update)
    for layer, change in enumerate(changes.mean(1).tolist()):
        print(f"layer {layer:2}  changes {change:6.2f} grey levels (root mean square)")
    return _saved(sheet, args.out)


def _blend(args: argparse.Namespace) -> int:
    from stylegan_dist.editing.blending import LEAST_CORRELATION, blend, correlation
    from stylegan_dist.latents.derived import check_place, save_derived
    from stylegan_dist.latents.trained import open_trained

    out = Path(args.out)
    check_place(out)
    coarse, fine = open_trained(args.run_dir, "cpu"), open_trained(args.fine, "cpu")
    generator = blend(coarse, fine, args.at, args.width)
    if (alike := correlation(coarse.generator, fine.generator)) < LEAST_CORRELATION:
        print(f"note: the weights of {coarse.run_dir} and {fine.run_dir} have nothing in common (correlation {alike:.2f}): the "
              "blend of networks that do not come from one another is noise", file=sys.stderr)
    facts = {"kind": "blended", "coarse": [str(coarse.run_dir), coarse.digest], "fine": [str(fine.run_dir), fine.digest],
             "at": args.at, "width": args.width}
    with _writing(out):
        save_derived(coarse, generator, out, facts)
    print(f"{out}: a run of both; for example: stylegan-dist generate {out}")
    return EXIT_OK


def _check_sheet(trained: Any, pictures: int, out: str) -> None:
    """Raise InputError, before anything is drawn, where a sheet of so many pictures cannot be written."""
    from stylegan_dist.monitor.images import MOST_PIXELS, grid_pixels

    if Path(out).suffix.lower() != ".png":
        raise InputError(f"--out {out}: sheets are .png")
    if Path(out).is_dir():
        raise InputError(f"--out {out} is a folder: give the name of a file")
    if (pixels := grid_pixels(pictures, trained.kind.shown_side(trained.shape.resolution))) > MOST_PIXELS:
        raise InputError(f"{pictures} pictures make a sheet of {pixels} pixels, more than {MOST_PIXELS}: draw fewer")


def _saved(sheet: Any, out: str) -> int:
    with _writing(Path(out)):
        sheet.save(Path(out))
    print(f"{out}: {len(sheet.images)} pictures")
    return EXIT_OK


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Turns what a file system refuses into a line for the user."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}; choose another place") from None
