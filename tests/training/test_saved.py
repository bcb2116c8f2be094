"""Reading a checkpoint that somebody has damaged on purpose: its manifest fits, its content does not."""

from __future__ import annotations

import hashlib
import json
import struct
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from launching import finished
from safetensors.torch import load_file, save_file
from tiny_states import INDEX, contents, new_state, save, save_small, step

from stylegan_dist.config import to_dict
from stylegan_dist.errors import InputError
from stylegan_dist.training.checkpoint import Diverged, check_checkpoint, newest_whole_checkpoint
from stylegan_dist.training.run_folder import RunFolder
from stylegan_dist.training.saved import NAMES, SavedTensors, read_manifest
from stylegan_dist.training.snapshot import load_generator

PLACEMENTS = ("device", "sharded", "cpu")


def write_manifest(folder: Path) -> None:
    """One that fits what is there."""
    files = {path.name: {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
             for path in folder.iterdir() if path.name != "manifest.json"}
    (folder / "manifest.json").write_text(json.dumps({"files": files}))


@pytest.fixture
def folder(tmp_path):
    """The checkpoint of a run, in its folder."""
    run = RunFolder(tmp_path)
    state = new_state()
    step(state, 0)
    run.save_config(state.config)
    yield save(state, tmp_path)
    run.close()


def change(folder: Path, name: str, edit) -> None:
    """Change a tensor file or a JSON file, and make the manifest fit."""
    path = folder / name
    if path.suffix == ".json":
        content = json.loads(path.read_text())
        changed = edit(content)
        path.write_text(json.dumps(content if changed is None else changed))
    else:
        tensors = load_file(path)
        edit(tensors)
        save_file(tensors, path)
    if name != "manifest.json":
        write_manifest(folder)


# JSON

def without(record: dict, key: str) -> None:
    del record[key]


MANIFESTS = {
    "none": lambda m: {}, "no files": lambda m: {"files": {}}, "a list": lambda m: [m],
    "files as list": lambda m: {"files": [m]},
    "no g": lambda m: without(m["files"], "g.safetensors"),
    "no optimizer": lambda m: without(m["files"], "optimizer_d.safetensors"),
    "no state": lambda m: without(m["files"], "state.json"),
    "a path": lambda m: m["files"].update({"../x": m["files"]["state.json"]}),
    "an absolute path": lambda m: m["files"].update({"/etc/passwd": m["files"]["state.json"]}),
    "a path to the same": lambda m: m["files"].update({"./g.safetensors": m["files"].pop("g.safetensors")}),
    "another file": lambda m: m["files"].update({"x.pickle": m["files"]["state.json"]}),
    "parts and whole": lambda m: m["files"].update({"g-00001-of-00002.safetensors": m["files"]["g.safetensors"]}),
    "a part": lambda m: m["files"].update({"g-00001-of-00002.safetensors": m["files"].pop("g.safetensors")}),
    "no bytes": lambda m: without(m["files"]["d.safetensors"], "bytes"),
    "negative bytes": lambda m: m["files"]["d.safetensors"].update(bytes=-1),
    "bytes as text": lambda m: m["files"]["d.safetensors"].update(bytes="5"),
    "a number for a file": lambda m: m["files"].update({"d.safetensors": 5}),
    "a short sum": lambda m: m["files"]["d.safetensors"].update(sha256="0"),
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_manifests_that_promise_no_checkpoint(kind, folder):
    change(folder, "manifest.json", MANIFESTS[kind])
    assert "manifest.json is damaged (" in check_checkpoint(folder)
    assert newest_whole_checkpoint(folder.parent.parent)[0] == 0


STATES = {
    **{f"no {key}": partial(without, key=key) for key in ("nimg", "segment", "path_mean", "data", "config")},
    **{f"nimg {value!r}": lambda s, value=value: s.update(nimg=value) for value in (-4, 0, 8, 4.0, True, 10**30, "4", None)},
    "path_mean as text": lambda s: s.update(path_mean="0.5"), "segment null": lambda s: s.update(segment=None),
    "replaced null": lambda s: s.update(replaced=None), "statistics as list": lambda s: s.update(statistics=[1]),
    "a statistic": lambda s: s.update(statistics={"loss": [1.0]}),
    "a count": lambda s: s.update(statistics={"loss": [1.0, -1]}),
    "config as text": lambda s: s.update(config="x"), "data as list": lambda s: s.update(data=[]),
    "fingerprint": lambda s: s["data"].update(fingerprint=None), "resolution": lambda s: s["data"].update(resolution=8.0),
    "odd resolution": lambda s: s["data"].update(resolution=9), "vast resolution": lambda s: s["data"].update(resolution=2**40),
    "channels": lambda s: s["data"].update(channels=0), "classes": lambda s: s["data"].update(num_classes=-1),
    "array": lambda s: s["data"].update(array={}), "array as text": lambda s: s["data"].update(array="float32"),
    "scale": lambda s: s["data"].update(array={"dtype": "float32", "offset": [0.0], "scale": [0.0]}),
    "a list": lambda s: [s],
}


@pytest.mark.parametrize("kind", STATES)
def test_states_that_are_none(kind, folder):
    change(folder, "state.json", STATES[kind])
    assert "state.json is damaged (" in check_checkpoint(folder)
    with pytest.raises(InputError, match=r"state\.json is damaged .*move .*nimg-00000004 away") as caught:
        new_state().restore(folder)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("made_up", [{"resolution": 16}, {"channels": 1}, {"num_classes": 3}, {
    "array": {"dtype": "float32", "offset": [0.0] * 3, "scale": [1.0] * 3}}], ids=lambda made_up: next(iter(made_up)))
def test_a_state_that_does_not_fit_the_data_of_its_fingerprint(made_up, folder):
    change(folder, "state.json", lambda s: s["data"].update(made_up))
    with pytest.raises(InputError, match=r"state\.json is damaged .what it says of the data does not fit"):
        new_state().restore(folder)


@pytest.mark.parametrize("value", [1e300, 10**30, -(10**400), float("nan"), 2**63 - 1])
def test_numbers_that_tensors_cannot_hold(value, folder):
    """They are no reason to end; they may even be a diverging run's own."""
    change(folder, "state.json", lambda s: s.update(path_mean=value, statistics={"loss/g": [value, 1]}))
    problem = check_checkpoint(folder)
    assert problem is None or "state.json is damaged (" in problem
    if problem is None:
        state = new_state()
        state.restore(folder)
        state.statistics.take()


@pytest.mark.parametrize("name", ["manifest.json", "state.json"])
@pytest.mark.parametrize("text", [b"", b"[" * 100_000, b'{"files":' * 5000, b"\xff", b"{} {}", b"\0" * 100, b"9" * 5000])
def test_text_that_is_no_record(name, text, folder):
    (folder / name).write_bytes(text)
    if name == "state.json":
        write_manifest(folder)
    problem = check_checkpoint(folder)
    assert f"{name} is damaged (" in problem
    assert len(problem) < 500
    assert "\n" not in problem


@pytest.mark.parametrize("name", ["manifest.json", "state.json", "d.safetensors"])
def test_a_folder_in_place_of_a_file(name, folder):
    (folder / name).unlink()
    (folder / name).mkdir()
    assert f"{name} is missing" in check_checkpoint(folder)


# Tensors

def first(tensors, shape=True):
    return next(name for name, value in tensors.items() if bool(value.shape) == shape)


CHANGES = {
    "has no": lambda t: t.pop(first(t)), "is not a part of": lambda t: t.update(extra=torch.zeros(2)),
    "has the shape": lambda t: t.update({first(t): torch.zeros(5, 7)}),
    "has the shape ": lambda t: t.update({first(t): t[first(t)].flatten()[None]}),
    "has the type F16": lambda t: t.update({first(t): t[first(t)].half()}),
    "has the type I64": lambda t: t.update({first(t): t[first(t)].long()}),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("words", CHANGES)
def test_tensors_that_do_not_fit_are_named(words, name, folder):
    change(folder, f"{name}.safetensors", CHANGES[words])
    assert check_checkpoint(folder) is None  # it may be that of another network
    with pytest.raises(InputError, match=rf"{name}\.safetensors does not fit .*{words}.*move .* away") as caught:
        new_state(f"ema.placement={PLACEMENTS[len(words) % 3]}").restore(folder)
    assert "\n" not in str(caught.value)
    if name == "g_ema":
        with pytest.raises(InputError, match=rf"g_ema\.safetensors does not fit .*{words}"):
            load_generator(folder.parent.parent, torch.device("cpu"))


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_average_refuses_another(placement, folder):
    change(folder, "g_ema.safetensors", CHANGES["has no"])
    with pytest.raises(InputError, match="g_ema"):
        new_state(f"ema.placement={placement}").restore(folder)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(value, name, folder):
    def spoil(tensors):
        key = next(key for key in tensors if key.endswith(("weight", "exp_avg_sq")))
        tensors[key].view(-1)[-1] = value

    change(folder, f"{name}.safetensors", spoil)
    if name.startswith("optimizer_") and value == float("inf"):  # the square of a large gradient, see `sound`
        assert check_checkpoint(folder) is None
        return
    assert f"{name}.safetensors is damaged" in check_checkpoint(folder)
    with pytest.raises(InputError, match=rf"{name}\.safetensors is damaged .*not finite"):
        new_state().restore(folder)
    with pytest.raises(InputError, match="no whole checkpoint"):
        load_generator(folder.parent.parent, torch.device("cpu"))


def test_large_values_are_finite(tmp_path):
    """Their sum is not."""
    folder = save_small(tmp_path, 1, {"g": {"w": torch.full((4,), 3e38)}})
    assert check_checkpoint(folder) is None
    assert SavedTensors(folder, "g")["w"].isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_a_state_that_has_diverged_is_not_saved(name, tmp_path):
    save_small(tmp_path, 1)
    with pytest.raises(Diverged, match=rf"w in {name}\.safetensors"):
        save_small(tmp_path, 2, {name: {"w": torch.tensor([1.0, float("nan")])}})
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["nimg-00000001"]


def test_vast_gradients_do_not_end_saving(tmp_path):
    """They are finite, so that nothing replaces them; their squares are not."""
    state = new_state()
    step(state, 0)
    for name, network in state.networks.items():
        for parameter in network.parameters():
            parameter.grad = torch.full_like(parameter, 1e30)
        state.optimizers[name].step()
    state.nimg += 4
    folder = save(state, tmp_path)
    assert check_checkpoint(folder) is None
    restored = new_state()
    restored.restore(folder)
    assert contents(restored) == contents(state)


HEADERS = {
    "long": lambda h, size: (1 << 40, h), "negative": lambda h, size: (-1, h), "beyond": lambda h, size: (None, {**h, "x": {
        "dtype": "F32", "shape": [4], "data_offsets": [size, size + 16]}}),
    "overlap": lambda h, size: (None, {**h, "x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}),
    "shape": lambda h, size: (None, {**h, "x": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [size, size]}}),
    "dtype": lambda h, size: (None, {**h, "x": {"dtype": "PICKLE", "shape": [0], "data_offsets": [size, size]}}),
    "float8": lambda h, size: (None, {**h, "x": {"dtype": "F8_E4M3", "shape": [0], "data_offsets": [size, size]}}),
    "text": lambda h, size: (None, "x"), "deep": lambda h, size: (None, b"[" * 100_000),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_headers_that_lie(kind, folder):
    path = folder / "g.safetensors"
    content = path.read_bytes()
    end = 8 + struct.unpack("<q", content[:8])[0]
    length, header = HEADERS[kind](json.loads(content[8:end]), len(content) - end)
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<q", len(text) if length is None else length) + text + content[end:])
    write_manifest(folder)
    assert "g.safetensors" in check_checkpoint(folder)
    with pytest.raises(InputError, match=r"g\.safetensors"):
        new_state().restore(folder)


def test_a_tensor_in_two_parts(tmp_path):
    folder = save_small(tmp_path, 1, {"g": {"a": torch.ones(9), "b": torch.ones(9)}}, file_bytes=40)
    save_file({"a": torch.zeros(9)}, folder / "g-00002-of-00002.safetensors")
    write_manifest(folder)
    assert "a is in g-00001-of-00002.safetensors, too" in check_checkpoint(folder)


def test_files_that_the_manifest_does_not_name_are_not_read(tmp_path):
    folder = save_small(tmp_path, 1, {"g": {"a": torch.ones(9), "b": torch.ones(9)}}, file_bytes=40)
    save_file({"a": torch.zeros(9)}, folder / "g.safetensors")
    save_file({"c": torch.zeros(9)}, folder / "g-00003-of-00003.safetensors")
    assert check_checkpoint(folder) is None
    assert list(SavedTensors(folder, "g")) == ["a", "b"]
    assert SavedTensors(folder, "g")["a"].sum() == 9


@pytest.mark.parametrize("optimizer", ["Adam", "SGD"])
def test_the_format_is_as_it_was(optimizer, tmp_path):
    """A checkpoint as the first version wrote it, without what was added since."""
    overrides = [f"optim.{n}.{knob}" for n in "gd" for knob in (f"name={optimizer}", "lr=0.01")]
    original, restored = new_state(*overrides), new_state(*overrides)
    step(original, 0)
    folder = tmp_path / "checkpoints" / "nimg-00000004"
    folder.mkdir(parents=True)
    for name, tensors in original.tensors().items():
        save_file({key: value.clone().contiguous() for key, value in tensors.items()}, folder / f"{name}.safetensors")
    config = to_dict(original.config)
    del config["monitor"]
    (folder / "state.json").write_text(json.dumps({
        "nimg": 4, "segment": 2, "path_mean": original.objective.running["path_mean"].item(),
        "statistics": {"loss/g": [1.5, 2], "grad_nonfinite/g": [3, 0], "loss/d": [float("nan"), 1]},
        "data": {"fingerprint": INDEX.fingerprint, "resolution": 8, "channels": 3, "num_classes": 2}, "config": config,
    }, indent=1))
    write_manifest(folder)
    assert newest_whole_checkpoint(tmp_path) == (4, [])
    restored.restore(folder)
    assert contents(restored) == contents(original)
    assert (restored.segment, restored.replaced) == (3, 0)
    assert restored.statistics.facts()["grad_nonfinite/g"] == [3, 0]
    assert read_manifest(folder)[1]["g_ema"] == ["g_ema.safetensors"]


# Tools

def test_a_generator_is_loaded_without_any_engine(folder: Path):
    """In a fresh process: an engine takes seconds to import, and a tool that draws pictures needs none."""
    done = finished([sys.executable, "-c", f"""
import sys, torch
from stylegan_dist.training.snapshot import load_generator
assert load_generator({str(folder.parent.parent)!r}, torch.device("cpu")).nimg == 4
print([name for name in ("accelerate", "deepspeed", "stylegan_dist.engine") if name in sys.modules])
"""])
    assert done.stdout == "[]\n", done.stderr
