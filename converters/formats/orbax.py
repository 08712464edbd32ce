"""Orbax checkpoint directories: structure from their own metadata, leaves one at a time, in and out.

Reading takes what `StandardCheckpointer`, `PyTreeCheckpointer`, `CheckpointManager` and Orbax v1 write, with OCDBT or
without, on any devices: a leaf is a NumPy array, whatever its sharding was. What is written is what
`StandardCheckpointer().restore` reads.

Invariant: one leaf is in memory at a time, whichever way (`_orbax_arrays`).

What it does not do: Orbax writes every key as text and every tuple as a list, so that is how they come back; a typed
target (`like`) has the rest. It keeps no checksum of values.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from bridges.core._errors import BridgeError, describe
from converters._atomic import sync
from converters._errors import CheckpointError
from converters.formats import _orbax_layout as layout
from converters.formats._checkpoint import Checkpoint
from converters.formats._lazy import LazyLeaf, read_leaf
from converters.formats._orbax_arrays import (
    DTYPES,
    Pulled,
    PulledShards,
    Stored,
    read_array,
    read_shards,
    registry,
    sharding_metadata,
    shards_registry,
)

_WAITING = 8  # threads that wait for the disk


def recognises(path: pathlib.Path) -> bool:
    """Whether a path is a directory of Orbax's, finished or not, or an empty one."""
    return layout.looks_like(path)


def read(path: pathlib.Path) -> Checkpoint:
    """Returns what an Orbax directory holds.

    Args:
      path: A checkpoint; a root of `CheckpointManager`, for its latest step; or one step or item below it.

    Returns:
      A tree of dictionaries with string keys and lists, as Orbax has them. Arrays and typed random keys are lazy; numbers
      that were saved as Python's are read. Several items (`Composite`) are one dictionary by item. JSON items and custom
      metadata are texts of `metadata`.

    Raises:
      CheckpointError: It is empty, unfinished or damaged.
    """
    found = layout.items(path)
    trees: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    for name, item in found.items():
        trees[name], custom = _read_item(item)
        metadata |= layout.texts(item)
        metadata |= {key: value if isinstance(value, str) else json.dumps(value) for key, value in custom.items()}
    return Checkpoint(path, "orbax", trees[""] if [*trees] == [""] else trees, metadata)


def _read_item(item: pathlib.Path) -> tuple[Any, dict[str, Any]]:
    content = layout.structure(item)
    rows = layout.rows(item, content)
    impls, strings = layout.key_impls(item), layout.strings(item)
    stored = Stored(item, content.get("use_ocdbt"), bool(content.get("use_zarr3")))
    arrays = [row.name for row in rows if row.typestr not in layout.EMPTY and row.typestr != "string"]
    with _plain(item, "its arrays"):
        stores = dict(zip(arrays, stored.open(arrays), strict=True))
    values: dict[str, Any] = {}
    for row in rows:
        if row.typestr in layout.EMPTY:
            values[row.name] = layout.EMPTY[row.typestr]()
        elif row.typestr == "string":
            values[row.name] = strings.get(row.name, "")
        else:
            leaf = _lazy(stored, row.name, stores[row.name], impls.get(row.name))
            values[row.name] = _scalar(leaf.read()) if row.typestr == "scalar" else leaf
    custom = content.get("custom_metadata")
    return layout.nested(item, rows, values), custom if isinstance(custom, dict) else {}


class StoredLeaf(LazyLeaf):
    """An array of an Orbax item, which a process can also read in part."""

    __slots__ = ("stored", "name", "_store")

    def __init__(self, stored: Stored, name: str, store: Any, read: Callable[[], Any], where: str):
        super().__init__(store.shape, store.dtype.numpy_dtype, read, where)
        self.stored, self.name, self._store = stored, name, store

    def read_sharded(self, sharding: jax.sharding.Sharding) -> jax.Array:
        """Returns the array with a sharding; only the shards of this process's devices are read.

        Raises:
          CheckpointError: It is damaged.
        """
        with _plain(pathlib.Path(self.stored.item), f"the values of {self.name!r}"):
            return read_shards(self._store, sharding)


def saved_shardings(leaves: Iterable[Any]) -> list[Any]:
    """Returns the record of the sharding that each leaf was saved with, `ocp.metadata.NamedShardingMetadata`; else None.

    Raises:
      CheckpointError: Records are damaged.
    """
    found: dict[int, Any] = {}
    items: dict[int, list[StoredLeaf]] = {}
    leaves = list(leaves)
    for leaf in leaves:
        if isinstance(leaf, StoredLeaf):
            items.setdefault(id(leaf.stored), []).append(leaf)
    for group in items.values():
        stored = group[0].stored
        with _plain(pathlib.Path(stored.item), "its shardings"):
            records = sharding_metadata(stored, [leaf.name for leaf in group])
        found.update({id(leaf): record for leaf, record in zip(group, records, strict=True)})
    return [found.get(id(leaf)) for leaf in leaves]


def _lazy(stored: Stored, name: str, store: Any, impl: str | None) -> LazyLeaf:
    item = pathlib.Path(stored.item)
    where = f"{item}: {name}"

    def read() -> np.ndarray:
        with _plain(item, f"the values of {name!r}"):
            return read_array(store)

    if impl is None:
        return StoredLeaf(stored, name, store, read, where)

    def wrap(raw: Any) -> jax.Array:
        return jax.random.wrap_key_data(jnp.asarray(raw), impl=impl)

    with _plain(item, f"the random key {name!r}"):
        key = jax.eval_shape(wrap, jax.ShapeDtypeStruct(store.shape, store.dtype.numpy_dtype))
    return LazyLeaf(key.shape, key.dtype, lambda: wrap(read()), where)


def _scalar(value: np.ndarray) -> Any:
    """Returns Python's number where Orbax made the array of one, NumPy's for its other dtypes."""
    return value.item() if value.dtype in (np.int64, np.float64, np.bool_) and value.ndim == 0 else value[()]


def problems(tree: Any) -> list[str]:
    """Returns what Orbax cannot hold, a line each: what it has no type for, arrays without elements, names that meet."""
    try:
        items, _ = jax.tree_util.tree_flatten_with_path(tree)
    except (TypeError, ValueError) as err:
        return [f"JAX cannot flatten the tree: {err} Make the keys of one dictionary all strings or all integers."]
    if not items:
        return ["the tree has no entry, and Orbax saves none without"]
    if items[0][0] == ():
        return ["the tree is a single value: put it into a dictionary, under a name"]
    out = []
    names: dict[str, str] = {}
    for keys, leaf in items:
        path = jax.tree_util.keystr(keys)
        name = ".".join(_text(key) for key in keys)
        if name in names:
            out.append(f"{path} and {names[name]} would both be stored as {name!r}: rename one of the two")
        names.setdefault(name, path)
        if problem := _problem(leaf, name):
            out.append(f"{path}: {problem}")
    return out


def _text(key: Any) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def _problem(leaf: Any, name: str) -> str:
    if isinstance(leaf, str):
        return "a string under a key with / or ~ would be read from elsewhere" if {"/", "~"} & {*name} else ""
    if isinstance(leaf, (bool, int, float)):
        return "" if np.asarray(leaf).dtype.name in DTYPES else f"{leaf} is too large for an integer of 64 bits"
    if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
        return f"a value of the type {type(leaf).__name__}; arrays, numbers and strings can be held"
    if 0 in leaf.shape:
        return f"{describe(leaf)} has no elements, and Orbax refuses such arrays: leave it out"
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
        return ""
    name = np.dtype(leaf.dtype).name
    return "" if name in DTYPES else f"TensorStore has no dtype {name}: convert it to another"


def write(path: pathlib.Path, tree: Any, metadata: Mapping[str, str]) -> None:
    """Writes a checkpoint directory that `ocp.StandardCheckpointer().restore` reads.

    Leaves that are lazy are read one after another. `jax.Array`s are saved as such, with their shardings.

    Args:
      path: Where to; its directory exists. While it is written it is called `<path>.orbax-checkpoint-tmp`.
      tree: Any pytree without `problems`.
      metadata: Texts to keep as Orbax's custom metadata.

    Raises:
      CheckpointError: The system refuses.
    """
    _save(path, jax.tree.map(_prepared, tree), registry(), metadata)


def save_sharded(path: pathlib.Path, tree: Any) -> None:
    """Writes a checkpoint directory from all processes of a JAX program, each its own shards.

    Args:
      path: Where to, the same for all; must not exist.
      tree: Leaves that give `jax.Array`s with shardings, and Python's numbers and strings. They are read in the same
        order in every process.

    Raises:
      CheckpointError: The system refuses.
    """
    plain = (bool, int, float, str)
    _save(path, jax.tree.map(lambda x: x if isinstance(x, plain) else PulledShards(x), tree), shards_registry(), {})


def _save(path: pathlib.Path, tree: Any, handlers: Any, metadata: Mapping[str, str]) -> None:
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=handlers, use_compression=False)
    args = ocp.args.PyTreeSave(tree, custom_metadata=dict(metadata) or None)
    try:
        with _quiet(), ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(epath.Path(os.path.abspath(path)), args=args)
        if jax.process_index() == 0:
            found = [pathlib.Path(folder, file) for folder, _, files in os.walk(path) for file in (*files, ".")]
            with concurrent.futures.ThreadPoolExecutor(_WAITING) as pool:  # the file system makes one wait of many
                list(pool.map(sync, found))
    except BaseException as err:
        if jax.process_index() == 0:
            for left in path.parent.iterdir():
                if left.name.startswith(path.name + layout.UNFINISHED):
                    shutil.rmtree(left, ignore_errors=True)
        if isinstance(err, (OSError, BridgeError)) or not isinstance(err, Exception):
            raise
        raise CheckpointError(f"{path} was not written: {_first_line(err)}") from err


def _prepared(leaf: Any) -> Any:
    if isinstance(leaf, (bool, int, float, str, np.number)):
        return leaf
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
        return read_leaf(leaf)  # a key: small, and only Orbax's own handler of jax.Array writes it
    return leaf if isinstance(leaf, jax.Array) else Pulled(leaf)


@contextlib.contextmanager
def _plain(item: pathlib.Path, what: str) -> Iterator[None]:
    """Turns whatever Orbax and TensorStore raise on a damaged directory into one error."""
    try:
        with _quiet():
            yield
    except CheckpointError:
        raise
    except MemoryError as err:
        raise CheckpointError(f"{item}: {what} do not fit into memory: {_first_line(err)}") from err
    except Exception as err:
        raise CheckpointError(
            f"{item}: {what} cannot be read: {_first_line(err)} Part of the checkpoint is missing or damaged: copy it"
            " again, or take another step."
        ) from err


def _first_line(err: Exception) -> str:
    text = (str(err).strip() or type(err).__name__).splitlines()[0]
    return text.partition(" [tensorstore_spec")[0].partition(" [source locations")[0][:400].rstrip(". ") + "."


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Orbax from logging a traceback of what is raised as well."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.setLevel(level)
