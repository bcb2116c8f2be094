"""The folder of an export: written beside its place and renamed when all of it has been checked."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from tqdm import tqdm

from stylegan_dist import __version__
from stylegan_dist.config.loading import to_dict
from stylegan_dist.errors import InputError
from stylegan_dist.export import graphs
from stylegan_dist.export.card import CardOptions, model_card
from stylegan_dist.export.pretrained import DESCRIPTION, WEIGHTS, Description, from_pretrained
from stylegan_dist.kinds import Kind
from stylegan_dist.kinds.base import to_uint8
from stylegan_dist.monitor.images import save_grid
from stylegan_dist.networks.generator import Generator, Sampling, draw_samples
from stylegan_dist.training.build import precision_policy
from stylegan_dist.training.checkpoint import checkpoint_folder
from stylegan_dist.training.run_folder import read_run_config
from stylegan_dist.training.saved import SavedData, load_state
from stylegan_dist.training.snapshot import Snapshot, Which, load_generator

CARD, PICTURE = "README.md", "samples.png"
Write = Callable[[torch.export.ExportedProgram, Sequence[str], Path], graphs.Run]
FORMATS: dict[str, tuple[str, Write]] = {"torch": ("generator.pt2", graphs.write_torch),
                                         "onnx": ("generator.onnx", graphs.write_onnx)}
_PICTURES = 16  # in the model card


@dataclass(frozen=True)
class Written:
    """A file of an export.

    Attributes:
        difference: the largest one to the generator, as a part of the largest value; None for files that are no graphs.
    """

    name: str
    bytes: int
    difference: float | None = None


def export_run(run_dir: str | os.PathLike, out: Path, which: Which, formats: Sequence[str], card: CardOptions) -> list[Written]:
    """Write weights, description, model card, a picture and the graphs of a run's averaged generator; returns the files.

    Raises:
        InputError: no such run or checkpoint, `out` is there already or cannot be written, a package is missing, or a graph
            differs from the generator. Nothing is written then.
    """
    if out.exists():
        raise InputError(f"{out} is there already: choose another OUT, or remove it")
    if "onnx" in formats:
        graphs.check_libraries()
    snapshot = load_generator(run_dir, torch.device("cpu"), which)
    try:
        draft = out.with_name(f".{out.name}.tmp")
        shutil.rmtree(draft, ignore_errors=True)  # of an export that was killed
        draft.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"cannot write to {out.parent}: {error.strerror or error}; choose another OUT") from None
    try:
        run = Path(run_dir)
        config, state = read_run_config(run), load_state(checkpoint_folder(run, snapshot.nimg))
        description = Description(1, "stylegan_dist", to_dict(config)["generator"], precision_policy(config).clamp,
                                  _published(state.data), snapshot.nimg, snapshot.digest, __version__)
        written = _write(snapshot, description, draft, formats)
        (draft / CARD).write_text(model_card(run, description, snapshot.generator, [file.name for file in written], card),
                                  encoding="utf-8")
        draft.rename(out)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot write to {out}: {reason}; choose another OUT, or make room") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(draft)
    return [*written, Written(CARD, (out / CARD).stat().st_size)]


def _published(data: SavedData) -> SavedData:
    """The same without what no generator needs and others shall not see: lines of the data, and a path on this machine."""
    array = data.array
    if array and array.text:
        array = dataclasses.replace(array, text=dataclasses.replace(array.text, held_out=()))
    if array and array.encoder:
        array = dataclasses.replace(array, encoder=dataclasses.replace(array.encoder, path=""))
    return dataclasses.replace(data, array=array)


def _write(snapshot: Snapshot, description: Description, folder: Path, formats: Sequence[str]) -> list[Written]:
    generator, written = snapshot.generator, []
    with tqdm(total=1 + len(formats), desc="export", unit="file") as bar:
        values = {name: value.contiguous() for name, value in generator.state_dict().items()}
        save_file(values, folder / WEIGHTS, {"format": "pt"})
        (folder / DESCRIPTION).write_text(json.dumps(dataclasses.asdict(description), indent=2) + "\n", encoding="utf-8")
        again = from_pretrained(folder).state_dict()
        assert all(torch.equal(value, again[name]) for name, value in values.items())
        _draw(generator, snapshot.kind, folder / PICTURE)
        written += [Written(name, (folder / name).stat().st_size) for name in (WEIGHTS, DESCRIPTION, PICTURE)]
        bar.update()
        program = graphs.program_of(generator) if formats else None
        for name, write in (FORMATS[kind] for kind in formats):
            assert program is not None
            bar.set_postfix_str(name)
            run = write(program, list(graphs.inputs_of(generator, 1)), folder / name)
            written.append(Written(name, (folder / name).stat().st_size, graphs.largest_difference(generator, run)))
            bar.update()
    return written


def _draw(generator: Generator, kind: Kind, path: Path) -> None:
    index = torch.arange(_PICTURES)
    labels = index % generator.num_classes if generator.num_classes else None
    sampling = Sampling(0.7 if generator.truncates else 1.0)
    values = draw_samples(generator, 0, "export.samples", index, labels, sampling)
    save_grid(path, to_uint8(kind.as_pictures(values)), columns=8)
