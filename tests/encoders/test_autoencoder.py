"""The autoencoder: its equations, the names of published weights, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import tiny_encoder
import torch
import torch.nn.functional as F
from tiny_encoder import FORM, drawn

from stylegan_dist.errors import InputError
from stylegan_dist.kinds.autoencoder import Autoencoder, Form
from stylegan_dist.kinds.encoder import WEIGHTS, open_autoencoder, read_encoder

# Of an AutoencoderKL with two levels, in diffusers: a residual block and an attention stand for all of them.
NAMES = ["encoder.conv_in.weight", "encoder.down_blocks.0.resnets.0.norm1.weight", "encoder.down_blocks.0.resnets.0.conv2.bias",
         "encoder.down_blocks.0.downsamplers.0.conv.weight", "encoder.down_blocks.1.resnets.0.conv_shortcut.weight",
         "encoder.mid_block.attentions.0.group_norm.weight", "encoder.mid_block.attentions.0.to_q.weight",
         "encoder.mid_block.attentions.0.to_out.0.bias", "encoder.mid_block.resnets.1.conv1.weight",
         "encoder.conv_norm_out.weight", "encoder.conv_out.bias", "quant_conv.weight", "post_quant_conv.bias",
         "decoder.mid_block.resnets.0.norm2.bias", "decoder.up_blocks.0.resnets.1.conv1.weight",
         "decoder.up_blocks.0.upsamplers.0.conv.bias", "decoder.up_blocks.1.resnets.0.conv_shortcut.bias",
         "decoder.conv_norm_out.bias", "decoder.conv_out.weight"]


class Reference:
    """The network by the names of its tensors, in double precision."""

    def __init__(self, network: Autoencoder):
        self.values = {name: value.double() for name, value in network.state_dict().items()}

    def conv(self, name, x, stride=1, padding=None):
        weight = self.values[f"{name}.weight"]
        return F.conv2d(x, weight, self.values[f"{name}.bias"], stride, weight.shape[2] // 2 if padding is None else padding)

    def norm(self, name, x):
        parts = x.unflatten(1, (FORM.norm_num_groups, -1)).flatten(2)
        mean, variance = parts.mean(2, keepdim=True), parts.var(2, unbiased=False, keepdim=True)
        x = ((parts - mean) / (variance + 1e-6).sqrt()).reshape(x.shape)
        return x * self.values[f"{name}.weight"][:, None, None] + self.values[f"{name}.bias"][:, None, None]

    def silu(self, x):
        return x / (1 + (-x).exp())

    def block(self, name, x):
        y = self.conv(f"{name}.conv1", self.silu(self.norm(f"{name}.norm1", x)))
        y = self.conv(f"{name}.conv2", self.silu(self.norm(f"{name}.norm2", y)))
        return y + (self.conv(f"{name}.conv_shortcut", x) if f"{name}.conv_shortcut.weight" in self.values else x)

    def middle(self, name, x):
        x, at = self.block(f"{name}.resnets.0", x), f"{name}.attentions.0"
        tokens = self.norm(f"{at}.group_norm", x).flatten(2).transpose(1, 2)

        def linear(which, values):
            return values @ self.values[f"{at}.{which}.weight"].T + self.values[f"{at}.{which}.bias"]

        query, key, value = (linear(which, tokens) for which in ("to_q", "to_k", "to_v"))
        mixed = ((query @ key.transpose(1, 2)) / query.shape[2] ** 0.5).softmax(2) @ value
        return self.block(f"{name}.resnets.1", x + linear("to_out.0", mixed).transpose(1, 2).reshape(x.shape))

    def moments(self, x):
        x = self.block("encoder.down_blocks.0.resnets.0", self.conv("encoder.conv_in", x))
        x = self.conv("encoder.down_blocks.0.downsamplers.0.conv", F.pad(x, (0, 1, 0, 1)), 2, 0)
        x = self.middle("encoder.mid_block", self.block("encoder.down_blocks.1.resnets.0", x))
        x = self.conv("encoder.conv_out", self.silu(self.norm("encoder.conv_norm_out", x)))
        return self.conv("quant_conv", x)

    def decode(self, x):
        x = self.middle("decoder.mid_block", self.conv("decoder.conv_in", self.conv("post_quant_conv", x)))
        for number in range(2):
            x = self.block(f"decoder.up_blocks.0.resnets.{number}", x)
        x = self.conv("decoder.up_blocks.0.upsamplers.0.conv", x.repeat_interleave(2, 2).repeat_interleave(2, 3))
        for number in range(2):
            x = self.block(f"decoder.up_blocks.1.resnets.{number}", x)
        return self.conv("decoder.conv_out", self.silu(self.norm("decoder.conv_norm_out", x)))


def test_against_a_reference():
    network = drawn()
    reference, pictures = Reference(network), torch.rand(2, 3, 16, 16, dtype=torch.float64) * 2 - 1
    network.double()
    mean, log_variance = network.moments(pictures)
    assert mean.shape == (2, 4, 8, 8)
    assert torch.allclose(torch.cat([mean, log_variance], 1), reference.moments(pictures), rtol=1e-10, atol=1e-10)
    assert torch.allclose(network.decode(mean), reference.decode(mean), rtol=1e-10, atol=1e-10)


def test_names_of_diffusers():
    assert set(NAMES) <= set(drawn().state_dict())
    assert not any("conv_shortcut" in name or "samplers" in name for name in drawn(Form(1, 2, (4,), 1, 4)).state_dict())


@pytest.mark.parametrize("earlier", [False, True])
def test_reads_a_folder_and_its_files(tmp_path, earlier):
    folder = tiny_encoder.write(tmp_path / "vae", earlier=earlier)
    encoder, trained_at = read_encoder(str(folder))
    assert (encoder.maker, encoder.form, encoder.form.downscale, trained_at) == ("diffusers", FORM, 2, None)
    assert read_encoder(str(folder / WEIGHTS))[0] == encoder
    pictures = torch.rand(1, 3, 16, 16)
    assert torch.equal(open_autoencoder(encoder, "", "cpu").encode(pictures), drawn().encode(pictures))


def changed(folder: Path, change) -> None:
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    change(tensors)
    safetensors.torch.save_file(tensors, folder / WEIGHTS)


def refused(place) -> str:
    with pytest.raises(InputError) as caught:
        read_encoder(str(place))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("facts", "words"), [
    ({"_class_name": "VQModel"}, "'VQModel' instead of 'AutoencoderKL'"), ({"_class_name": None}, "_class_name is None"),
    ({"act_fn": "relu"}, "act_fn is another"), ({"block_out_channels": [8, 18]}, "no multiple of the 4 groups"),
    ({"block_out_channels": [8] * 30, "down_block_types": None, "up_block_types": None}, "block_out_channels"),
    ({"latent_channels": 10**9}, "latent_channels"), ({"latent_channels": 2.5}, "latent_channels"),
    ({"down_block_types": ["AttnDownEncoderBlock2D"] * 2}, "down_block_types is another"),
])
def test_other_structures_are_refused(tmp_path, facts, words):
    assert words in refused(tiny_encoder.write(tmp_path / "vae", **facts))


@pytest.mark.parametrize(("change", "words"), [
    (lambda tensors: tensors.pop("quant_conv.bias"), "1 tensors are missing, the first is quant_conv.bias"),
    (lambda tensors: tensors.update(extra=torch.zeros(1)), "'extra', which is not a part"),
    (lambda tensors: tensors.update({"quant_conv.bias": torch.zeros(3)}), "has the shape [3] instead of [8]"),
    (lambda tensors: tensors.update({"quant_conv.bias": torch.full((8,), torch.nan)}), "no finite numbers"),
    (lambda tensors: tensors.update({"quant_conv.bias": torch.zeros(8, dtype=torch.int64)}), "no finite numbers"),
])
def test_other_weights_are_refused(tmp_path, change, words):
    folder = tiny_encoder.write(tmp_path / "vae")
    changed(folder, change)
    assert words in refused(folder)


def test_wrong_places_are_refused(tmp_path):
    folder = tiny_encoder.write(tmp_path / "vae")
    (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.bin")
    assert "no diffusion_pytorch_model.safetensors; diffusion_pytorch_model.bin there is a pickle" in refused(folder)
    assert "is a pickle, which can run code" in refused(folder / "diffusion_pytorch_model.bin")
    assert "it has no config.json" in refused(tmp_path)
    assert "it has no config.json" in refused(tmp_path / "nowhere")
    (folder / WEIGHTS).write_bytes(b"\0" * 100)
    assert "cannot be used as the weights" in refused(folder)
    (folder / "config.json").write_text(json.dumps([1]))
    assert "_class_name is None" in refused(folder)
