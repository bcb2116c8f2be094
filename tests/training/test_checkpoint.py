"""Checkpoints: bit-exact, and whole or not there at all."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from tiny_states import INDEX, contents, new_state, save, save_small, step

from stylegan_dist.errors import InputError
from stylegan_dist.training.checkpoint import (
    check_checkpoint,
    checkpoint_folder,
    list_checkpoints,
    newest_whole_checkpoint,
)
from stylegan_dist.training.saved import NAMES, SavedData, SavedTensors, load_network, load_state


@pytest.fixture
def tensors():
    """Something small to save."""
    return {"g": {"weight": torch.arange(6.0).reshape(2, 3), "step": torch.tensor(3.0)}}


# Bit-exact

OPTIMIZERS = {
    "Adam": ("optim.{}.weight_decay=0.01",), "AdamW": ("optim.{}.weight_decay=0.01",), "NAdam": (), "RAdam": (), "Adamax": (),
    "SGD": ("optim.{}.momentum=0.9", "optim.{}.nesterov=true"), "RMSprop": ("optim.{}.momentum=0.5",), "Adagrad": (),
    "Adadelta": (), "ASGD": (), "Rprop": (),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_restored_state_continues_bit_for_bit(optimizer, tmp_path):
    overrides = [text.format(n) for n in "gd" for text in ("optim.{}.name=" + optimizer, "optim.{}.lr=0.01",
                                                           *OPTIMIZERS[optimizer])]
    original = new_state(*overrides)
    for number in range(3):
        step(original, number)
    saved = contents(original)
    assert sum(key.startswith("optimizer_g/") for key in saved) > 10
    folder = save(original, tmp_path)
    assert check_checkpoint(folder) is None

    restored = new_state(*overrides)
    assert contents(restored) != saved
    restored.restore(folder)
    assert contents(restored) == saved
    for number in (10, 11):
        step(original, number)
        step(restored, number)
        assert contents(restored) == contents(original)
    assert contents(original) != saved
    assert restored.segment == original.segment + 1


def test_hyper_parameters_belong_to_the_configuration(tmp_path):
    original = new_state("optim.g.lr=0.1")
    step(original, 0)
    folder = save(original, tmp_path)
    restored = new_state("optim.g.lr=0.2", "optim.g.eps=1e-3")
    expected = restored.optimizers["g"].param_groups[0]["lr"]
    restored.restore(folder)
    assert restored.optimizers["g"].param_groups[0]["lr"] == expected != original.optimizers["g"].param_groups[0]["lr"]
    assert restored.optimizers["g"].param_groups[0]["eps"] == 1e-3


def test_parameters_stay_where_the_optimizer_knows_them(tmp_path):
    """Restoring must not replace parameters: the optimizer would go on training the old ones."""
    state = new_state()
    step(state, 0)
    folder = save(state, tmp_path)
    before = [id(p) for network in state.networks.values() for p in network.parameters()]
    state.restore(folder)
    assert [id(p) for network in state.networks.values() for p in network.parameters()] == before
    held = [id(p) for o in state.optimizers.values() for group in o.param_groups for p in group["params"]]
    assert held == before


def test_facts_and_checksums(tmp_path):
    state = new_state()
    step(state, 0)
    facts = load_state(save(state, tmp_path))
    assert facts.nimg == 4
    assert facts.data == SavedData(INDEX.fingerprint, resolution=8, channels=3, num_classes=2)
    assert facts.config["run"]["batch"] == 4
    assert torch.tensor(facts.running["path_mean"]) == state.objective.running["path_mean"]
    other = new_state()
    assert len(state.checksums()) == 3
    assert all(a != b for a, b in zip(state.checksums(), other.checksums(), strict=True))


def test_channels_last_and_shared_views_are_saved_plain(tmp_path):
    weight = torch.arange(48.0).reshape(2, 3, 4, 2).to(memory_format=torch.channels_last)
    folder = save_small(tmp_path, 1, {"g": {"w": weight, "part": torch.arange(10.0)[::2]}})
    loaded = SavedTensors(folder, "g")
    assert torch.equal(loaded["w"], weight)
    assert torch.equal(loaded["part"], torch.arange(10.0)[::2])


def test_another_network_is_refused_by_name(tmp_path):
    state = new_state()
    step(state, 0)
    folder = save(state, tmp_path)
    wider = new_state("generator.w_dim=16")
    with pytest.raises(InputError, match=r"g\.safetensors does not fit .*shape") as caught:
        load_network(wider.generator, folder, "g")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"d\.safetensors does not fit .*has no"):
        load_network(wider.generator, folder, "d")


def test_a_large_state_is_cut_between_tensors(tmp_path):
    tensors = {"g": {f"w{i}": torch.full((100,), float(i)) for i in range(7)}, "d": {"big": torch.ones(1000)}}
    folder = save_small(tmp_path, 1, tensors, file_bytes=1000)
    names = {path.name for path in folder.iterdir()} - {"state.json", "manifest.json"}
    assert {name for name in names if name.startswith("g-")} == {f"g-{i:05d}-of-00004.safetensors" for i in range(1, 5)}
    assert {name for name in names if not name.startswith("g-")} == {f"{name}.safetensors" for name in NAMES[1:]}
    assert check_checkpoint(folder) is None
    loaded = SavedTensors(folder, "g")
    assert list(loaded) == list(tensors["g"])
    assert all(torch.equal(loaded[name], value) for name, value in tensors["g"].items())
    (folder / "g-00002-of-00004.safetensors").unlink()
    assert "missing" in check_checkpoint(folder)


def test_another_network_is_refused_on_resume(tmp_path):
    state = new_state()
    step(state, 0)
    folder = save(state, tmp_path)
    for override, words in (("generator.w_dim=16", "has the shape"), ("generator.mapping_layers=3", "has no mapping.layers.2")):
        with pytest.raises(InputError, match=rf"g\.safetensors does not fit .*{words}") as caught:
            new_state(override).restore(folder)
        assert "\n" not in str(caught.value)


# Whole or not at all

def test_manifest_names_every_file(tensors, tmp_path):
    folder = save_small(tmp_path, 12800, tensors)
    assert folder == tmp_path / "checkpoints" / "nimg-00012800" == checkpoint_folder(tmp_path, 12800)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    assert set(files) | {"manifest.json"} == {path.name for path in folder.iterdir()}
    assert files["g.safetensors"]["bytes"] == (folder / "g.safetensors").stat().st_size
    assert all(len(entry["sha256"]) == 64 for entry in files.values())


FILES = ("g.safetensors", "d.safetensors", "optimizer_g.safetensors", "state.json", "manifest.json")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip a bit", "cut", "append", "empty", "remove"])
def test_damage_is_found_and_an_older_checkpoint_used(name, damage, tensors, tmp_path):
    for nimg in (100, 200):
        save_small(tmp_path, nimg, tensors)
    assert newest_whole_checkpoint(tmp_path) == (200, [])
    path = checkpoint_folder(tmp_path, 200) / name
    content = bytearray(path.read_bytes())
    if damage == "flip a bit":
        # In the manifest: of a checksum, or the text would be the same JSON.
        content[content.find(b'"sha256": "') + 15 if name == "manifest.json" else len(content) // 2] ^= 1
    path.write_bytes({"flip a bit": content, "cut": content[:-5], "append": content + b"x", "empty": b"",
                      "remove": b""}[damage])
    if damage == "remove":
        path.unlink()
    nimg, lines = newest_whole_checkpoint(tmp_path)
    assert nimg == 100
    assert len(lines) == 1
    assert "nimg-00000200" in lines[0]
    assert "missing" in lines[0] or "damaged" in lines[0]


def test_all_damaged(tensors, tmp_path):
    assert newest_whole_checkpoint(tmp_path) == (0, [])
    folder = save_small(tmp_path, 100, tensors)
    (folder / "g.safetensors").write_bytes(b"no")
    assert newest_whole_checkpoint(tmp_path)[0] == 0
    with pytest.raises(InputError, match=r"g\.safetensors cannot be read"):
        SavedTensors(folder, "g")
    (folder / "state.json").write_text("{")
    with pytest.raises(InputError, match=r"state\.json is damaged"):
        load_state(folder)


def test_remains_of_killed_processes_are_ignored_and_removed(tensors, tmp_path):
    save_small(tmp_path, 100, tensors)
    folder = tmp_path / "checkpoints"
    for remains in (".nimg-00000200.tmp", ".nimg-00000300.removed.tmp"):  # killed while it wrote; while it removed
        shutil.copytree(checkpoint_folder(tmp_path, 100), folder / remains)
    for name in ("nimg-0000000100", "nimg-00000000", "nimg-" + "9" * 200):
        (folder / name).mkdir()
    (folder / "notes").mkdir()
    (folder / "nimg-backup").mkdir()
    (folder / "nimg-99").write_text("not a folder of ours")
    assert list_checkpoints(tmp_path) == [(100, checkpoint_folder(tmp_path, 100))]
    assert newest_whole_checkpoint(tmp_path) == (100, [])
    save_small(tmp_path, 400, tensors)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["nimg-00000000", "nimg-0000000100", "nimg-00000100", "nimg-00000400", "nimg-99", "nimg-" + "9" * 200,
                     "nimg-backup", "notes"]


def test_saving_the_same_place_again_replaces_it(tensors, tmp_path):
    folder = save_small(tmp_path, 100, tensors)
    (folder / "g.safetensors").write_bytes(b"damaged")
    assert save_small(tmp_path, 100, tensors, segment=2) == folder
    assert check_checkpoint(folder) is None
    assert load_state(folder).segment == 2
    assert [path.name for path in folder.parent.iterdir()] == ["nimg-00000100"]


@pytest.mark.parametrize("failing", ["stylegan_dist.training.tensor_file.TensorFile.write", "pathlib.Path.rename",
                                     "stylegan_dist.training.checkpoint._sync", "stylegan_dist.training.checkpoint._measure"])
def test_a_failure_anywhere_leaves_nothing_behind(failing, tensors, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    save_small(tmp_path, 100, tensors)
    with monkeypatch.context() as patch:
        patch.setattr(failing, fail)
        with pytest.raises(InputError, match="No space left"):
            save_small(tmp_path, 200, tensors)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["nimg-00000100"]
    assert newest_whole_checkpoint(tmp_path) == (100, [])


def test_checkpoints_sort_by_number(tmp_path):
    for nimg in (99_999_999, 100_000_000, 5):
        save_small(tmp_path, nimg)
    assert [nimg for nimg, _ in list_checkpoints(tmp_path)] == [5, 99_999_999, 100_000_000]
