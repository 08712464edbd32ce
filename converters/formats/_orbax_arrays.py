"""Arrays of an Orbax item, as TensorStore keeps them: read in blocks, written as they are.

TensorStore holds each chunk of a read or a write beside the array itself. Large arrays are therefore read and written a
few chunks at a time, and written uncompressed, in chunks that are contiguous parts of the array: most of those it takes
from the array's own memory (a compressed chunk is a copy, and weights compress by less than a tenth).

What it does not do: an array that another program wrote as one chunk cannot be read in parts; it is there twice for the
moment.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath

from converters.formats._lazy import read_leaf
from converters.formats._output import begin

_BATCH = 4 << 20  # bytes of small arrays that are written together: each write is a commit of OCDBT, a few milliseconds
_STEP = 32 << 20  # bytes after which those that were written are sent to the disk
_PARTS = 4  # in which an array is written: TensorStore copies a part where it cannot take it as it is
# Bytes of a chunk that is written, and of the chunks that are read at a time. TensorStore's threads each keep some blocks
# of freed memory: with 8 MiB that came to 30 MiB, with 2 MiB to less than 9.
_BLOCK = 2 << 20
# What TensorStore's zarr driver has (0.1.84).
DTYPES = frozenset(
    "bool int2 int4 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bfloat16 float16 float32 float64 complex64"
    " complex128 float4_e2m1fn float8_e3m4 float8_e4m3b11fnuz float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz"
    " float8_e8m0fnu".split()
)


class Stored:
    """How the arrays of an item are stored.

    Args:
      item: The item's directory.
      use_ocdbt: Whether in one OCDBT database, or a directory an array; None: as the files say.
      use_zarr3: Whether as zarr 3.
    """

    def __init__(self, item: pathlib.Path, use_ocdbt: bool | None, use_zarr3: bool):
        self.item, self._use_zarr3 = epath.Path(item.absolute()), use_zarr3
        self._use_ocdbt = ocp.type_handlers.is_ocdbt_checkpoint(self.item) if use_ocdbt is None else use_ocdbt
        self._context = ocp.type_handlers.get_ts_context(use_ocdbt=self._use_ocdbt)

    def info(self, name: str) -> Any:
        """Returns Orbax's description of one array."""
        return ocp.type_handlers.ParamInfo(
            name=name,
            parent_dir=self.item,
            skip_deserialize=False,
            is_ocdbt_checkpoint=self._use_ocdbt,
            use_zarr3=self._use_zarr3,
            ts_context=self._context,
        )

    def open(self, names: Sequence[str]) -> list[Any]:
        """Returns the opened arrays: shapes and dtypes are known, no value is read."""
        specs = [ocp.type_handlers.get_json_tspec_read(self.info(name), use_ocdbt=self._use_ocdbt) for name in names]
        opening = [ts.open(ts.Spec(spec), open=True, read=True, context=self._context) for spec in specs]
        return [store.result() for store in opening]


def read_array(store: Any) -> np.ndarray:
    """Returns the values of an opened array, whatever sharding it was saved with.

    Raises:
      ValueError: From TensorStore: it is damaged.
    """
    dtype = store.dtype.numpy_dtype
    chunk = [size or 1 for size in store.chunk_layout.read_chunk.shape or ()]
    parts = blocks(store.shape, chunk, dtype.itemsize, _BLOCK)
    first = next(parts)
    if store[first].shape == store.shape:
        return store.read().result()
    out = np.empty(store.shape, dtype)
    for part in itertools.chain([first], parts):
        ts.array(out)[part].write(store[part]).result()
    return out


def blocks(shape: Sequence[int], chunk: Sequence[int], itemsize: int, size: int) -> Iterator[tuple[slice, ...]]:
    """Yields the parts of an array that are read or written together: whole chunks, as many as `size` bytes have room for.

    >>> list(blocks((4, 5), (2, 5), itemsize=4, size=50))
    [(slice(0, 2, None), slice(0, 5, None)), (slice(2, 4, None), slice(0, 5, None))]
    """
    steps = list(chunk)
    for axis in reversed(range(len(shape))):
        room = size // (itemsize * math.prod(steps))
        if room > 1:
            steps[axis] = max(1, min(shape[axis], steps[axis] * room))
    starts = itertools.product(*(range(0, max(n, 1), step) for n, step in zip(shape, steps, strict=True)))
    for start in starts:
        yield tuple(slice(at, min(at + step, n)) for at, step, n in zip(start, steps, shape, strict=True))


def chunk_shape(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Returns the largest contiguous part of an array that is no larger than a block; chunks are of nearly equal size.

    >>> chunk_shape((100, 1 << 18), 4), chunk_shape((3, 2), 4), chunk_shape((3, 1 << 20), 4)
    ((2, 262144), (3, 2), (1, 524288))
    """
    out = list(shape)
    for axis, size in enumerate(shape):
        rest = itemsize * math.prod(shape[axis + 1 :])
        parts = math.ceil(size / max(1, _BLOCK // rest))
        out[axis] = math.ceil(size / parts)
        if rest <= _BLOCK:
            break
    return tuple(out)


def read_shards(store: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """Returns an opened array with a sharding; only the shards of this process's devices are read, each once."""
    read: dict[str, np.ndarray] = {}

    def shard(index: Any) -> np.ndarray:
        if str(index) not in read:
            read[str(index)] = store[index].read().result() if index else store.read().result()
        return read[str(index)]

    return jax.make_array_from_callback(tuple(store.shape), sharding, shard)


def sharding_metadata(opened: Stored, names: Sequence[str]) -> list[Any]:
    """Returns Orbax's record of the sharding that each array was saved with; None where there is none."""
    handler = ocp.type_handlers.get_type_handler(jax.Array)
    infos = [opened.info(name) for name in names]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:  # apart from a notebook's own event loop
        return [found.sharding for found in pool.submit(asyncio.run, handler.metadata(infos)).result()]


class Pulled:
    """An array that is read when its turn to be written has come."""

    def __init__(self, leaf: Any):
        self._leaf, self.shape, self.dtype, self.nbytes = leaf, leaf.shape, leaf.dtype, leaf.nbytes

    def read(self) -> np.ndarray:
        """Returns the array in the machine's own byte order."""
        array = np.asarray(read_leaf(self._leaf))
        return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


class PulledHandler(ocp.type_handlers.NumpyHandler):
    """Orbax's handler of NumPy arrays, for those that are read in turn; to a checkpoint reader they are NumPy's."""

    async def serialize(self, values: Any, infos: Any, args: Any = None) -> Any:
        """Writes the arrays. The caller has them brought to the disk: TensorStore waits for it at every commit."""
        context = ts.Context({"file_io_sync": False}, infos[0].ts_context) if infos else None
        begun: set[str] = set()
        waiting = 0
        for part in _batches([value.nbytes for value in values]):
            for info in infos[part]:
                await info.await_path_creation()
            _write([value.read() for value in values[part]], infos[part], context)
            waiting += sum(value.nbytes for value in values[part])
            if waiting >= _STEP:
                begin(infos[0].parent_dir, begun)
                waiting = 0
        return []


class PulledShards(Pulled):
    """A `jax.Array` with a sharding that is made when its turn to be written has come."""

    def read(self) -> Any:
        """Returns the array."""
        return read_leaf(self._leaf)


class ShardsHandler(ocp.type_handlers.ArrayHandler):
    """Orbax's handler of `jax.Array`s, for those that are made in turn; each process writes its shards."""

    async def serialize(self, values: Any, infos: Any, args: Any = None) -> Any:
        """Writes the arrays; nothing is left to wait for."""
        for part in _batches([value.nbytes for value in values]):
            await self._finish([value.read() for value in values[part]], infos[part], args[part])
        return []

    async def _finish(self, arrays: list[Any], infos: Any, args: Any) -> None:
        for commit in await super().serialize(arrays, infos, args):
            commit.result()


def _write(arrays: Sequence[np.ndarray], infos: Sequence[Any], context: Any) -> None:
    # Each `result` waits for a commit; what was started together is committed together.
    opening = [_open(array, info, context) for array, info in zip(arrays, infos, strict=True)]
    if len(arrays) > 1:
        writing = [_start(store.result(), array) for store, array in zip(opening, arrays, strict=True)]
        for write in writing:
            write.result()
        return
    (array,), store = arrays, opening[0].result()
    chunk = chunk_shape(array.shape, array.dtype.itemsize)
    for part in blocks(array.shape, chunk, array.dtype.itemsize, max(_BLOCK, array.nbytes // _PARTS)):
        _start(store[part], array[part]).result()


def _start(store: Any, array: np.ndarray) -> Any:
    return store.write(array, can_reference_source_data_indefinitely=True)


def _open(array: np.ndarray, info: Any, context: Any) -> Any:
    spec = ocp.type_handlers.get_json_tspec_write(
        info,
        use_ocdbt=info.is_ocdbt_checkpoint,
        global_shape=array.shape,
        local_shape=chunk_shape(array.shape, array.dtype.itemsize),
        dtype=array.dtype,
        process_index=ocp.multihost.process_index(),
    )
    return ts.open(ts.Spec(spec), create=True, open=True, context=context)


def _batches(sizes: Sequence[int]) -> Iterator[slice]:
    start, total = 0, 0
    for i, size in enumerate(sizes):
        if i > start and total + size > _BATCH:
            yield slice(start, i)
            start, total = i, 0
        total += size
    yield slice(start, len(sizes))


def shards_registry() -> Any:
    """Returns Orbax's handlers of plain values, and the one of `PulledShards`."""
    handlers = ocp.type_handlers
    own = [(kind, handlers.get_type_handler(kind)) for kind in (int, float, str)]
    shards = ShardsHandler()
    # Asked for jax.Array, where array metadata are kept, it says: nowhere. Else each batch would write over the last's.
    return handlers.create_type_handler_registry(*own, (PulledShards, shards), (jax.Array, shards))


def registry() -> Any:
    """Returns Orbax's own handlers, and the one of `Pulled`."""
    handlers = ocp.type_handlers
    own = [(kind, handlers.get_type_handler(kind)) for kind in handlers.supported_types()]
    return handlers.create_type_handler_registry(*own, (Pulled, PulledHandler()))
