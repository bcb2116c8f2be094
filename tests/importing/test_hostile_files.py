"""Hostile files: each is refused in one line, nothing in it runs, and it takes no memory that it does not fill."""

from __future__ import annotations

import io
import pickle
import struct
import sys
import tracemalloc
import zipfile
from pathlib import Path

import foreign_files as files
import pytest
import tensorflow_files
import torch
from small_networks import stylegan2_generator

from stylegan_dist.errors import InputError
from stylegan_dist.importing import machine
from stylegan_dist.importing.run import import_file
from stylegan_dist.networks.layers import initialize

PROTO = b"\x80\x02"
MARKER = "marker"  # in the folder of a test; what hostile files try to make
_forbidden: list[str] = []
_watching: list[bool] = []


def _audit(event: str, arguments: tuple) -> None:
    if _watching and event in ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class", "os.remove"):
        _forbidden.append(event)


sys.addaudithook(_audit)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refuse(path: Path, message: str) -> None:
    """The file is refused with this message, without any sign of something that ran, and in memory of its size."""
    before = sorted(path.parent.iterdir())
    _forbidden.clear()
    _watching.append(True)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=message) as error:
            import_file(path, path.parent / "run")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        _watching.clear()
    assert not _forbidden
    assert sorted(path.parent.iterdir()) == before, "nothing is written"
    assert not Path(MARKER).exists()
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600
    assert peak < (32 << 20) + 4 * path.stat().st_size


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def call(module: str, name: str, argument: str) -> bytes:
    """Opcodes that call a function with a text, as an unpickler of Python understands them."""
    return f"c{module}\n{name}\n".encode() + text(argument) + b"\x85R"


SYSTEM = call("os", "system", f"touch {MARKER}")
EVAL = call("builtins", "eval", f"open('{MARKER}', 'w')")


LITTLE = b"}" + text("little_endian") + b"\x88s"


def stream(value: bytes, keys: bytes = b"]", numbers: bytes = b"", system: bytes = LITTLE) -> bytes:
    """What torch.save writes in its old format, with these opcodes for the value."""
    magic = PROTO + b"\x8a\x0a" + (0x1950A86A20F9469CFC6C).to_bytes(10, "little") + b"."
    return magic + PROTO + b"M\xe9\x03." + PROTO + system + b"." + PROTO + value + b"." + PROTO + keys + b"." + numbers


def storage(count: int = 1, kind: str = "FloatStorage", key: str = "0") -> bytes:
    """Opcodes of a storage in a stream."""
    size = b"\x8a\x08" + struct.pack("<q", count)
    return b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + size + b"tQ"


KEYS = b"]" + text("0") + b"a"
ONE = stream(storage(), KEYS, struct.pack("<qf", 1, 0.5))  # a storage of one number


def inside(content: bytes) -> bytes:
    """Opcodes of a storage whose bytes these are."""
    return b"ctorch.storage\n_load_from_bytes\nB" + struct.pack("<I", len(content)) + content + b"\x85R"


def tensor(offset: bytes, shape: bytes, stride: bytes) -> bytes:
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + inside(ONE) + offset + shape + stride + b"\x89}tR"


BIG = b"\x8a\x06" + (1 << 40).to_bytes(6, "little")
# What Python's unpickler runs when it reads them.
RUNNING = {
    "os.system": (SYSTEM, r"refused: os\.system at byte 2 "),
    "builtins.eval": (EVAL, r"refused: builtins\.eval at byte 2"),
    "by STACK_GLOBAL": (b"\x8c\x02os\x8c\x06system\x93" + text(f"touch {MARKER}") + b"\x85R",
                        r"refused: os\.system at byte 14"),
    "in a dictionary": (b"}" + text("G_ema") + SYSTEM + b"s", r"refused: os\.system at byte"),
    "below a mark, thrown away": (b"(" + SYSTEM + b"1}", r"refused: os\.system"),
    "by INST": (b"(" + text(f"touch {MARKER}") + b"ios\nsystem\n", r"refused: the opcode INST at byte"),
    "by OBJ": (b"(cos\nsystem\n" + text(f"touch {MARKER}") + b"o", r"refused: os\.system at byte 3"),
    "by getattr": (b"cbuiltins\ngetattr\ncos\nsystem\n\x86R", r"refused: builtins\.getattr"),
    "by a name with a path": (b"\x80\x04\x8c\x05torch\x8c\x0dhub.os.system\x93" + text(f"touch {MARKER}") + b"\x85R",
                              r"refused: torch\.hub\.os\.system"),
}
# What has other ways.
ODD = {
    "in a storage": (inside(stream(SYSTEM)), r"refused: os\.system at byte \d+"),
    "in the first pickle of a storage": (inside(PROTO + SYSTEM + b"."), "a storage that torch.save has not written"),
    "in what a storage says of the system": (inside(stream(storage(), KEYS, system=SYSTEM)), r"os\.system"),
    "in the keys of a storage": (inside(stream(storage(), SYSTEM)), r"os\.system"),
    "a storage in a storage": (inside(stream(inside(ONE))), r"refused: torch\.storage\._load_from_bytes"),
    "source of a module": (b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n}(" + text("type") + text("class")
                           + text("module_src") + text("x") + text("class_name") + SYSTEM + b"u\x85R", r"refused: os\.system"),
    "a persistent object of a text": (b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n" + text("x") + b"\x85R",
                                      "a persistent object without class"),
    "a class by NEWOBJ": (b"csubprocess\nPopen\n(" + text("touch") + text(MARKER) + b"l\x85\x81",
                          r"refused: subprocess\.Popen"),
    "EXT1": (b"\x82\x01", "refused: the opcode EXT1 at byte 2"),
    "EXT4": (b"\x84\x01\x00\x00\x00", "refused: the opcode EXT4"),
    "a persistent id": (text("x") + b"Q", "refused: a persistent id at byte"),
    "PERSID": (b"Px\n", "refused: the opcode PERSID"),
    "a call of a text": (text("x") + b")R", "a call of a str"),
    "a call of a class": (b"ctorch\nFloatStorage\n)R", r"a call of torch\.FloatStorage"),
    "arguments that are none": (b"ccollections\nOrderedDict\n]R", "with a list of arguments"),
    "an object with arguments": (b"ctraining.networks\nGenerator\n" + text("x") + b"\x85\x81", "with arguments"),
    "named arguments": (b"ctraining.networks\nGenerator\n)}" + text("x") + b"\x88s\x92", "with named arguments"),
    "a state for a function": (b"ccollections\nOrderedDict\n}b", "a state for a Name"),
    "a state for a text": (text("x") + b"}b", "a state for a str"),
    "slots": (b"ctraining.networks\nGenerator\n)\x81N}" + text("x") + b"\x88s\x86b", "a state for a Record"),
    "a state with keys that are no names": (b"ctraining.networks\nGenerator\n)\x81}K\x01\x88sb", "a state for a Record"),
    "objects as dtype": (b"cnumpy\ndtype\n" + text("O8") + b"\x89\x88\x87R", "no plain number"),
    "fields in a dtype": (b"cnumpy\ndtype\n" + text("f4") + b"\x89\x88\x87R(K\x03" + text("<") + b"N)}K\x01K\x01K\x00tb",
                          "several fields"),
    "items for a record": (b"ctraining.networks\nGenerator\n)\x81K\x01a", "no list"),
    "items for a text": (text("x") + b"K\x01K\x02s", "no dictionary"),
    "a tuple as key": (b"})K\x01s", "a key that is a tuple"),
    "numbers that collide as keys": (b"}" + BIG + b"K\x01s", "a key that is a int of many digits"),
    "an empty stack": (b"R", "a value that is not there"),
    "no mark": (b"t", "a mark that is not there"),
    "values left over": (b"NN", "values that nothing uses"),
    "a memo that is empty": (b"h\x05", "number 5 of the memo"),
    "an unknown opcode": (b"\xff", "0xff, which is no opcode"),
    "old protocols": (b"I1\n", "the opcode INT"),
    "a name without an end": (b"c" + b"x" * 1000, "a name without an end"),
    # Sizes
    "a memo number": (b"}r\xff\xff\xff\xff", "no networks of a known project"),
    "bytes": (b"\x8e" + struct.pack("<Q", 1 << 60), "it ends at byte"),
    "a text": (b"\x8d" + struct.pack("<Q", 1 << 60), f"a text of {1 << 60} bytes"),
    "an integer": (b"\x8b" + struct.pack("<I", 1 << 31), "an integer of"),
    "a frame": (b"\x95" + struct.pack("<Q", 1 << 62) + b"}", "no networks of a known project"),
    "a tensor larger than its storage": (tensor(b"K\x00", BIG + b"\x85", b"K\x01\x85"), f"a tensor of {1 << 40} numbers"),
    "a tensor of one number again and again": (tensor(b"K\x00", BIG + b"\x85", b"K\x00\x85"), f"a tensor of {1 << 40} numbers"),
    "a tensor before its storage": (tensor(b"J\xff\xff\xff\xff", b"K\x01\x85", b"K\x01\x85"), "an odd shape"),
    "a tensor behind its storage": (tensor(b"K\x01", b"K\x01\x85", b"K\x01\x85"), "a tensor of 1 numbers in a storage of 1"),
    "a tensor of a text": (b"ctorch._utils\n_rebuild_tensor_v2\n(" + text("x") + b"K\x00))tR", "a tensor without a storage"),
    "a storage that is not there": (inside(stream(storage(1 << 40), KEYS, struct.pack("<q", 1 << 40))), "which are not there"),
    "a storage of another size": (inside(stream(storage(2), KEYS, struct.pack("<qf", 1, 0.5))), "which are not there"),
    "a storage without a key": (inside(stream(storage())), "without the storages that it names"),
    "two storages of a key": (inside(stream(storage(1) + b"0" + storage(2), KEYS)), "POP"),
    "bytes that can be changed": (b"\x96" + struct.pack("<Q", 1 << 60), "it ends at byte"),
    "an array of protocol 5 of another size": (b"cnumpy._core.numeric\n_frombuffer\n(C\x04abcdcnumpy\ndtype\n" + text("f4")
                                               + b"\x89\x88\x87R" + BIG + b"\x85" + text("C") + b"tR", "of 4 bytes"),
    "an array in another order": (b"cnumpy.core.numeric\n_frombuffer\n(C\x04abcdcnumpy\ndtype\n" + text("f4")
                                  + b"\x89\x88\x87RK\x01\x85" + text("A") + b"tR", "an odd order"),
    "a long text as a key": (b"}" + text("x" * (2 << 20)) + b"K\x01s", "a key that is a LongText"),
    "a long text as a name": (b"\x80\x04" + text("x" * (2 << 20)) + b"\x8c\x01x\x93", "a name that is no text"),
    "a long text that is no text": (b"c_codecs\nencode\nX" + struct.pack("<I", 2 << 20) + b"\xff" * (2 << 20)
                                    + text("latin1") + b"\x86R", "a text that is no bytes"),
    "an array of another size": (b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01" + BIG
                                 + b"\x85cnumpy\ndtype\n" + text("f4") + b"\x89\x88\x87R\x89C\x04abcdtb", "of 4 bytes"),
}


@pytest.mark.parametrize("case", RUNNING)
def test_what_python_would_run_is_refused(folder, case):
    opcodes, message = RUNNING[case]
    path = folder / "x.pkl"
    path.write_bytes(PROTO + opcodes + b".")
    if case != "by getattr":  # which only fetches the function
        pickle.loads(path.read_bytes())  # the file is what it should be
        Path(MARKER).unlink()
    refuse(path, message)
    path.write_bytes(stream(opcodes))  # as a file of torch.save
    refuse(path, message.partition(" at byte")[0])


@pytest.mark.parametrize("case", ODD)
def test_odd_files_are_refused(folder, case):
    opcodes, message = ODD[case]
    path = folder / "x.pkl"
    path.write_bytes(PROTO + opcodes + b".")
    refuse(path, message)


def test_depth(folder):
    """Nesting is no recursion of this program, as keys it is refused, and modules that contain themselves have an end."""
    path, deep = folder / "x.pkl", 50_000
    path.write_bytes(PROTO + b"]" * deep + b"a" * (deep - 1) + b".")
    refuse(path, "no networks of a known project")
    path.write_bytes(PROTO + b"}" + b")" + b"\x85" * deep + b"K\x01s.")
    refuse(path, "a key that is a tuple")
    # A module that has itself, 20 times, as a child; within itself that is 20^16 modules.
    names = b"".join(text(f"m{i}") + b"h\x00" for i in range(20))
    module = b"ctraining.networks\nGenerator\n)\x81q\x00}" + text("_modules") + b"}(" + names + b"us" + b"b"
    path.write_bytes(PROTO + b"}" + text("G_ema") + module + b"s.")
    refuse(path, "modules within modules without end")


def test_number_of_objects(folder, monkeypatch):
    monkeypatch.setattr(machine, "MOST_STEPS", 2000)
    path = folder / "x.pkl"
    path.write_bytes(PROTO + b"](" + b"N" * 3000 + b"e.")
    refuse(path, "more than 2,000 objects")
    # Copies of a list count, too: each of these would copy 1,000 items.
    pairs = b"](" + b"K\x01N\x86" * 300 + b"eq\x00"
    path.write_bytes(PROTO + pairs + b"](" + b"ccollections\nOrderedDict\nh\x00\x85R" * 20 + b"e.")
    refuse(path, "more than 2,000 objects")


def archive(folder: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    path = folder / "x.pt"
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def test_archives(folder):
    hostile = {"a/data.pkl": PROTO + SYSTEM + b"."}
    refuse(archive(folder, hostile), r"refused: os\.system at byte 2")
    bomb = archive(folder, {"a/data.pkl": PROTO + b"]" * (64 << 20)}, zipfile.ZIP_DEFLATED)
    refuse(bomb, "compressed, encrypted or too large")
    refuse(archive(folder, {"../../data.pkl": PROTO + SYSTEM + b"."}), r"refused: os\.system")
    refuse(archive(folder, {"/tmp/x": b"", "b/x": b""}), "torch.save has not written")
    refuse(archive(folder, hostile | {"b/data.pkl": b""}), "torch.save has not written")
    refuse(archive(folder, {"a/data.pkl": PROTO + storage(1 << 40) + b"."}), "of the size that it names")
    refuse(archive(folder, {"a/data.pkl": PROTO + storage(1) + b".", "a/data/0": bytes(8)}), "of the size that it names")
    refuse(archive(folder, {"a/data.pkl": PROTO + storage(1, key="../../etc/passwd") + b"."}), "of the size that it names")
    refuse(archive(folder, {"a/data.pkl": PROTO + b"}.", "a/byteorder": b"big"}), "not little-endian")
    refuse(archive(folder, {"a/data.pkl": PROTO + b"c__torch__\nNet\n)\x81.", "a/code/x.py": b""}), r"refused: __torch__\.Net")
    Path("x.pt").write_bytes(b"PK\x03\x04" + bytes(1000))
    refuse(Path("x.pt").resolve(), "a damaged archive")


def test_storages_that_share_bytes_are_not_more_than_the_file(folder):
    """All eight layers of a wide mapping network name one storage: the checkpoint would be larger than the file."""
    network = stylegan2_generator(8, 3, z_dim=256, w_dim=256, channel_base=64, channel_max=8)
    initialize(network, 0, "test")
    state = files.rosinality_generator(network)
    shared = {name: state["style.1.weight"] if name.startswith("style") and value.ndim == 2 else value
              for name, value in state.items()}
    for archived in (True, False):
        path = files.write_rosinality(folder / f"{archived}.pt", archived, g_ema=shared)
        assert path.stat().st_size < 1 << 20 < sum(4 * value.numel() for value in state.values())
        with pytest.raises(InputError, match="bytes of tensors, more than the file"):
            import_file(path, folder / "run")


def test_damaged_files_end_in_one_line(folder):
    """Bytes that are changed or cut off give an error of one line, or networks; nothing else."""
    network = stylegan2_generator(8, 1, z_dim=4, w_dim=4, channel_base=16, channel_max=2)
    initialize(network, 0, "test")
    buffer = io.BytesIO()
    torch.save({"g_ema": files.rosinality_generator(network), "latent_avg": network.w_avg}, buffer)
    sources = {"x.pkl": files.write_nvidia(folder / "x.pkl", G_ema=files.nvidia_generator(network)).read_bytes(),
               "x.pt": buffer.getvalue(),
               "y.pkl": tensorflow_files.write(folder / "y.pkl", tensorflow_files.generator(0, 8)).read_bytes()}
    random = torch.Generator().manual_seed(0)
    outcomes = set()
    for name, content in sources.items():
        for trial in range(60):
            damaged = bytearray(content)
            where = torch.randint(len(content), (1 + trial % 3,), generator=random).tolist()
            for at in where:
                damaged[at] = int(torch.randint(256, (1,), generator=random))
            (folder / name).write_bytes(damaged[:where[0]] if trial % 5 == 0 else damaged)
            try:
                import_file(folder / name, folder / f"{name}-{trial}")
                outcomes.add("")
            except InputError as error:
                outcomes.add(str(error))
    assert "" in outcomes
    assert len(outcomes) > 10
    assert not any("\n" in said for said in outcomes)
    assert not Path(MARKER).exists()
