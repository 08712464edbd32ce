"""What the formats of single arrays share: a tree as named leaves, and a leaf as a stream of bytes.

A leaf is an array (NumPy's, JAX's, a lazy one) or a plain value. Structure without leaves (None, an empty dictionary, the
`EmptyState` of Optax) is an entry of its own, so that a format can keep it or refuse it, and never loses it silently.
Sequences and NamedTuples are dictionaries by index and by field, as in Flax's state dicts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import IO, Any, BinaryIO

import jax
import numpy as np
from jax.tree_util import default_registry

from bridges.core import _flat
from bridges.core._errors import BridgeError, describe
from converters.formats._lazy import LazyLeaf, read_leaf

# How many bytes a writer handles at once: what is summed is still in the cache when it is written.
BLOCK = 1 << 20
DEEP = 500  # levels of a tree: those who walk it recurse, and msgpack writes 511

_PLAIN = (bool, int, float, complex, str, bytes, np.generic, np.ndarray, jax.Array, LazyLeaf)


def is_empty(node: Any) -> bool:
    """Whether a node of a tree has neither a value nor children: None, `{}`, `()`, an `EmptyState`."""
    if isinstance(node, _PLAIN):
        return False
    level = default_registry.flatten_one_level(node)
    return level is not None and not list(level[0])


def entries(tree: Any) -> dict[str, Any]:
    """Returns `{path: leaf}` with None and empty containers as leaves; an empty tree has no entries.

    Raises:
      BridgeError: The tree cannot be flattened, see `bridges.core._flat.flatten`.

    >>> entries({'a': {'b/c': 1}, 'd': (None, {})})
    {'a/b%2Fc': 1, 'd/0': None, 'd/1': {}}
    """
    flat = _flat.flatten(tree, is_leaf=is_empty)
    return {} if tree is not None and list(flat) == [""] and is_empty(flat[""]) else flat


def problems(tree: Any, reason: Callable[[str, Any], str | None]) -> list[str]:
    """Returns what a format cannot hold, each with its path; nothing is read.

    Args:
      tree: The tree.
      reason: Why the format cannot hold the leaf at a path, or None; asked only about leaves that a file can hold at all.
    """
    try:
        flat = entries(tree)
        _flat.nest({path: None for path in flat if path})  # a `State` may hold an entry and others below it
    except BridgeError as err:
        return [str(err)]
    found = []
    for path, leaf in flat.items():
        if is_half(path):
            found.append(f"{path!r} has a name that is no Unicode text: rename it")
        elif path.count("/") >= DEEP:
            found.append(f"{path[:100]!r}… is more than {DEEP} levels deep")
        elif why := unheld(leaf) or reason(path, leaf):
            found.append(f"{path!r} {why}")
    return found


def is_half(text: str) -> bool:
    """Whether a text holds half of a surrogate pair, which UTF-8 cannot say."""
    return any("\ud800" <= c <= "\udfff" for c in text)


def unheld(leaf: Any) -> str | None:
    """Returns why no file can hold a leaf, whatever the format, or None."""
    if isinstance(leaf, jax.core.Tracer | jax.ShapeDtypeStruct):
        return f"is {describe(leaf)} without values: write the arrays that it stands for"
    if hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
        return (
            f"is {describe(leaf)}, a typed PRNG key, which is more than an array: store jax.random.key_data(key) and"
            " the name of its implementation, and give both to jax.random.wrap_key_data"
        )
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return f"is {describe(leaf)}, parts of which lie in other processes: use the format orbax"
    if isinstance(leaf, np.ma.MaskedArray):
        return "is a masked array, whose mask would be lost: store its data and its mask"
    if not isinstance(leaf, _PLAIN) and not is_empty(leaf):
        return f"is a {type(leaf).__name__}, which is no array"
    return None


def spec(leaf: Any) -> tuple[tuple[int, ...], np.dtype]:
    """Returns the shape and the dtype that a leaf has as a NumPy array; nothing is read."""
    if isinstance(leaf, np.ndarray | np.generic | jax.Array | LazyLeaf):
        return tuple(leaf.shape), np.dtype(leaf.dtype)
    array = np.asarray(leaf)
    return array.shape, array.dtype


def little(dtype: np.dtype) -> np.dtype:
    """Returns the dtype with its bytes in the order in which every format here keeps them."""
    return dtype.newbyteorder("<")


def copy(leaf: Any, dtype: np.dtype, file: BinaryIO | IO[bytes]) -> None:
    """Writes the bytes of a leaf as `blocks` yields them; when it returns, the leaf is let go."""
    for block in blocks(leaf, dtype):
        file.write(block)


def blocks(leaf: Any, dtype: np.dtype) -> Iterator[memoryview]:
    """Yields the bytes of a leaf in row-major order, little endian, read now; whatever its strides are.

    Args:
      leaf: An array, a lazy leaf or a number.
      dtype: What `spec` said; the caller has written it already.
    """
    array = np.asarray(read_leaf(leaf))
    assert array.dtype == dtype, (array.dtype, dtype)
    if not array.size or not dtype.itemsize:
        return
    if array.flags.c_contiguous and dtype == little(dtype):
        flat = array.reshape(-1).view(np.uint8).data
        yield from (flat[at : at + BLOCK] for at in range(0, len(flat), BLOCK))
        return
    if dtype == little(dtype):
        array = array.view(f"V{dtype.itemsize}")  # the iterator need not know the dtype to gather it
    parts = np.nditer(
        array,
        flags=["external_loop", "buffered"],
        order="C",
        op_dtypes=[little(array.dtype)],
        casting="equiv",
        buffersize=max(1, BLOCK // dtype.itemsize),
    )
    for part in parts:
        yield np.ascontiguousarray(part).view(np.uint8).data
