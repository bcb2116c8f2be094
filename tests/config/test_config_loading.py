"""Strict configurations: what is not understood is refused, with the remedy in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stylegan_dist.config import Config, describe, dump_config, load_config, to_dict
from stylegan_dist.errors import InputError

PRESETS = sorted((Path(__file__).parents[2] / "launch" / "presets").glob("*.yaml"))


def refusal(*overrides: str, preset: Path | None = None) -> str:
    with pytest.raises(InputError) as caught:
        load_config(preset, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def write(tmp_path):
    def write(text: str | bytes) -> Path:
        path = tmp_path / "config.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_nothing_given_is_the_defaults(write):
    assert load_config(None) == Config()
    assert load_config(write("")) == Config()
    assert load_config(write("# only a comment\nrun:\n")) == Config()


def test_file_then_command_line(write):
    path = write("run: {batch: 16, seed: 3}\noptim:\n  g: {lr: 0.001}\n  d: {betas: [0.5, 0.9]}\n")
    config = load_config(path, ["run.batch=32", "optim.g.lr=2e-3"])
    assert (config.run.batch, config.run.seed, config.optim.g.lr, config.optim.d.betas) == (32, 3, 0.002, [0.5, 0.9])
    assert config.optim.g.betas == [0.0, 0.99]
    assert load_config(path, ["run.seed=1", "run.seed=2"]).run.seed == 2, "the last one counts"


def test_configurations_share_nothing():
    first = load_config(None)
    first.optim.g.betas.append(1.0)
    assert load_config(None).optim.g.betas == [0.0, 0.99]
    assert load_config(None).optim.d.betas == [0.0, 0.99]


@pytest.mark.parametrize(("override", "value"), [
    ("run.kimg=5", 5.0), ("run.kimg=1e-3", 0.001), ("run.kimg=1e3", 1000.0), ("run.kimg=.5", 0.5), ("run.kimg=2.50", 2.5),
    ("run.batch=64", 64), ("run.batch=64.0", 64), ("run.batch=auto", "auto"), ("optim.g.lr=auto", "auto"),
    ("optim.g.eps=1e-8", 1e-8), ("run.deterministic=false", False), ("run.deterministic=no", False),
    ("data.conditional=auto", "auto"), ("data.conditional=true", True), ("optim.g.betas=[0, 0.99]", [0.0, 0.99]),
    ("optim.g.betas=[1e-1, 1]", [0.1, 1.0]), ("precision.dtype=bf16", "bf16"), ("precision.clamp=0", 0.0),
    ("monitor.wandb=disabled", "disabled"), ("ema.rampup=0", 0.0),
    # Text is taken as it was typed: nothing in it is YAML.
    ("run.dir=007", "007"), ("run.dir=2024-01-01", "2024-01-01"), ("run.dir=2024-13-45", "2024-13-45"),
    ("run.dir=1_000", "1_000"),
    ("run.dir=a: b", "a: b"), ("run.dir=a=b", "a=b"), ("run.dir=yes", "yes"), ("run.dir=[x", "[x"),
    ("monitor.wandb_name=#3 of 4", "#3 of 4"), ("monitor.wandb_entity=", ""), ("run.dir=ø/Ω", "ø/Ω"),
])
def test_accepted_values(override, value):
    config = load_config(None, [override])
    node = config
    for name in override.partition("=")[0].split("."):
        node = getattr(node, name)
    assert node == value
    assert type(node) is type(value)
    assert load_config_from_dump(config) == config


@pytest.mark.parametrize(("override", "parts"), [
    ("run.batch=64.5", ["run.batch", "a whole number or auto", "64.5"]),
    ("run.batch=true", ["a whole number or auto", "True"]),
    ("run.batch=many", ["a whole number or auto", "'many'", "global batch"]),
    ("run.batch=", ["a whole number or auto", "''"]),
    ("run.batch=2024-13-45", ["a whole number or auto", "'2024-13-45'"]),
    ("run.batch=null", ["None"]),
    ("run.kimg=nan", ["a number"]), ("run.kimg=.inf", ["a number"]), ("run.kimg=true", ["a number"]),
    ("run.kimg=[1]", ["a number"]), ("run.kimg=auto", ["run.kimg", "a number", "'auto'"]),
    ("run.deterministic=1", ["true or false"]), ("run.deterministic=auto", ["true or false"]),
    ("data.conditional=1", ["true or false or auto"]),
    ("optim.g.betas=0.9", ["a list of numbers such as [0, 0.99]"]), ("optim.g.betas=[a]", ["a list of numbers"]),
    ("precision.dtype=fp8", ["one of auto, fp32, bf16, fp16", "'fp8'"]), ("precision.dtype=", ["one of auto, fp32"]),
    ("monitor.wandb=off", ["one of auto, online, offline, disabled", "False"]),
    ("run.batch={a: 1}", ["a whole number or auto"]),
])
def test_refused_values(override, parts):
    message = refusal(override)
    for part in [*parts, override.partition("=")[0], "on the command line", "must be"]:
        assert part in message


@pytest.mark.parametrize(("key", "nearest"), [
    ("run.bach", "run.batch"), ("batch", "run.batch"), ("run.lr", "optim.g.lr"), ("loss.r1_gama", "loss.r1_gamma"),
    ("optim.d.betta", "optim.d.betas"), ("generator.mapping_layer", "generator.mapping_layers"),
    ("discriminator.mapping.layers", "discriminator.mapping_layers"), ("Run.Batch", "run.batch"), ("run.batch.x", "run.batch"),
])
def test_unknown_keys_name_the_nearest(key, nearest, write):
    message = refusal(f"{key}=1")
    assert all(part in message for part in ("unknown", repr(key), "command line", repr(nearest)))
    assert "--help-config" in message


def test_unknown_keys_in_a_file(write):
    path = write("run: {batch: 8}\nloss: {r1_gama: 1}\n")
    message = refusal(preset=path)
    assert all(part in message for part in ("unknown", "'loss.r1_gama'", str(path), "'loss.r1_gamma'"))
    assert "unknown configuration key 'lossy'" in refusal(preset=write("lossy: {r1_gamma: 1}"))
    assert f"run.batch in {path} must be a whole number" in refusal(preset=write("run: {batch: x}"))


def test_knobs_of_other_families_are_named(write):
    path = write("generator: {family: r3gan, mapping_layers: 2}")
    message = refusal(preset=path)
    assert all(word in message for word in ("mapping_layers", str(path), "a knob of stylegan2,", "generator.family=r3gan"))


def test_sections_are_no_values(write):
    message = refusal("optim.g=1")
    assert all(part in message for part in ("optim.g on the command line", "section", "optim.g.name"))
    assert "expected `key: value` lines below run" in refusal(preset=write("run: 5"))
    assert "expected `key: value` lines at the top" in refusal(preset=write("- a\n- b\n"))
    assert "expected `key: value` lines at the top" in refusal(preset=write("just words"))


def test_what_is_no_override():
    assert "'run.batch' is no override: write key=value" in refusal("run.batch")
    assert "'--batch' is no override" in refusal("--batch")
    assert "unknown configuration key ''" in refusal("=5")


@pytest.mark.parametrize(("text", "line"), [
    ("run: {batch: 8}\nloss: {a: [}\n", "line 2: "), ("run:\n\tbatch: 8\n", "line 2: "),
    ("run: {batch: 8}\nloss: {}\nrun: {seed: 1}\n", "line 3: "), ("run: {seed: 1, batch: 8, seed: 2}", "line 1: "),
    ("a: !!python/object:os.system {}", "line 1: "), ("run: {dir: a\x00b}", ""), ("run: {dir: 2024-13-45}", "line 1: "),
    ("? [a, b]\n: 1\n", "line 1: "),
])
def test_yaml_errors_name_file_and_line(text, line, write):
    path = write(text)
    message = refusal(preset=path)
    assert f"{path} is not valid YAML: {line}" in message
    assert len(message) < 300


def test_a_key_given_twice_is_refused(write):
    assert "the key 'run' is given twice" in refusal(preset=write("run: {batch: 8}\nrun: {seed: 1}\n"))


def test_unreadable_files(tmp_path, write):
    assert f"cannot read the configuration {tmp_path / 'none.yaml'}: No such file" in refusal(preset=tmp_path / "none.yaml")
    assert "Is a directory" in refusal(preset=tmp_path)
    assert "cannot read the configuration" in refusal(preset=write(b"\xff\xfe\x00\x01"))


def load_config_from_dump(config: Config) -> Config:
    import tempfile

    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        file.write(dump_config(config))
        file.flush()
        return load_config(file.name)


@pytest.mark.full
@given(
    seed=st.integers(0, 2**32 - 1), kimg=st.floats(1e-6, 1e9), lr=st.floats(1e-12, 1) | st.just("auto"),
    text=st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc"), exclude_characters="~"), max_size=30),
    betas=st.lists(st.floats(0, 1), max_size=3),
)
def test_dump_reads_back_equal(seed, kimg, lr, text, betas):
    config = Config()
    config.run.seed, config.run.kimg, config.run.dir, config.monitor.wandb_name = seed, kimg, text, text
    config.optim.d.lr, config.optim.g.betas = lr, betas
    assert load_config_from_dump(config) == config


def test_dump_is_plain_yaml():
    config = load_config(None, ["run.batch=16", "optim.g.lr=1e-5"])
    content = yaml.safe_load(dump_config(config))
    assert content == to_dict(config)
    assert content["optim"]["g"]["lr"] == 1e-5, "YAML would read 1e-05 as text"
    assert list(content) == list(to_dict(Config()))


def test_every_knob_is_documented():
    knobs = list(describe())
    keys = [key for key, _, _ in knobs]
    assert len(keys) == len(set(keys)) > 70
    for key, default, doc in knobs:
        assert doc, key
        assert len(doc) > 5, key
        assert "\n" not in doc, key
        assert load_config(None, [f"{key}={default}"]) == Config(), f"the default of {key} as printed is a valid override"
    assert "run.batch" in keys
    assert "optim.d.lr" in keys


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_presets_load(preset):
    config = load_config(preset)
    assert config != Config() or preset.stem == "auto"
    assert preset.read_text().startswith("# "), "a preset says what it is for"
    assert load_config_from_dump(config) == config


def test_there_are_presets():
    assert {"demo"} <= {path.stem for path in PRESETS}


def test_a_merge_may_be_overridden(tmp_path):
    path = tmp_path / "merge.yaml"
    path.write_text("optim:\n  g: &both {lr: 0.001, eps: 0.5}\n  d: {<<: *both, lr: 0.002}\n")
    optim = load_config(path).optim
    assert (optim.g.lr, optim.g.eps, optim.d.lr, optim.d.eps) == (0.001, 0.5, 0.002, 0.5)
