"""The generator as a graph that runs without this package: by torch.export, and in the ONNX format.

Inputs are z float32 [N, z_dim], labels int64 [N] if it is conditional, and psi float32 [] if it truncates. The result is
samples [N, C, R, R], nominally in [-1, 1]. Any N will do. Layer noise is the constant one.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from stylegan_dist.errors import InputError
from stylegan_dist.networks.generator import Generator
from stylegan_dist.ops import native

BATCHES = (1, 3, 4)     # with which a written graph is compared
TOLERANCE = 1e-4        # of the largest value of the samples
_EXAMPLES = 2           # a batch of one would become a constant of the graph
_REMEDY = 'pip install "stylegan-dist[export]", or leave onnx out of --formats'

Run = Callable[[dict[str, Tensor]], Tensor]


class SampleGraph(nn.Module):
    """(z, labels if conditional, psi if it truncates) -> samples."""

    def __init__(self, generator: Generator):
        super().__init__()
        self.generator = generator

    def forward(self, z: Tensor, *others: Tensor) -> Tensor:
        rest = list(others)
        labels = rest.pop(0) if self.generator.num_classes else None
        latents = self.generator.map(z, labels, rest.pop(0) if self.generator.truncates else 1.0)
        return self.generator.synthesize(latents, labels)


def inputs_of(generator: Generator, count: int, seed: int = 0) -> dict[str, Tensor]:
    """Inputs by their names, a function of (count, seed)."""
    index = torch.arange(count)
    inputs = {"z": generator.draw(seed, "export", index)}
    if generator.num_classes:
        inputs["labels"] = (index + seed) % generator.num_classes
    if generator.truncates:
        inputs["psi"] = torch.tensor(0.7 + 0.3 * (seed % 2))
    return inputs


def check_libraries() -> None:
    """Raise InputError where what writes and checks ONNX files is not installed."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise InputError(f"ONNX files need the package {name}: {_REMEDY}")


def write_torch(program: torch.export.ExportedProgram, names: Sequence[str], path: Path) -> Run:
    """Write a program with inputs of these names as PyTorch does; returns what runs the written file."""
    torch.export.save(program, path)
    module = torch.export.load(path).module()
    return lambda inputs: module(*inputs.values())


def write_onnx(program: torch.export.ExportedProgram, names: Sequence[str], path: Path) -> Run:
    """Write it as an ONNX file; returns what runs it, in onnxruntime on the CPU."""
    import onnxruntime

    with _quiet():
        written = torch.onnx.export(program, dynamo=True, input_names=names, output_names=["samples"], verbose=False)
        assert written is not None
        written.save(path, external_data=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda inputs: torch.from_numpy(session.run(None, {name: value.numpy() for name, value in inputs.items()})[0])


def largest_difference(generator: Generator, run: Run) -> float:
    """Between a graph and the generator, over batches, classes and truncations, as a part of the largest value.

    Raises:
        InputError: it is more than `TOLERANCE`.
    """
    worst = 0.0
    for seed, count in enumerate(BATCHES):
        inputs = inputs_of(generator, count, seed)
        with native.using("reference"), torch.no_grad():
            wanted = SampleGraph(generator)(*inputs.values())
        worst = max(worst, float((run(inputs) - wanted).abs().max() / wanted.abs().max()))
    if not worst <= TOLERANCE:
        raise InputError(f"the exported graph differs by {worst:.1e} of the largest value, more than {TOLERANCE:g}: this is a "
                         "fault of the exporter; leave this format out of --formats, and please report it with your versions "
                         "of torch, onnx and onnxruntime")
    return worst


def program_of(generator: Generator) -> torch.export.ExportedProgram:
    """The graph, for any batch."""
    inputs, batch = inputs_of(generator, _EXAMPLES), torch.export.Dim("batch", min=1)
    shapes = tuple(None if value.dim() == 0 else {0: batch} for value in inputs.values())
    graph = SampleGraph(generator)
    with native.using("reference"), torch.no_grad(), _quiet():  # native operators are unknown elsewhere
        graph(*inputs.values())  # constants that are computed once must not be computed under the exporter
        return torch.export.export(graph, tuple(inputs.values()), dynamic_shapes=(shapes[0], shapes[1:])[:len(shapes)])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters print about themselves."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
