"""Pickles, read without executing anything, and written as plain dictionaries of NumPy arrays.

A pickle is a program. It is not run here: its opcodes become a graph (`_pickle_opcodes`), and of that graph only what is
known to be data becomes a tree (`_pickle_meaning`), so that pickles of old releases of JAX and Haiku are read by any
release, without Haiku or Optax, and hostile ones do nothing. Arrays stay in the file until somebody asks for them.

What it does not do: import a module because a file names it; keep Haiku's and Flax's immutable mappings, which become
dictionaries; keep `metadata`, for which a pickle has no place.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from converters.formats import _pickle_meaning, _pickle_opcodes, _pickle_source, _pickle_write
from converters.formats._checkpoint import Checkpoint
from converters.formats._pickle_tuples import Fields


def recognises(path: pathlib.Path) -> bool:
    """Whether a file begins as a pickle of protocol 2 to 5 does, plain or within gzip, bz2, xz or zlib."""
    if not path.is_file():
        return False
    start = _pickle_source.head(path, 3)
    return len(start) == 3 and start[0] == 0x80 and 2 <= start[1] <= 5 and _pickle_opcodes.begins(start[2:])


def read(path: pathlib.Path, *, namedtuples: Fields | None = None, max_bytes: int | None = None) -> Checkpoint:
    """Returns what a pickle holds, with lazy leaves.

    Args:
      path: The file.
      namedtuples: The NamedTuple and data classes of your own that the file names: `{'my.module.TrainingState':
        ('params', 'opt_state')}`, the fields in order. A NamedTuple becomes one of that name, made here, and an object
        with attributes a dictionary of those that are listed; with a NamedTuple class in place of the fields, either
        becomes its instance. What was not listed is named in `metadata["left_out"]`. A
        `flax.training.train_state.TrainState` is read by its step, params and opt_state.
      max_bytes: What a compressed file may unpack to; 64 times its size and 64 MiB if None.

    Raises:
      CheckpointError: The file is damaged, is no pickle of the protocols 2 to 5, or names what is no data: nothing of it
        is run, and every such name is given.
      UnsupportedError: A class does not have the fields that it is listed with.
    """
    tree, left_out = _pickle_meaning.read(_pickle_source.opened(path, max_bytes), namedtuples)
    return Checkpoint(path, "pickle", tree, {"left_out": ", ".join(left_out)} if left_out else {})


def problems(tree: Any) -> list[str]:
    """Returns what of a tree a pickle cannot hold, each with its path and what to do."""
    return _pickle_write.problems(tree)


def write(path: pathlib.Path, tree: Any, metadata: Mapping[str, str]) -> None:
    """Writes a tree as a pickle that `pickle.load` reads with NumPy alone (ml_dtypes for bfloat16, optax for its states).

    Args:
      path: A file that does not exist yet; packed by gzip if its name ends in `.gz`.
      tree: A tree without problems. `State`s become nested dictionaries, mappings dictionaries, JAX's arrays NumPy's;
        lists, tuples, OrderedDicts and NamedTuples stay, NamedTuples by their name.
      metadata: Not kept.
    """
    del metadata
    _pickle_write.write(path, tree)
