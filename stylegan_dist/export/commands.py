"""The verb `export`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from stylegan_dist.arguments import add_verb, add_which, path
from stylegan_dist.errors import EXIT_OK, InputError
from stylegan_dist.records import shorten

_FORMATS = ("torch", "onnx")


def add_export(verbs: Any) -> None:
    parser = add_verb(
        verbs, "export", _export,
        help="write a trained generator for use elsewhere: PyTorch, ONNX, safetensors, model card",
        description="Write the averaged generator of a checkpoint to a new folder:\n\n"
        "  model.safetensors  weights, and config.json, which describes them (stylegan_dist.export.from_pretrained)\n"
        "  generator.pt2      a graph for torch.export.load; this package is not needed to run it\n"
        "  generator.onnx     the same for onnxruntime and others\n"
        "  README.md          a model card with samples.png; the folder can be uploaded to a hub as it is\n\n"
        "Graphs take any batch size. Each is run after it was written, and must agree with the generator to 1e-4.",
        epilog="example:\n  stylegan-dist export runs/demo exported --best --license cc-by-4.0",
    )
    parser.add_argument("run_dir", metavar="RUN", type=path("RUN"), help="folder of the run")
    parser.add_argument("out", metavar="OUT", type=path("OUT"), help="new folder")
    add_which(parser)
    parser.add_argument("--formats", default=",".join(_FORMATS), metavar="LIST",
                        help="graphs to write: torch, onnx, or none (default: %(default)s)")
    parser.add_argument("--title", help="of the model card (default: name of RUN)")
    parser.add_argument("--license", help="identifier of the weights' licence, for the model card")


def _export(args: argparse.Namespace) -> int:
    from stylegan_dist.export.card import CardOptions
    from stylegan_dist.export.folder import export_run

    formats = [] if args.formats == "none" else args.formats.split(",")
    if wrong := [word for word in formats if word not in _FORMATS]:
        raise InputError(f"--formats {shorten(wrong[0])} is unknown: choose of {', '.join(_FORMATS)}, or none")
    written = export_run(args.run_dir, Path(args.out), args.which or "newest", list(dict.fromkeys(formats)),
                         CardOptions(args.title, args.license))
    for file in written:
        difference = "" if file.difference is None else f"  differs by {file.difference:.1e} of the largest value at most"
        print(f"{file.name:18} {file.bytes / 1e6:9.2f} MB{difference}")
    print(f"{args.out}: README.md there says how to use them")
    return EXIT_OK
