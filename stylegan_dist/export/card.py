"""The model card of an export: what a stranger has to know before using the weights (Mitchell et al. 2019).

It has the YAML head of the Hugging Face Hub.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from stylegan_dist.export.pretrained import Description
from stylegan_dist.kinds import Array
from stylegan_dist.networks.generator import Generator
from stylegan_dist.scores_file import read_evaluations


@dataclass(frozen=True)
class CardOptions:
    """What only the owner of the weights can know.

    Attributes:
        title: None for the name of the run's folder.
        license: identifier of the weights' licence, as the Hub has them; None where it is not said.
    """

    title: str | None = None
    license: str | None = None


def model_card(run_dir: Path, description: Description, generator: Generator, files: Sequence[str],
               options: CardOptions) -> str:
    """The text of README.md, in Markdown."""
    data, family = description.data, str(description.generator["family"])
    title = options.title or run_dir.resolve().name
    head = {"library_name": "stylegan_dist", "license": options.license or "other", "tags": ["gan", family]}
    if data.array is None:
        head["pipeline_tag"] = "unconditional-image-generation"
    size = sum(parameter.numel() for parameter in generator.parameters())
    form = f"[N, {data.channels}, {data.resolution}, {data.resolution}]"
    classes = f"{data.num_classes} classes" if data.num_classes else "none (unconditional)"
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {title}\n\n![samples, seed 0 to 15 of `export.samples`](samples.png)",
        f"A generator of family `{family}` with {size:,} parameters, after {description.nimg / 1000:,.1f} thousand images of "
        f"training. The weights are the exponential moving average.",
        "| | |\n|---|---|\n"
        f"| samples | {form}, nominally in [-1, 1] |\n"
        f"| z | {generator.z_dim} numbers |\n| labels | {classes} |\n"
        f"| checkpoint | `{description.checkpoint}` |\n| data | `{data.fingerprint}` |\n"
        f"| written by | stylegan_dist {description.version} |",
        *([_decoding(data.array)] if data.array and data.array.encoder else []),
        "## Use\n\n" + "\n\n".join(_uses(generator, files, data.array)),
        "## Scores\n\n" + _scores(run_dir, description),
        "## Limits\n\nSamples resemble the training data, with its gaps and its biases. They are not evidence of anything. "
        "Some may be close to single training samples; `stylegan-dist evaluate` shows nearest neighbours. Layer noise is "
        "constant in all files here.\n\n" + (f"Licence of the weights: {options.license}." if options.license else
                       "The licence of the weights is not stated. It depends on the training data: ask the owner, or complete "
                       "this card before you share it."),
    ]
    return "\n\n".join(parts) + "\n"


def _uses(generator: Generator, files: Sequence[str], array: Array | None) -> list[str]:
    labels = ", torch.tensor([0, 0, 0, 0])" if generator.num_classes else ""
    psi = ", torch.tensor(0.7)" if generator.truncates else ""
    feed = ("" if not generator.num_classes else ', "labels": np.zeros(4, np.int64)') + \
        ("" if not generator.truncates else ', "psi": np.array(0.7, np.float32)')
    uses = []
    if "generator.pt2" in files:
        uses.append("With PyTorch alone:\n\n```python\nimport torch\n"
                    'generator = torch.export.load("generator.pt2").module()\n'
                    f"samples = generator(torch.randn(4, {generator.z_dim}){labels}{psi})\n```")
    if "generator.onnx" in files:
        uses.append("With ONNX Runtime alone:\n\n```python\nimport numpy as np, onnxruntime\n"
                    'session = onnxruntime.InferenceSession("generator.onnx")\n'
                    f'z = np.random.randn(4, {generator.z_dim}).astype(np.float32)\n'
                    f'(samples,) = session.run(None, {{"z": z{feed}}})\n```')
    one = f", torch.tensor([{7 % generator.num_classes}])" if generator.num_classes else ""  # the class of `generate`
    uses.append("With stylegan_dist, by seed, here the picture of `stylegan-dist generate --seeds 7`:\n\n```python\n"
                "import torch\nfrom stylegan_dist.export import from_pretrained\n"
                "from stylegan_dist.networks.generator import draw_samples\n"
                'generator = from_pretrained(".")\n'
                f'sample = draw_samples(generator, 7, "generate", torch.tensor([0]){one})\n```')
    if generator.frames > 1:
        uses.append("z decides what is in a clip. All clips of the graphs `generator.*` move alike, that is, with one fixed "
                    "motion. With stylegan_dist each sample number has a motion of its own.")
    return [*uses, _reading(array)]


def _reading(array: Array | None) -> str:
    """How samples become what the data is."""
    if array is None:
        return "Pictures: `((samples + 1) * 127.5).round().clip(0, 255)` as uint8, channels first."
    if array.text:
        return ("Samples are lines of text: `samples[:, 0].argmax(1)` has for each position the number of a symbol in "
                "`data.array.text.symbols` of config.json, and blanks behind the end of the line.")
    if array.film:
        form = array.film
        return (f"Samples are clips of {form.frames} frames, {form.fps:g} a second: `samples.reshape(len(samples), "
                f"{form.frames}, {form.channels}, *samples.shape[2:])` is [N, frames, channels, height, width]. Frames: "
                "`((frames + 1) * 127.5).round().clip(0, 255)` as uint8.")
    return ("Samples are arrays: `samples * scale + offset` for each channel or band, both in `data.array` of config.json, has "
            "the range of the data.")


def _scores(run_dir: Path, description: Description) -> str:
    """Of these very weights; scores of others would mislead."""
    rows = []
    for found in read_evaluations(run_dir):
        if found.digest == description.checkpoint:
            for name, score in found.scores.items():
                value = f"{score.value:.4g}" + (f" ± {score.error:.2g}" if score.error else "")
                floor = "-" if score.floor is None else f"{score.floor:.4g}"
                rows.append(f"| {name} | {value} | {floor} | {found.network} | {found.count:,} | `{found.data[:16]}` |")
    if not rows:
        return "None were computed for these weights (`stylegan-dist evaluate`)."
    head = "| score | value | real against real | feature network | samples | data |\n|---|---|---|---|---|---|"
    return "\n".join([head, *rows])


def _decoding(array: Array) -> str:
    """How samples become pictures, where they are latents."""
    assert array.encoder, "they are latents"
    offset, scale = ([float(f"{value:.6g}") for value in values] for values in (array.offset, array.scale))
    return ("## Samples are latents\n\nA picture is what an AutoencoderKL decodes from `sample * scale + offset`, channel by "
            f"channel: scale {scale}, offset {offset}. Its weights are the safetensors file with the SHA-256 "
            f"`{array.encoder.sha256}`, and `config.json` has its form in `data.array.encoder.form`.")
