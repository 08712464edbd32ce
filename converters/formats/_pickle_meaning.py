"""Meaning: the nodes of a pickle -> a native tree. What is not on the lists below is refused by name, and never run.

Only data is made: arrays, numbers, texts and containers, each by code of this package from a checked node. A name that no
list has makes no object at all; every one of them is found, with its place in the tree, before the file is refused.

Bounds: a tree deeper than `MAX_DEPTH`, one that contains itself, and one that shares parts until it would unfold to more
than `MAX_LEAVES` leaves (few bytes are enough for that) are errors.
"""

from __future__ import annotations

import collections
import functools
import gc
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bridges.core._errors import UnsupportedError, listing
from bridges.core._flat import join
from converters._errors import CheckpointError
from converters.formats import _pickle_arrays as arrays
from converters.formats import _pickle_names as names
from converters.formats import _pickle_tuples as tuples
from converters.formats._lazy import LazyLeaf, read_leaf
from converters.formats._pickle_arrays import Malformed
from converters.formats._pickle_nodes import Call, Global, Items, Pairs, Payload, name_of, state_of
from converters.formats._pickle_opcodes import MAX_TEXT, parse
from converters.formats._pickle_source import Source, error

MAX_DEPTH = 100
MAX_LEAVES = 4_000_000

Path = tuple[str, ...]


def read(source: Source, namedtuples: tuples.Fields | None = None) -> tuple[Any, list[str]]:
    """Returns the tree of a file's pickle, with lazy leaves, and the paths of the fields that were left out.

    Args:
      source: The file.
      namedtuples: NamedTuple and data classes that the user vouches for: dotted name -> field names in order, or the class.

    Raises:
      CheckpointError: The file is damaged, or names anything that is not on the lists; all such names are given.
      UnsupportedError: A class does not have the fields that it is listed with.
    """
    # The graph is many small objects that all stay: the collector would go through them again and again for nothing.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return _read(source, namedtuples)
    finally:
        if collecting:
            gc.enable()


def _read(source: Source, namedtuples: tuples.Fields | None) -> tuple[Any, list[str]]:
    node, named, dropped = parse(source, arrays.raw_after)
    reader = _Reader(source, tuples.checked(namedtuples))
    tree, damage = None, None
    try:
        tree, _ = reader.build(node, (), 0)
    except CheckpointError as err:
        damage = err
    reader.leave_out_setters(dropped)
    for name in named:  # Those that nothing in the tree needed, or that come after what is damaged.
        if id(name) not in reader.used and not reader.knows(name.name):
            reader.refuse(name, None, None)
    if reader.problems:
        raise CheckpointError(
            f"{source.path} asks for what is no data. Nothing of it was run:\n"
            + listing(dict.fromkeys(reader.problems), 8)
            + "\nWhat is listed nowhere is not read: load the file where it was written and dump dictionaries of arrays."
        ) from damage
    if damage is not None:
        raise damage
    return tree, reader.left_out


class _Reader:
    def __init__(self, source: Source, namedtuples: Mapping[str, tuple[str, ...] | type]):
        self._source, self._namedtuples = source, namedtuples
        self._done: dict[int, tuple[Any, int]] = {}
        self._open: set[int] = set()
        self._outside: set[int] = set()  # The nodes below fields that are not read.
        self.used: set[int] = set()  # The `Global`s that were understood or refused, by identity.
        self.problems: list[str] = []
        self.left_out: list[str] = []

    # Errors ----------------------------------------------------------------------------------------------------------

    def _wrong(self, node: Any, path: Path, text: str) -> CheckpointError:
        offset = getattr(node, "offset", 0)
        return error(self._source, offset, f"{_where(path)}: {text}")

    def knows(self, name: str) -> bool:
        """Whether a name means data wherever it stands."""
        return names.harmless(name) or name in self._namedtuples or tuples.is_known(name)

    def refuse(self, name: Global, path: Path | None, call: Call | None) -> None:
        """Notes that a name is on no list, with where it stands and what can be done."""
        self.used.add(id(name))
        place = f"at {_where(path)}" if path else "" if path is None else "at the top" if call else ""
        text = f"{_shown(name.name)} {place}".strip() + f" (byte {name.offset})"
        text += ": " + names.refusal(_shown(name.name), call)
        self.problems.append(text)

    # Nodes -----------------------------------------------------------------------------------------------------------

    def build(self, node: Any, path: Path, depth: int) -> tuple[Any, int]:
        """Returns the value of a node, and how many leaves it has where it is unfolded."""
        if node is None or isinstance(node, (bool, int, float, str, bytes)):
            return node, 1
        known = self._done.get(id(node))
        if known is not None:
            return known
        if id(node) in self._open:
            raise self._wrong(node, path, "the pickle contains itself here, which no tree of arrays does.")
        if depth > MAX_DEPTH:
            raise self._wrong(
                node, path[:5], f"the pickle is nested more than {MAX_DEPTH} deep: this is no checkpoint."
            )
        self._open.add(id(node))
        if isinstance(node, Pairs):
            found = self._dict({}, node.pairs, node, path, depth)
        elif isinstance(node, Items):
            found = self._items(node.kind, node.items, node, path, depth)
        elif isinstance(node, Call):
            found = self._call(node, path, depth)
        elif isinstance(node, Payload):
            found = self._string(node, path), 1
        else:
            self.refuse(node, path, None)
            found = None, 1
        self._open.discard(id(node))
        if found[1] > MAX_LEAVES:
            raise self._wrong(
                node, path, f"shared parts unfold to more than {MAX_LEAVES} leaves: this is no checkpoint."
            )
        self._done[id(node)] = found
        return found

    def _items(self, kind: type, items: list[Any], node: Any, path: Path, depth: int) -> tuple[Any, int]:
        built = [self.build(item, (*path, str(i)), depth + 1) for i, item in enumerate(items)]
        values = [value for value, _ in built]
        if kind in (set, frozenset) and not all(isinstance(v, (bool, int, float, str, bytes)) for v in values):
            raise self._wrong(node, path, "a set of other things than numbers and texts is not read.")
        return kind(values), 1 + sum(count for _, count in built)

    def _dict(self, into: Any, pairs: list[tuple[Any, Any]], node: Any, path: Path, depth: int) -> tuple[Any, int]:
        total = 1
        for key_node, value_node in pairs:
            key = self._key(key_node, path, depth)
            if key in into:
                raise self._wrong(
                    node, path, f"the key {_shown(repr(key))} stands twice in one dictionary; the file is damaged."
                )
            into[key], count = self.build(value_node, (*path, str(key)), depth + 1)
            total += count
        if not isinstance(into, collections.OrderedDict):
            try:
                sorted(into)
            except TypeError:
                raise self._wrong(
                    node,
                    path,
                    "the keys of this dictionary are of several kinds and have no order: JAX takes no such tree.",
                ) from None
        return into, total

    def _key(self, node: Any, path: Path, depth: int) -> Any:
        key = node if isinstance(node, (str, int)) else self.build(node, path, depth + 1)[0]
        if isinstance(key, np.generic) and key.dtype.kind in "iub":
            key = key.item()
        parts = key if isinstance(key, tuple) else (key,)
        if not all(isinstance(p, (str, bool, int, bytes)) or (isinstance(p, float) and p == p) for p in parts):
            raise self._wrong(node, path, "a key of this dictionary is neither a text nor a number.")
        return key

    def _string(self, node: Payload, path: Path) -> Any:
        if node.length > MAX_TEXT:
            raise self._wrong(node, path, f"a text of {node.length} bytes that belongs to no array is not read.")
        raw = self._source.array(node.offset, (node.length,), np.dtype(np.uint8)).tobytes()
        if not node.text:
            return raw
        try:
            return str(raw, "utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise self._wrong(node, path, "a text is not UTF-8; the file is damaged.") from None

    # Calls -----------------------------------------------------------------------------------------------------------

    def _call(self, call: Call, path: Path, depth: int) -> tuple[Any, int]:
        if not isinstance(call.fn, Global):
            # What is called is no name: the result of a call, most likely. Whatever it was made of is looked at and refused.
            before = len(self.problems)
            self.build(call.fn, path, depth + 1)
            if len(self.problems) == before:
                raise self._wrong(call, path, "what is called here is no name; the file is damaged.")
            return None, 1
        name = call.fn.name
        self.used.add(id(call.fn))
        try:
            if name in names.ARRAYS:
                return arrays.array(self._source, call, _where(path)), 1
            if call.kwargs is not None and not (isinstance(call.kwargs, Pairs) and not call.kwargs.pairs):
                raise Malformed("it is made with keywords, which no data is; the file is damaged")
            if not isinstance(call.args, Items):
                raise Malformed("its arguments are no tuple; the file is damaged")
            return self._known(call, name, call.args.items, path, depth)
        except Malformed as err:
            raise self._wrong(call, path, f"{err}.") from err

    def _known(self, call: Call, name: str, args: list[Any], path: Path, depth: int) -> tuple[Any, int]:
        if name in (names.ORDERED, names.DEFAULT) or name in names.MAPPINGS:
            return self._mapping(call, name, args, path, depth)
        if name in names.LISTS or name in names.SETS:
            made, count = self._one(args, path, depth)
            more, others = self._items(list, call.items, call, path, depth)
            if not isinstance(made, (list, tuple, set, frozenset)):
                raise Malformed("a list of something that has no items; the file is damaged")
            return names.SETS.get(name, list)([*made, *more]), count + others
        if name in names.BYTES:
            found = arrays.encoded(call)
            value = self._string(found, path) if isinstance(found, Payload) else found
            return (value.encode("latin-1", "replace") if isinstance(value, str) else value), 1
        if name in names.COMPLEX:
            return self._complex(args), 1
        if name in names.WRAPPED_ARRAYS:
            return self.build(args[0] if args else None, path, depth + 1)
        if name in names.KEYS:
            return self._key_array(call, path), 1
        state = state_of(call)
        if name in names.NNX_STATES and state is not None:
            return self._field(call, state, names.NNX_MAPPING, path, depth)
        if names.is_nnx_variable(name, state):
            return self._field(call, state or {}, names.NNX_VALUE, path, depth)
        if name == names.DTYPE:
            raise Malformed("a dtype by itself is no leaf of a tree")
        return self._tuple(call, name, args, path, depth)

    def _field(
        self, call: Call, state: Mapping[str, Any], fields: tuple[str, ...], path: Path, depth: int
    ) -> tuple[Any, int]:
        """Returns the first of these fields of an object's state, for the object; the other fields say nothing."""
        field = next((name for name in fields if name in state), None)
        if field is None:
            raise Malformed(f"an object without {' or '.join(fields)}; it is damaged or of an unknown Flax")
        self._leave_out(Items(list, [part for name, part in state.items() if name != field], call.offset))
        return self.build(state[field], path, depth)

    def _one(self, args: list[Any], path: Path, depth: int) -> tuple[Any, int]:
        if len(args) > 1:
            raise Malformed("a container is made of several things; the file is damaged")
        return self.build(args[0], path, depth + 1) if args else ([], 1)

    def _mapping(self, call: Call, name: str, args: list[Any], path: Path, depth: int) -> tuple[Any, int]:
        into: Any = collections.OrderedDict() if name == names.ORDERED else {}
        if name == names.DEFAULT:
            factory = name_of(args[0]).replace("__builtin__", "builtins") if args else ""
            if args and args[0] is not None and factory not in names.FACTORIES:
                raise Malformed("a defaultdict with a factory that is no plain container or number")
            if args and isinstance(args[0], Global):
                self.used.add(id(args[0]))
            into, args = collections.defaultdict(names.FACTORIES.get(factory)), args[1:]
        made, count = self._one(args, path, depth)
        if isinstance(made, Mapping):
            into.update(made)
        elif isinstance(made, (list, tuple)):  # Pairs, as Python 2's OrderedDict has them.
            if not all(
                isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], str) for pair in made
            ):
                raise Malformed("a dictionary of something that has no keys; the file is damaged")
            into.update(made)
        else:
            raise Malformed("a dictionary of something that has no keys; the file is damaged")
        into, more = self._dict(into, call.pairs, call, path, depth)
        return into, count + more

    def _complex(self, args: list[Any]) -> complex:
        if len(args) != 2 or not all(isinstance(a, (int, float)) for a in args):
            raise Malformed("a complex number without two parts; the file is damaged")
        try:
            return complex(*args)
        except OverflowError:
            raise Malformed("a complex number of parts that are too large; the file is damaged") from None

    def _key_array(self, call: Call, path: Path) -> Any:
        """Returns a typed random key, from its implementation's name and its base array."""
        state = dict(call.state.pairs) if isinstance(call.state, Pairs) else {}
        impl, base = state.get("_impl", state.get("impl")), state.get("_base_array")
        if not isinstance(impl, Call) or not isinstance(base, Call) or name_of(base.fn) not in names.ARRAYS:
            raise Malformed("a random key without implementation and values; the file is damaged or of an unknown JAX")
        self.used.add(id(impl.fn))
        args = impl.args.items if isinstance(impl.args, Items) else []
        # The functions of the implementation are named in the file; they are JAX's, taken by the implementation's name.
        self.used.update(id(arg) for arg in args if isinstance(arg, Global))
        texts = [arg for arg in args if isinstance(arg, str)]
        name = next((names.IMPLEMENTATIONS[text] for text in texts if text in names.IMPLEMENTATIONS), None)
        if name is None:
            raise Malformed(
                f"a random key of the unknown implementation {texts}: write jax.random.key_data of it instead"
            )
        self.used.add(id(base.fn))
        values = arrays.array(self._source, base, _where(path))
        return _key_leaf(values, name, f"{self._source.path}, {_where(path)}")

    def _tuple(self, call: Call, name: str, args: list[Any], path: Path, depth: int) -> tuple[Any, int]:
        """Returns a NamedTuple of optax's or the user's list; anything else is refused, its parts looked at too."""
        listed = self._namedtuples.get(name)
        fields = names.DATACLASSES.get(name)
        if call.items or call.pairs:
            listed = fields = None
        state = state_of(call)
        if listed is None and fields is not None and state is not None:
            listed = fields
        if listed is None and state is None and call.new and call.args.items is args:
            listed = tuples.known(name, len(args))
        if listed is None:
            self.refuse(call.fn, path, call)
            for i, part in enumerate([*args, *call.items, *(v for _, v in call.pairs), *(state or {}).values()]):
                self.build(part, (*path, str(i)), depth + 1)
            return None, 1
        cls: Any = listed if isinstance(listed, type) else tuples.made(name, tuple(listed))
        if state is not None:
            if args:
                raise Malformed(f"{name} has values and a state: it is neither a NamedTuple nor a data class")
            missing = [field for field in cls._fields if field not in state]
            if missing:
                raise UnsupportedError(
                    f"{self._source.path}, {_where(path)}: {name} is listed with the fields {', '.join(missing)}, which it"
                    f" does not have. It has {', '.join(list(state)[:20])}."
                )
            for key, part in state.items():
                if key not in cls._fields:
                    self._leave_out(part)
                    self.left_out.append(join((*path, key)))
            if not isinstance(listed, type):
                return self._dict({}, [(field, state[field]) for field in cls._fields], call, path, depth)
            args = [state[field] for field in cls._fields]
        if len(args) != len(cls._fields):
            raise UnsupportedError(
                f"{self._source.path}, {_where(path)}: {name} has {len(args)} values and is listed with the"
                f" {len(cls._fields)} fields {', '.join(cls._fields)}."
            )
        built = [self.build(arg, (*path, field), depth + 1) for arg, field in zip(args, cls._fields, strict=True)]
        return cls._make([value for value, _ in built]), 1 + sum(count for _, count in built)

    def _leave_out(self, node: Any) -> None:
        """Marks the names below a field that is not read (a data class's functions), so that they are no problem."""
        todo = [node]
        while todo:
            part = todo.pop()
            if id(part) in self._outside or not isinstance(part, (Global, Items, Pairs, Call)):
                continue
            self._outside.add(id(part))
            if isinstance(part, Global):
                self.used.add(id(part))
            elif isinstance(part, Items):
                todo += part.items
            elif isinstance(part, Pairs):
                todo += [x for pair in part.pairs for x in pair]
            else:
                todo += [part.fn, part.args, part.kwargs, part.state, *part.items]
                todo += [x for pair in part.pairs for x in pair]

    def leave_out_setters(self, dropped: list[Call]) -> None:
        """Marks the calls that set what is left out up: cloudpickle's `setter(function, state)`, whose result it drops."""
        for call in reversed(dropped):  # A function's own functions are set up before it.
            if isinstance(call.args, Items) and call.args.items and id(call.args.items[0]) in self._outside:
                self._leave_out(call)


def _where(path: Path) -> str:
    return _shown(repr(join(path))) if path else "the top"


def _shown(text: str) -> str:
    """Returns a text of the file as an error may show it: of a line or two, with nothing that a terminal obeys."""
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:201])
    return text if len(text) <= 200 else text[:200] + "…"


def _key_leaf(values: Any, implementation: str, where: str) -> LazyLeaf:
    kind = jax.eval_shape(lambda: jax.random.key(0, impl=implementation))
    width = jax.eval_shape(jax.random.key_data, kind).shape
    shape = tuple(values.shape)
    if values.dtype != np.uint32 or shape[len(shape) - len(width) :] != width:
        raise Malformed(f"a random key of {implementation} with values of the shape {shape}; the file is damaged")
    wrap = functools.partial(jax.random.wrap_key_data, impl=implementation)
    return LazyLeaf(shape[: len(shape) - len(width)], kind.dtype, lambda: wrap(jnp.asarray(read_leaf(values))), where)
