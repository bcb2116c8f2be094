"""Files of other projects become runs whose networks are those of the file, to the last bit."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from importlib.util import find_spec
from pathlib import Path

import foreign_files as files
import numpy as np
import pytest
import torch
from PIL import Image
from small_features import small_features
from small_networks import stylegan2_discriminator, stylegan2_generator
from torch import nn

from stylegan_dist import cli, randomness
from stylegan_dist.config import load_config
from stylegan_dist.errors import InputError
from stylegan_dist.evaluation import evaluate as evaluating
from stylegan_dist.evaluation import reals
from stylegan_dist.evaluation.evaluate import EvaluateOptions, Evaluator
from stylegan_dist.families.r3gan import networks as r3gan
from stylegan_dist.families.r3gan.config import DiscriminatorConfig, GeneratorConfig
from stylegan_dist.importing.run import IMPORT_NAME, import_file
from stylegan_dist.networks.generator import SampleShape, Sampling, draw_samples
from stylegan_dist.networks.layers import Precision, initialize
from stylegan_dist.ranks import ALONE
from stylegan_dist.tools.generate import GenerateOptions, generate
from stylegan_dist.training.build import build_discriminator
from stylegan_dist.training.checkpoint import check_checkpoint, checkpoint_folder
from stylegan_dist.training.run_folder import read_run_config, starting_point
from stylegan_dist.training.saved import load_network
from stylegan_dist.training.snapshot import load_generator

CLAMP = 0.7  # so low that it decides values
OPTIONS = {"z_dim": 24, "w_dim": 16, "channel_base": 256, "channel_max": 12}


def random(network: nn.Module, seed: int) -> nn.Module:
    """All tensors have values that are their own."""
    initialize(network, seed, "test")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in network.state_dict().values():
            value.add_(torch.randn(value.shape, generator=generator), alpha=0.3)
    return network.eval()


def generator(seed: int = 1, classes: int = 0, clamp: float | None = None, channels: int = 3, layers: int = 3) -> nn.Module:
    options = OPTIONS | {"mapping_layers": layers, "precision": Precision(clamp=clamp)}
    return random(stylegan2_generator(32, channels, classes, **options), seed)


def discriminator(classes: int = 0, clamp: float | None = None, channels: int = 3, **options) -> nn.Module:
    return random(stylegan2_discriminator(32, channels, classes, channel_base=256, channel_max=8, mapping_layers=2,
                                          precision=Precision(clamp=clamp), **options), 5)


def r3gan_networks(classes: int = 0) -> tuple[nn.Module, nn.Module]:
    shape, pyramid = SampleShape(32, 3, classes), {"channel_base": 256, "channel_max": 16, "group_width": 4, "blocks": 1}
    return (random(r3gan.Generator(shape, GeneratorConfig(z_dim=8, class_dim=6, **pyramid)), 1),
            random(r3gan.Discriminator(shape, DiscriminatorConfig(**(pyramid | {"blocks": 2}))), 2))


def images(network: nn.Module, classes: int, psi: float) -> torch.Tensor:
    index = torch.arange(3)
    return draw_samples(network, 7, "test", index, index % classes if classes else None, Sampling(psi))


def saved_discriminator(run: Path, classes: int, channels: int = 3) -> nn.Module:
    config = read_run_config(run)
    config.precision.channels_last = False  # it changes rounding
    network = build_discriminator(config, SampleShape(32, channels, classes), torch.device("cpu"))
    load_network(network, next((run / "checkpoints").glob("nimg-*")), "d")
    return network


def assert_same_logits(ours: nn.Module, theirs: nn.Module, classes: int, channels: int = 3) -> None:
    x = torch.randn(4, channels, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(4) % classes if classes else None
    assert torch.equal(ours(x, labels), theirs(x, labels))


@pytest.mark.parametrize(("protocol", "classes", "clamp", "channels", "architecture"), [
    (4, 0, None, 3, "resnet"), (3, 3, CLAMP, 1, "orig"), (3, 2, None, 4, "resnet")])
def test_nvidia(tmp_path, protocol, classes, clamp, channels, architecture):
    g_ema, g = (generator(seed, classes, clamp, channels) for seed in (1, 2))
    d = discriminator(classes, clamp, channels, architecture=architecture, mbstd_group=2)
    path = files.write_nvidia(tmp_path / "network-snapshot-000123.pkl", protocol, G=files.nvidia_generator(g, clamp),
                              D=files.nvidia_discriminator(d, clamp), G_ema=files.nvidia_generator(g_ema, clamp))
    imported = import_file(path, tmp_path / "run")
    snapshot = load_generator(tmp_path / "run", torch.device("cpu"))
    assert snapshot.nimg == imported.nimg == 123_000
    for psi in (1, 0.5):
        assert torch.equal(images(snapshot.generator, classes, psi), images(g_ema, classes, psi))
    assert not torch.equal(images(g, classes, 1), images(g_ema, classes, 1))
    folder = checkpoint_folder(tmp_path / "run", 123_000)
    assert check_checkpoint(folder) is None
    load_network(snapshot.generator, folder, "g")
    assert torch.equal(images(snapshot.generator, classes, 1), images(g, classes, 1))
    assert_same_logits(saved_discriminator(tmp_path / "run", classes, channels), d, classes, channels)
    config = read_run_config(tmp_path / "run")
    assert (config.generator.mapping_layers, config.precision.clamp, config.precision.top_resolutions) == (3, clamp or 0, 2)
    assert (config.discriminator.architecture, config.discriminator.mbstd_group) == (architecture, 2)
    assert not list(tmp_path.glob("executed*"))
    assert not Path("executed-module-source").exists()


@pytest.mark.parametrize(("archive", "mean"), [(True, True), (False, False)])
def test_rosinality(tmp_path, archive, mean):
    g_ema, g, d = generator(1), generator(2), discriminator(mbstd_group=4)
    if not mean:  # as the import computes it
        index = torch.arange(10_000)
        with torch.no_grad():
            g_ema.w_avg.copy_(g_ema.mapping(randomness.normal(0, "import.mean.z", index, (24,)), None).mean(0))
    content = {"g_ema": files.rosinality_generator(g_ema), "g": files.rosinality_generator(g),
               "d": files.rosinality_discriminator(d), **({"latent_avg": g_ema.w_avg} if mean else {})}
    run = tmp_path / "run"
    imported = import_file(files.write_rosinality(tmp_path / "550000.pt", archive, **content), run, nimg=550)
    snapshot = load_generator(run, torch.device("cpu"))
    assert snapshot.nimg == 550
    for psi in (1, 0.5):
        assert torch.equal(images(snapshot.generator, 0, psi), images(g_ema, 0, psi))
    assert imported.tables["g_ema"].filled == ["w_avg"]
    assert_same_logits(saved_discriminator(run, 0), d, 0)


@pytest.mark.parametrize("classes", [0, 3])
def test_r3gan(tmp_path, classes):
    g, d = r3gan_networks(classes)
    path = files.write_r3gan(tmp_path / "x.pkl", 4_000_000, G=g, D=d, G_ema=g)
    imported = import_file(path, tmp_path / "run")
    snapshot = load_generator(tmp_path / "run", torch.device("cpu"))
    assert (snapshot.nimg, imported.counted) == (4_000_000, "as the file says")
    assert torch.equal(images(snapshot.generator, classes, 1), images(g, classes, 1))
    assert_same_logits(saved_discriminator(tmp_path / "run", classes), d, classes)
    config = read_run_config(tmp_path / "run")
    assert (config.generator.family, config.generator.blocks, config.discriminator.blocks) == ("r3gan", 1, 2)


@pytest.mark.skipif(not find_spec("stylegan_dist.families.stylegan3"), reason="there is no family stylegan3")
@pytest.mark.parametrize(("variant", "classes"), [("t", 2), ("r", 0)])
def test_stylegan3(tmp_path, variant, classes):
    """The generator with StyleGAN2's discriminator."""
    from stylegan_dist.families.stylegan3.config import GeneratorConfig
    from stylegan_dist.families.stylegan3.networks import Generator

    def network(seed: int) -> nn.Module:
        settings = GeneratorConfig(z_dim=8, w_dim=12, mapping_layers=2, layers=5, channel_base=128, channel_max=9)
        made = random(Generator(SampleShape(16, 3, classes), settings, variant == "r"), seed)
        with torch.no_grad():
            made.synthesis.magnitudes.abs_().add_(0.1)
            made.synthesis.input.transform.copy_(torch.eye(3))
        return made

    g_ema, g = network(1), network(2)
    d = random(stylegan2_discriminator(16, 3, classes, channel_base=256, channel_max=8, mapping_layers=2), 5)
    path = files.write_nvidia(tmp_path / "x.pkl", G=files.nvidia_stylegan3(g, 128, 9), D=files.nvidia_discriminator(d),
                              G_ema=files.nvidia_stylegan3(g_ema, 128, 9))
    import_file(path, tmp_path / "run")
    snapshot = load_generator(tmp_path / "run", torch.device("cpu"))
    assert read_run_config(tmp_path / "run").generator.family == f"stylegan3-{variant}"
    for psi in (1, 0.5):
        assert torch.equal(images(snapshot.generator, classes, psi), images(g_ema, classes, psi))
    broken = files.nvidia_stylegan3(g, 128, 9)
    next(part for name, part in broken.synthesis.named_children() if name.startswith("L1_")).up_filter *= 1.1
    with pytest.raises(InputError, match=r"another synthesis\.L1_\d+_9\.up_filter than StyleGAN3's"):
        import_file(files.write_nvidia(path, G_ema=broken), tmp_path / "other")


def test_generator_alone_on_the_command_line(tmp_path, capsys):
    """`import`, then `generate`: the pixels are those of the source, and what is missing is said."""
    g, run = generator(classes=2), tmp_path / "run"
    path = files.write_nvidia(tmp_path / "some.pkl", G_ema=files.nvidia_generator(g))
    assert cli.main(["import", str(path), str(run)]) == 0
    said = capsys.readouterr().out
    assert "the file has no discriminator" in said
    assert "licence: NVIDIA" in said
    assert "images seen: 1 (unknown" in said
    generate(run, tmp_path / "out", GenerateOptions([3, 4], 0.7))
    for seed in (3, 4):
        want = draw_samples(g, seed, "generate", torch.zeros(1, dtype=torch.int64), torch.tensor([seed % 2]), Sampling(0.7))[0]
        pixels = (want * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
        assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / f"seed{seed:04d}-class{seed % 2}.png")), pixels)
    record = json.loads((run / IMPORT_NAME).read_text())
    assert (record["file"], record["sha256"]) == ("some.pkl", hashlib.sha256(path.read_bytes()).hexdigest())
    assert record["tensors"]["g_ema"]["loaded"]["w_avg"] == "mapping.w_avg"
    shutil.rmtree(run)
    cli.main(["import", str(path), str(run), "--table", "--nimg", "9000"])
    said = capsys.readouterr().out
    assert "mapping.layers.0.weight <- mapping.fc0.weight" in said
    assert checkpoint_folder(run, 9000).is_dir()


def test_an_imported_run_has_no_data(tmp_path):
    path = files.write_nvidia(tmp_path / "x.pkl", G_ema=files.nvidia_generator(generator()))
    run = tmp_path / "run"
    import_file(path, run)
    with pytest.raises(InputError, match=r"imported without data and optimizers.*run\.init_from="):
        starting_point(run, load_config(run / "config.yaml"), "some data")
    with pytest.raises(InputError, match="imported without data: give --shards"):
        Evaluator(run, EvaluateOptions(), ALONE, print)
    with pytest.raises(InputError, match="exists: choose another folder"):
        import_file(path, run)


def test_an_imported_run_is_scored(tmp_path, small_shards, monkeypatch):
    monkeypatch.setattr(evaluating, "open_features", lambda name, device: small_features(device))
    monkeypatch.setattr(reals, "user_folder", lambda name: tmp_path)
    network = random(stylegan2_generator(8, 3, 3, z_dim=8, w_dim=8, channel_base=64, channel_max=8), 0)
    path = files.write_nvidia(tmp_path / "x.pkl", G_ema=files.nvidia_generator(network))
    imported = import_file(path, tmp_path / "run", 5000)
    options = EvaluateOptions(count=40, metrics=("fd",), shards=str(small_shards))
    found = Evaluator(tmp_path / "run", options, ALONE, lambda text: None).evaluate(imported.nimg)
    assert found is not None
    assert found.nimg == 5000


def changed(network: files.Part, path: str, **attributes) -> files.Part:
    for name, value in attributes.items():
        setattr(network.get_submodule(path), name, value)
    return network


def without(network: files.Part, path: str, name: str) -> files.Part:
    delattr(network.get_submodule(path), name)
    return network


def with_tensor(network: files.Part, path: str, name: str, value: torch.Tensor) -> files.Part:
    network.get_submodule(path).register_buffer(name, value)
    return network


G = "synthesis.b8.conv0"
WRONG = {
    "architecture 'resnet'": lambda g: changed(g, "synthesis.b8", architecture="resnet"),
    "layer without noise": lambda g: changed(g, G, use_noise=False),
    "activation 'relu'": lambda g: changed(g, G, activation="relu"),
    r"learning rate multiplier 0\.1": lambda g: changed(g, "mapping.fc0", bias_gain=0.1),
    "odd or different clamps": lambda g: changed(g, G, conv_clamp=256),
    "the activation of .* is a list": lambda g: changed(g, G, activation=["lrelu"]),
    r"lacks synthesis\.b8\.conv0\.bias": lambda g: without(g, G, "bias"),
    r"no place here for synthesis\.b8\.conv0\.more": lambda g: with_tensor(g, G, "more", torch.ones(2)),
    r"affine\.weight of the shape \[12, 17\]": lambda g: with_tensor(
        without(g, f"{G}.affine", "weight"), f"{G}.affine", "weight", torch.ones(12, 17)),
    r"another filter than \[1, 3, 3, 1\]": lambda g: with_tensor(g, G, "resample_filter", torch.ones(4, 4)),
    "the _buffers of an object of Network are none": lambda g: changed(
        g, G, _buffers={"\x1b[2J\n": torch.ones(2)}),
    r"architecture '\\x1b\[2J\\n'": lambda g: changed(g, "synthesis.b8", architecture="\x1b[2J\n"),
    "not finite": lambda g: with_tensor(without(g, G, "bias"), G, "bias", torch.full((12,), torch.nan)),
    r"blocks of \[4, 16, 32\] pixels": lambda g: without(g, "synthesis", "b8"),
    "are not min": lambda g: with_tensor(without(g, "synthesis.b16.conv1", "weight"), "synthesis.b16.conv1", "weight",
                                         torch.ones(5, 12, 3, 3)),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_cannot_be_represented_is_refused(tmp_path, message):
    path = files.write_nvidia(tmp_path / "x.pkl", G_ema=WRONG[message](files.nvidia_generator(generator())))
    with pytest.raises(InputError, match=message):
        import_file(path, tmp_path / "run")
    assert sorted(tmp_path.iterdir()) == [path], "nothing is left"


def test_other_files(tmp_path):
    """A clear word for what is something else."""
    path = tmp_path / "x.pkl"
    for content, message in ((pickle.dumps({"weights": 1}), r"no networks of a known project \('weights'\)"),
                             (b"\x89PNG" + bytes(100), "begins like no pickle"), (b"", "0 bytes are no checkpoint")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            import_file(path, tmp_path / "run")
    with pytest.raises(InputError, match="cannot read"):
        import_file(tmp_path / "missing.pkl", tmp_path / "run")
