"""Reads the opcodes of a pickle (protocols 2 to 5) without being able to run anything.

Python's own unpickler imports what a file names and calls it. A subclass of it can refuse names, but its C code still takes
sizes, memo numbers and depths from the file. This machine is written anew. It has no opcode that imports or calls. A name
stays a name (`values.Name`), and the table in `values.py` says which names stand for which inert value. All else is refused,
with the byte at which it stands. No memory is taken that the file does not fill, and the number of steps has a bound.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

MOST_STEPS = 4_000_000     # opcodes, and items that are copied; a published file has some 50,000
MOST_TEXT = 1 << 20        # bytes of a text; NVIDIA's files hold the source of their modules, 40 kB
MOST_NAME = 200            # bytes of each part of a name
MOST_INTEGER = 255         # bytes
SHOWN = 60                 # characters of a name in a message

MOST_KEY = 1 << 31         # of integers that are keys; larger ones can be made to collide


class Refused(ValueError):
    """What is refused, where, in one line."""


class Blob(NamedTuple):
    """Bytes of the file, [start, end). They are not copied."""

    start: int
    end: int


class LongText(NamedTuple):
    """A text of the file that is too long to be one, [start, end): bytes as protocol 2 writes them. It is not copied."""

    start: int
    end: int


def _names() -> dict[int, str]:
    """Opcode -> its name, for messages."""
    return {value[0]: name for name, value in vars(pickle).items()
            if name.isupper() and isinstance(value, bytes) and len(value) == 1}


OPCODES = _names()


class Budget:
    """Steps that remain, over all pickles of a file.

    Raises:
        Refused: `spend` was told more than there are.
    """

    def __init__(self) -> None:
        self.left = MOST_STEPS

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise Refused(f"refused: it has more than {MOST_STEPS:,} objects")


class Machine:
    """One pickle of a file.

    Args:
        data: the file, or the member of an archive.
        start: of the pickle.
        end: of what may be read.
        vocabulary: makes values; see `values.Vocabulary`.
        persistent: makes the value of a persistent id; None: there are none.
    """

    def __init__(self, data: memoryview, start: int, end: int, vocabulary: Any, budget: Budget,
                 persistent: Callable[[Any, int], Any] | None = None):
        self.data, self.position, self.end = data, start, end
        self.vocabulary, self.budget, self.persistent = vocabulary, budget, persistent
        self.at = start  # of the opcode
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # stacks under the marks
        self.memo: dict[int, Any] = {}

    def load(self) -> Any:
        """The value; `position` is behind its pickle then.

        Raises:
            Refused: it holds what no network needs, or is damaged.
        """
        while True:
            self.at = self.position
            opcode = self._take(1)[0]
            if opcode == pickle.STOP[0]:
                value = self._pop()
                if self.stack or self.below:
                    raise self.refused("values that nothing uses")
                return value
            handler = _HANDLERS.get(opcode)
            if handler is None:
                name = OPCODES.get(opcode)
                raise self.refused(f"the opcode {name}" if name else f"{opcode:#04x}, which is no opcode")
            self.budget.spend(1)
            handler(self)

    def refused(self, what: str) -> Refused:
        return Refused(f"refused: {what} at byte {self.at}")

    # Reading

    def _take(self, count: int) -> memoryview:
        if count > self.end - self.position:
            raise Refused(f"refused: it ends at byte {self.end}, in the middle of the value at byte {self.at}")
        start, self.position = self.position, self.position + count
        return self.data[start:self.position]

    def _number(self, form: str) -> int:
        return int(struct.unpack(form, self._take(struct.calcsize(form)))[0])

    def _text(self, length: int, most: int = MOST_TEXT) -> str:
        if length > most:
            raise self.refused(f"a text of {length} bytes")
        try:
            return str(self._take(length), "utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise self.refused("a text that is not UTF-8") from None

    def _line(self) -> str:
        start = self.position
        while self._take(1)[0] != 0x0A:
            if self.position - start > MOST_NAME:
                raise self.refused("a name without an end")
        try:
            return str(self.data[start:self.position - 1], "utf-8")
        except UnicodeDecodeError:
            raise self.refused("a name that is not UTF-8") from None

    # The stack

    def _pop(self) -> Any:
        if not self.stack:
            raise self.refused("a value that is not there")
        return self.stack.pop()

    def _top(self) -> Any:
        if not self.stack:
            raise self.refused("a value that is not there")
        return self.stack[-1]

    def _to_mark(self) -> list[Any]:
        if not self.below:
            raise self.refused("a mark that is not there")
        items, self.stack = self.stack, self.below.pop()
        return items

    def key(self, key: Any) -> Any:
        """Keys are plain: comparing them costs nothing and runs nothing."""
        if isinstance(key, str) or key is None or (isinstance(key, int) and abs(key) < MOST_KEY):
            return key
        raise self.refused(f"a key that is a {type(key).__name__}" + " of many digits" * isinstance(key, int))

    # Opcodes

    def _proto(self) -> None:
        if not 2 <= (version := self._take(1)[0]) <= 5:
            raise self.refused(f"pickle protocol {version} instead of 2 to 5")

    def _mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def _integer(self, length: int) -> None:
        if length > MOST_INTEGER:
            raise self.refused(f"an integer of {length} bytes")
        self.stack.append(int.from_bytes(self._take(length), "little", signed=True))

    def _blob(self, length: int) -> None:
        start = self.position
        self._take(length)
        self.stack.append(Blob(start, self.position))

    def _long_text(self, length: int) -> None:
        if length <= MOST_TEXT:
            self.stack.append(self._text(length))
        else:
            start = self.position
            self._take(length)
            self.stack.append(LongText(start, self.position))

    def _put(self, index: int) -> None:
        self.memo[index] = self._top()

    def _get(self, index: int) -> None:
        if index not in self.memo:
            raise self.refused(f"number {index} of the memo, which is empty")
        self.stack.append(self.memo[index])

    def _tuple(self, count: int) -> None:
        items = [self._pop() for _ in range(count)]
        self.stack.append(tuple(reversed(items)))

    def _list_items(self, items: list[Any]) -> None:
        if type(into := self._top()) is not list:
            raise self.refused(f"items for a {type(into).__name__}, which is no list")
        into.extend(items)

    def _dict_items(self, items: list[Any]) -> None:
        if type(into := self._top()) is not dict:
            raise self.refused(f"items for a {type(into).__name__}, which is no dictionary")
        if len(items) % 2:
            raise self.refused("a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            into[self.key(key)] = value

    def _set_items(self, items: list[Any]) -> None:
        if type(into := self._top()) is not set:
            raise self.refused(f"items for a {type(into).__name__}, which is no set")
        into.update(map(self.key, items))

    def _two(self) -> list[Any]:
        value = self._pop()
        return [self._pop(), value]

    def _new_dict(self) -> None:
        items = self._to_mark()
        self.stack.append({})
        self._dict_items(items)

    def _new_list(self) -> None:
        self.stack.append(self._to_mark())

    def _new_tuple(self) -> None:
        items = self._to_mark()
        self.stack.append(tuple(items))

    def _named(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise self.refused("a name that is no text")
        if max(len(module), len(name)) > MOST_NAME:
            raise self.refused(f"the name {module[:SHOWN]}...")
        value = self.vocabulary.named(module, name)
        if value is None:
            raise self.refused(_plain(f"{module}.{name}"))
        self.stack.append(value)

    def _global(self) -> None:
        module = self._line()
        self._named(module, self._line())

    def _stack_global(self) -> None:
        module, name = self._two()
        self._named(module, name)

    def _reduce(self) -> None:
        """What is a call in other unpicklers."""
        what, arguments = self._two()
        self.stack.append(self.vocabulary.made(self, what, arguments))

    def _new_object(self) -> None:
        what, arguments = self._two()
        self.stack.append(self.vocabulary.made(self, what, arguments))

    def _new_object_ex(self) -> None:
        if type(named := self._pop()) is not dict or named:
            raise self.refused("an object with named arguments")
        self._new_object()

    def _build(self) -> None:
        state = self._pop()
        self.vocabulary.build(self, self._top(), state)

    def _persistent(self) -> None:
        identity = self._pop()
        if self.persistent is None:
            raise self.refused("a persistent id")
        self.stack.append(self.persistent(identity, self.at))


def _plain(name: str) -> str:
    """A name from a file for a message."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)[:2 * SHOWN]


Handler = Callable[[Machine], object]


def _pushes(value: Any) -> Handler:
    return lambda machine: machine.stack.append(value)


def _float(machine: Machine) -> None:
    machine.stack.append(struct.unpack(">d", machine._take(8))[0])


_HANDLERS: dict[int, Handler] = {code[0]: handler for code, handler in [
    (pickle.PROTO, Machine._proto),
    (pickle.FRAME, lambda m: m._take(8)),
    (pickle.MARK, Machine._mark),
    (pickle.NONE, _pushes(None)),
    (pickle.NEWTRUE, _pushes(True)),
    (pickle.NEWFALSE, _pushes(False)),
    (pickle.BININT, lambda m: m.stack.append(m._number("<i"))),
    (pickle.BININT1, lambda m: m.stack.append(m._number("<B"))),
    (pickle.BININT2, lambda m: m.stack.append(m._number("<H"))),
    (pickle.LONG1, lambda m: m._integer(m._number("<B"))),
    (pickle.LONG4, lambda m: m._integer(m._number("<I"))),
    (pickle.BINFLOAT, _float),
    (pickle.SHORT_BINUNICODE, lambda m: m.stack.append(m._text(m._number("<B")))),
    (pickle.BINUNICODE, lambda m: m._long_text(m._number("<I"))),
    (pickle.BINUNICODE8, lambda m: m.stack.append(m._text(m._number("<Q")))),
    (pickle.SHORT_BINBYTES, lambda m: m._blob(m._number("<B"))),
    (pickle.BINBYTES, lambda m: m._blob(m._number("<I"))),
    (pickle.BINBYTES8, lambda m: m._blob(m._number("<Q"))),
    (pickle.BYTEARRAY8, lambda m: m._blob(m._number("<Q"))),
    (pickle.EMPTY_TUPLE, lambda m: m.stack.append(())),
    (pickle.TUPLE1, lambda m: m._tuple(1)),
    (pickle.TUPLE2, lambda m: m._tuple(2)),
    (pickle.TUPLE3, lambda m: m._tuple(3)),
    (pickle.TUPLE, Machine._new_tuple),
    (pickle.EMPTY_LIST, lambda m: m.stack.append([])),
    (pickle.LIST, Machine._new_list),
    (pickle.APPEND, lambda m: m._list_items([m._pop()])),
    (pickle.APPENDS, lambda m: m._list_items(m._to_mark())),
    (pickle.EMPTY_DICT, lambda m: m.stack.append({})),
    (pickle.DICT, Machine._new_dict),
    (pickle.SETITEM, lambda m: m._dict_items(m._two())),
    (pickle.SETITEMS, lambda m: m._dict_items(m._to_mark())),
    (pickle.EMPTY_SET, lambda m: m.stack.append(set())),
    (pickle.ADDITEMS, lambda m: m._set_items(m._to_mark())),
    (pickle.BINPUT, lambda m: m._put(m._number("<B"))),
    (pickle.LONG_BINPUT, lambda m: m._put(m._number("<I"))),
    (pickle.MEMOIZE, lambda m: m._put(len(m.memo))),
    (pickle.BINGET, lambda m: m._get(m._number("<B"))),
    (pickle.LONG_BINGET, lambda m: m._get(m._number("<I"))),
    (pickle.GLOBAL, Machine._global),
    (pickle.STACK_GLOBAL, Machine._stack_global),
    (pickle.REDUCE, Machine._reduce),
    (pickle.NEWOBJ, Machine._new_object),
    (pickle.NEWOBJ_EX, Machine._new_object_ex),
    (pickle.BUILD, Machine._build),
    (pickle.BINPERSID, Machine._persistent),
]}
