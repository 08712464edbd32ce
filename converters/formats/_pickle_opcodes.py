"""Opcodes -> syntax: what a pickle says, as a graph of inert nodes. Nothing is looked up, imported, called or decoded.

A pickle is a program for a stack machine. This machine runs it without meaning: a name becomes a `Global`, a call of it
a `Call`, whatever they name. Long strings are not read: they become a `Payload`, a place in the file, so that a pickle of
any size costs what its structure costs. What the nodes mean, and what is refused, is decided by `_pickle_meaning`.

The opcodes are those that protocols 2 to 5 write (Python's Lib/pickletools.py describes each); those that only the text
protocols 0 and 1 write, and those that reach outside the file (persistent ids, extension codes, out-of-band buffers) are
refused by name.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable
from typing import IO, Any, NoReturn

from converters.formats._pickle_nodes import MISSING, Call, Global, Items, Pairs, Payload
from converters.formats._pickle_source import Source, error

LONG = 4096  # Strings from this many bytes on stay in the file.
MAX_OPCODES = 50_000_000  # About ten times what a checkpoint of 100,000 arrays has.
MAX_NODES = 8_000_000
MAX_TEXT = 64 << 20  # For a string that is no array.
_MAX_NAME = 1000
_MAX_INT = 1024
_CUT = "the file ends in the middle of the pickle: it is cut. Copy or write it anew."
_NO_MARK = "an opcode needs a mark that was not set; the file is damaged."

_OUTSIDE = {
    "PERSID": "a persistent id: the arrays lie outside this file (PyTorch's files do this)",
    "BINPERSID": "a persistent id: the arrays lie outside this file (PyTorch's files do this)",
    "EXT1": "an extension code, which means something only to the program that wrote it",
    "EXT2": "an extension code, which means something only to the program that wrote it",
    "EXT4": "an extension code, which means something only to the program that wrote it",
    "NEXT_BUFFER": "an out-of-band buffer: the arrays were kept apart from this file",
    "READONLY_BUFFER": "an out-of-band buffer: the arrays were kept apart from this file",
}


def parse(source: Source, raw_after: Callable[[Call], tuple[bool, int] | None]) -> tuple[Any, list[Global], list[Call]]:
    """Returns the node of a file's pickle, every name in it in the order of the file, and the calls that were dropped.

    Args:
      source: The file.
      raw_after: Says of an object that was just built whether bytes follow it outside the pickle's stream: whether
        padding precedes them, and how many there are.

    Raises:
      CheckpointError: The file is damaged or cut, is no pickle of the protocols 2 to 5, or reaches outside itself.
    """
    with source.open() as file:
        machine = _Machine(source, file, raw_after)
        return machine.run(), machine.names, machine.dropped


class _Machine:
    def __init__(self, source: Source, file: IO[bytes], raw_after: Callable[[Call], tuple[bool, int] | None]):
        self._source, self._file, self._raw_after = source, file, raw_after
        self._read = file.read
        self._stack: list[Any] = []
        self._outer: list[list[Any]] = []  # The stacks below the marks.
        self._memo: dict[int, Any] = {}
        self._nodes = 0
        self._at = 0
        self.names: list[Global] = []
        self.dropped: list[Call] = []

    def run(self) -> Any:
        start = self._file.read(2)
        if len(start) < 2 or start[0] != 0x80 or not 2 <= start[1] <= 5:
            raise error(self._source, 0, "this is no pickle of the protocols 2 to 5.")
        run = {code: getattr(self, name) for code, name in _TABLE.items()}
        read, count = self._file.read, 0
        while True:
            byte = read(1)
            if byte == b".":
                return self._end()
            step = run.get(byte)
            count += 1
            if step is None or count > MAX_OPCODES:
                self._at = self._file.tell()
                self._refuse(byte, count)
            try:
                step()
            except (IndexError, KeyError) as err:  # Of the stack, of a byte that is not there, of the memo.
                raise self._lacking(err) from None

    def _end(self) -> Any:
        self._at = self._file.tell()
        if len(self._stack) != 1 or self._outer:
            raise self._wrong("the pickle ends with its stack not reduced to one object; the file is damaged.")
        if self._at < self._source.size:
            what = "another pickle" if self._file.read(1) == b"\x80" else "other bytes"
            raise self._wrong(
                f"the pickle ends here, and {self._source.size - self._at} bytes of {what} follow. A file of several"
                " pickles is not read: load it where it was written and dump one tuple of all."
            )
        return self._stack[0]

    def _lacking(self, err: LookupError) -> Exception:
        if not self._file.read(1):
            return self._wrong(_CUT)
        if isinstance(err, KeyError):
            return self._wrong("an object is used that was not stored before; the file is damaged.")
        return self._wrong("an opcode needs more than there is on the stack; the file is damaged.")

    def _refuse(self, byte: bytes, count: int) -> NoReturn:
        if not byte:
            raise self._wrong(_CUT)
        if count > MAX_OPCODES:
            raise self._wrong(f"more than {MAX_OPCODES} opcodes: this is no checkpoint.")
        known = next((op for op in pickletools.opcodes if op.code.encode("latin-1") == byte), None)
        if known is None:
            raise self._wrong(f"{byte!r} is no opcode of a pickle; the file is damaged.")
        if known.name in _OUTSIDE:
            raise self._wrong(
                f"{known.name}: {_OUTSIDE[known.name]}. Write the file anew as one pickle of NumPy arrays."
            )
        raise self._wrong(
            f"{known.name} belongs to the text protocols of pickle, which no checkpoint of JAX uses. Load the file where"
            " it was written and dump it with protocol=4."
        )

    def _wrong(self, text: str) -> Exception:
        return error(self._source, self._at or self._file.tell(), text)

    # Reading ---------------------------------------------------------------------------------------------------------

    def _take(self, size: int) -> bytes:
        piece = self._file.read(size)
        if len(piece) < size:
            raise self._wrong(_CUT)
        return piece

    def _uint(self, size: int) -> int:
        return int.from_bytes(self._take(size), "little")

    def _skip(self, size: int) -> int:
        """Returns the place of the next `size` bytes, and goes behind them."""
        place = self._file.tell()
        if size > self._source.size - place:
            raise self._wrong(
                f"a string of {size} bytes begins here and only {self._source.size - place} are left: the file is cut or"
                " damaged. Copy or write it anew."
            )
        self._file.seek(place + size)
        return place

    def _count(self) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise self._wrong(f"more than {MAX_NODES} objects: this is no checkpoint.")

    def _push(self, node: Any) -> None:
        self._count()
        self._stack.append(node)

    def _string(self, size: int) -> None:
        if size >= LONG:
            self._push(Payload(self._skip(size), size))
        else:
            self._stack.append(self._take(size))

    def _text(self, size: int) -> None:
        if size >= LONG:
            self._push(Payload(self._skip(size), size, text=True))
            return
        try:
            self._stack.append(str(self._take(size), "utf-8", "surrogatepass"))
        except UnicodeDecodeError:
            raise self._wrong("a text is not UTF-8; the file is damaged.") from None

    def _line(self) -> str:
        line = self._file.readline(_MAX_NAME)
        if not line.endswith(b"\n"):
            raise self._wrong("a name does not end; the file is damaged.")
        return str(line[:-1], "utf-8", "backslashreplace")

    # Opcodes, as pickletools names them ------------------------------------------------------------------------------

    def do_proto(self) -> None:
        if self._uint(1) > 5:
            raise self._wrong("a protocol above 5.")

    def do_frame(self) -> None:
        size = self._uint(8)  # Only a hint of how much to read at once.
        if size > self._source.size - self._file.tell():
            raise self._wrong(f"a frame of {size} bytes begins here and fewer are left: the file is cut or damaged.")

    def do_none(self) -> None:
        self._stack.append(None)

    def do_true(self) -> None:
        self._stack.append(True)

    def do_false(self) -> None:
        self._stack.append(False)

    def do_binint(self) -> None:
        self._stack.append(int.from_bytes(self._take(4), "little", signed=True))

    def do_binint1(self) -> None:
        self._stack.append(self._read(1)[0])

    def do_binint2(self) -> None:
        self._stack.append(self._uint(2))

    def do_long1(self) -> None:
        self._stack.append(int.from_bytes(self._take(self._uint(1)), "little", signed=True))

    def do_long4(self) -> None:
        size = self._uint(4)
        if size > _MAX_INT:
            raise self._wrong(f"an integer of {size} bytes: this is no checkpoint.")
        self._stack.append(int.from_bytes(self._take(size), "little", signed=True))

    def do_binfloat(self) -> None:
        self._stack.append(struct.unpack(">d", self._take(8))[0])

    def do_short_binunicode(self) -> None:
        self._text(self._read(1)[0])

    def do_binunicode(self) -> None:
        self._text(self._uint(4))

    def do_binunicode8(self) -> None:
        self._text(self._uint(8))

    def do_short_binbytes(self) -> None:
        self._string(self._read(1)[0])

    def do_binbytes(self) -> None:
        self._string(self._uint(4))

    def do_binbytes8(self) -> None:
        self._string(self._uint(8))

    def do_short_binstring(self) -> None:
        self._stack.append(str(self._take(self._uint(1)), "latin-1"))

    def do_binstring(self) -> None:  # Python 2: text and bytes alike.
        size = self._uint(4)
        if size >= LONG:
            self._string(size)
        else:
            self._stack.append(str(self._take(size), "latin-1"))

    def do_empty_list(self) -> None:
        self._push(Items(list, [], self._file.tell()))

    def do_empty_tuple(self) -> None:
        self._push(Items(tuple, [], self._file.tell()))

    def do_empty_set(self) -> None:
        self._push(Items(set, [], self._file.tell()))

    def do_empty_dict(self) -> None:
        self._push(Pairs([], self._file.tell()))

    def do_mark(self) -> None:
        self._count()
        self._outer.append(self._stack)
        self._stack = []

    def _marked(self) -> list[Any]:
        if not self._outer:
            raise self._wrong(_NO_MARK)
        items, self._stack = self._stack, self._outer.pop()
        return items

    def do_pop(self) -> None:
        if self._stack:
            node = self._stack.pop()
            if isinstance(node, Call):
                self.dropped.append(node)
        else:
            self._marked()

    def do_pop_mark(self) -> None:
        self._marked()

    def do_dup(self) -> None:
        self._push(self._stack[-1])

    def _tuple_of(self, size: int) -> None:
        if len(self._stack) < size:
            raise IndexError
        items = self._stack[-size:]
        self._stack[-size:] = ()
        self._push(Items(tuple, items, self._file.tell()))

    def do_tuple1(self) -> None:
        self._tuple_of(1)

    def do_tuple2(self) -> None:
        self._tuple_of(2)

    def do_tuple3(self) -> None:
        self._tuple_of(3)

    def do_tuple(self) -> None:
        self._push(Items(tuple, self._marked(), self._file.tell()))

    def do_list(self) -> None:
        self._push(Items(list, self._marked(), self._file.tell()))

    def do_frozenset(self) -> None:
        self._push(Items(frozenset, self._marked(), self._file.tell()))

    def do_dict(self) -> None:
        self._push(Pairs(self._paired(self._marked()), self._file.tell()))

    def _paired(self, items: list[Any]) -> list[tuple[Any, Any]]:
        if len(items) % 2:
            raise self._wrong("a dictionary's key lacks its value; the file is damaged.")
        return list(zip(items[::2], items[1::2], strict=True))

    def _extend(self, items: list[Any], kinds: tuple[type, ...]) -> None:
        top = self._stack[-1]
        if isinstance(top, Call) or (isinstance(top, Items) and top.kind in kinds):
            top.items.extend(items)
        else:
            raise self._wrong("something is appended to what is no list; the file is damaged.")

    def do_append(self) -> None:
        item = self._stack.pop()
        self._extend([item], (list,))

    def do_appends(self) -> None:
        self._extend(self._marked(), (list,))

    def do_additems(self) -> None:
        self._extend(self._marked(), (set,))

    def do_setitem(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set([(key, value)])

    def do_setitems(self) -> None:
        self._set(self._paired(self._marked()))

    def _set(self, pairs: list[tuple[Any, Any]]) -> None:
        top = self._stack[-1]
        if not isinstance(top, (Call, Pairs)):
            raise self._wrong("an item is set in what is no dictionary; the file is damaged.")
        top.pairs.extend(pairs)

    def _name(self, module: str, name: str) -> None:
        node = Global(f"{module}.{name}", self._file.tell())
        self.names.append(node)
        self._push(node)

    def do_global(self) -> None:
        module = self._line()
        self._name(module, self._line())

    def do_stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise self._wrong("a name is no text; the file is damaged.")
        self._name(module, name)

    def do_reduce(self) -> None:
        args, fn = self._stack.pop(), self._stack.pop()
        self._push(Call(fn, args, None, False, self._file.tell()))

    def do_newobj(self) -> None:
        args, fn = self._stack.pop(), self._stack.pop()
        self._push(Call(fn, args, None, True, self._file.tell()))

    def do_newobj_ex(self) -> None:
        kwargs, args, fn = self._stack.pop(), self._stack.pop(), self._stack.pop()
        self._push(Call(fn, args, kwargs, True, self._file.tell()))

    def do_build(self) -> None:
        state, top = self._stack.pop(), self._stack[-1]
        if not isinstance(top, Call) or top.state is not MISSING:
            raise self._wrong("a state is given to what can have none; the file is damaged.")
        top.state = state
        follows = self._raw_after(top)
        if follows is not None:
            padded, size = follows
            if padded:
                self._take(self._take(1)[0])
            top.raw = Payload(self._skip(size), size)

    def _put(self, index: int) -> None:
        self._count()
        self._memo[index] = self._stack[-1]

    def do_memoize(self) -> None:
        self._put(len(self._memo))

    def do_binput(self) -> None:
        self._put(self._read(1)[0])

    def do_long_binput(self) -> None:
        self._put(self._uint(4))

    def do_binget(self) -> None:
        self._stack.append(self._memo[self._read(1)[0]])

    def do_long_binget(self) -> None:
        self._stack.append(self._memo[self._uint(4)])


# Opcode -> the method that runs it. All that protocols 2 to 5 write but `.`, which ends the loop.
_TABLE: dict[bytes, str] = {
    b"\x80": "do_proto",
    b"\x95": "do_frame",
    b"N": "do_none",
    b"\x88": "do_true",
    b"\x89": "do_false",
    b"J": "do_binint",
    b"K": "do_binint1",
    b"M": "do_binint2",
    b"\x8a": "do_long1",
    b"\x8b": "do_long4",
    b"G": "do_binfloat",
    b"\x8c": "do_short_binunicode",
    b"X": "do_binunicode",
    b"\x8d": "do_binunicode8",
    b"C": "do_short_binbytes",
    b"B": "do_binbytes",
    b"\x8e": "do_binbytes8",
    b"\x96": "do_binbytes8",  # BYTEARRAY8: an array's buffer, never one to be written to.
    b"U": "do_short_binstring",
    b"T": "do_binstring",
    b"]": "do_empty_list",
    b")": "do_empty_tuple",
    b"\x8f": "do_empty_set",
    b"}": "do_empty_dict",
    b"(": "do_mark",
    b"0": "do_pop",
    b"1": "do_pop_mark",
    b"2": "do_dup",
    b"\x85": "do_tuple1",
    b"\x86": "do_tuple2",
    b"\x87": "do_tuple3",
    b"t": "do_tuple",
    b"l": "do_list",
    b"\x91": "do_frozenset",
    b"d": "do_dict",
    b"a": "do_append",
    b"e": "do_appends",
    b"\x90": "do_additems",
    b"s": "do_setitem",
    b"u": "do_setitems",
    b"c": "do_global",
    b"\x93": "do_stack_global",
    b"R": "do_reduce",
    b"\x81": "do_newobj",
    b"\x92": "do_newobj_ex",
    b"b": "do_build",
    b"\x94": "do_memoize",
    b"q": "do_binput",
    b"r": "do_long_binput",
    b"h": "do_binget",
    b"j": "do_long_binget",
}


def begins(byte: bytes) -> bool:
    """Whether a byte is an opcode that can follow a pickle's first one."""
    return byte in _TABLE
