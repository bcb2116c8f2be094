"""YAML of others: any text gives a configuration or one line, quickly."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stylegan_dist.config import Config, load_config
from stylegan_dist.errors import InputError


def bomb(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"] + [
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "{" + ", ".join(lines) + "}"


MERGES = "".join(f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 9) if i else '{x: 1}'}]}}\n" for i in range(9))
VALUES = ["!!bool foo", '!!int ""', "!!int x", "!!float x", "!!timestamp x", "!!map [a]", "!!seq {a: 1}", "!!set [a]",
          "!!omap x",
          "!!pairs {a: 1}", "!!binary é", "!!null x", "!!str [a]", "!foo x", "!!python/name:os.system", "0x" + "f" * 5000,
          "9" * 5000,
          "1e999", "-.inf", "1:" * 3000 + "1.5", "0b_", "2024-99-99", "2001-01-01 00:00:00 +99:99", "[" * 3000 + "]" * 3000,
          "{" * 100, "&a [*a]", "*nowhere", bomb(9), "? [a]", "@", "`", "%x", "\t", "x\0y", '"\\0"', '"\\ud800"',
          "{a: 1, a: 2}", "x" * 5000, "<<", "{<<: 1}", "{<<: [1]}", "!!merge x", "\ud800", "'", "| x", "- - -",
          "9223372036854775808",
          "1e300", "2147483648", str(10**400)]


def outcome(preset: Path | None, *overrides: str) -> Config | str:
    """The configuration, or the one line of an InputError; anything else is raised."""
    began = time.monotonic()
    try:
        result = load_config(preset, overrides)
    except InputError as error:
        result = str(error)
        assert "\n" not in result
        assert len(result) < 1000
    assert time.monotonic() - began < 600, "a bound against hanging"
    return result


@pytest.mark.parametrize("value", VALUES, ids=lambda value: ascii(value[:20]))
def test_a_strange_value_is_one_line(value, tmp_path):
    keys = ("run.seed", "run.kimg", "run.deterministic", "run.batch", "optim.g.betas", "precision.dtype", "run.dir")
    for key in keys[:1] if value.startswith("[[[") else keys:  # PyYAML looks through 1,024 brackets again and again
        said = outcome(None, f"{key}={value}")
        assert isinstance(said, str) or key == "run.dir" or value in ("1e999", "2147483648")
        path = tmp_path / "x.yaml"
        section, _, name = key.rpartition(".")
        inner = f"{{{name}: {value}}}"
        for part in reversed(section.split(".")):
            inner = f"{{{part}: {inner}}}"
        path.write_bytes(inner.encode("utf-8", "surrogatepass"))
        outcome(path)


@pytest.mark.parametrize("text", [
    bomb(9), MERGES, "a: &a {b: *a}", "run: &r {<<: *r}", "[" * 100_000, "- " * 100_000, "a" * 2**18, b"\xff\xfe\0\0",
    b"\x89PNG\r\n",
    b"\0" * 100, "? {a: 1}\n: 2\n", "0x" + "f" * 5000 + ": 1", "1: 2", "null: 3", "run: {true: 1}", "2024-01-01: 1",
    "--- 1\n--- 2\n",
    "run: {" + "b" * 50_000 + ": 1}", "run: null", "&a a: *a", "run: !!python/object:os.system {}",
], ids=lambda text: ascii(text[:20]))
def test_a_strange_file_is_one_line(text, tmp_path):
    path = tmp_path / "x.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert text == "run: null" or "x.yaml" in outcome(path)


def test_aliases_that_are_meant_work(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("optim: {g: &g {lr: 0.5}, d: *g}\n")
    config = load_config(path)
    assert config.optim.d.lr == config.optim.g.lr == 0.5


def test_a_file_without_end_is_not_read_to_its_end():
    assert "more than" in outcome(Path("/dev/zero"))


@pytest.mark.full
@settings(max_examples=150)
@given(st.text(max_size=200) | st.text("[]{}:,&*!?<-|>'\" \n\tab01.~", max_size=200) | st.binary(max_size=200))
def test_any_text_is_a_configuration_or_one_line(text):
    with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
        file.write(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
        file.flush()
        outcome(Path(file.name))
    if isinstance(text, str):
        outcome(None, text)
        outcome(None, f"run.batch={text}")
        outcome(None, f"run.dir={text}")


# Paths

def test_a_home_folder_is_meant_where_no_shell_has_expanded_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = load_config(None, ["run.dir=~/x", "data.shards=~/a b@2 ~/c@1 d~ s3://x/~", "data.cache=~"])
    assert (config.run.dir, config.data.cache) == ("/home/me/x", "/home/me")
    assert config.data.shards == "/home/me/a b@2 /home/me/c@1 d~ s3://x/~"
    preset = tmp_path / "x.yaml"
    preset.write_text("run: {dir: ~/y}\n")
    assert load_config(preset).run.dir == "/home/me/y"
    assert load_config(None, ["monitor.wandb_name=~/x"]).monitor.wandb_name == "~/x", "no path"


def test_a_blank_before_a_tilde_in_the_name_of_a_folder(tmp_path):
    (tmp_path / "a ~no-such").mkdir()
    assert load_config(None, [f"data.shards={tmp_path}/a ~no-such"]).data.shards == f"{tmp_path}/a ~no-such"


def test_nobody_knows_the_home_folder(monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert "~ stands for no folder here" in outcome(None, "run.dir=~/x")
    assert "~no-such stands for no folder" in outcome(None, "data.shards=a ~no-such/x")


@pytest.mark.parametrize("text", ["a\0b", "a\nb", "a\x1b[31mb", "a\x7f", "a\udcffb", "x" * 70_000])
def test_text_that_no_file_system_and_no_terminal_takes(text):
    for key in ("run.dir", "data.shards", "data.cache", "monitor.wandb_name", "loss.adversarial"):
        assert key in outcome(None, f"{key}={text}")
