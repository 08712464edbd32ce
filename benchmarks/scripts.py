"""The script that people write instead of a conversion: load, rename, save, each with the format's own library."""

from __future__ import annotations

import pathlib
import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import safetensors.numpy
from flax import serialization, traverse_util


def convert(source: pathlib.Path, target: pathlib.Path) -> None:
    """Reads a file of nested dictionaries, calls every `kernel` a `weight`, and writes it in another format."""
    tree = load(source)
    save(target, {path.replace("/kernel", "/weight"): leaf for path, leaf in tree.items()})


def load(path: pathlib.Path) -> dict[str, Any]:
    """Returns path -> array."""
    match path.suffix:
        case ".npz":
            with np.load(path) as file:
                return {name: file[name] for name in file.files}
        case ".safetensors":
            return safetensors.numpy.load_file(path)
        case ".pkl":
            with path.open("rb") as file:
                return flat(pickle.load(file))
        case ".msgpack":
            return flat(serialization.msgpack_restore(path.read_bytes()))
        case _:
            with ocp.StandardCheckpointer() as checkpointer:
                return flat(checkpointer.restore(path.absolute()))


def save(path: pathlib.Path, arrays: dict[str, Any]) -> None:
    """Writes path -> array, nested where the format nests."""
    match path.suffix:
        case ".npz":
            np.savez(path, **arrays)
        case ".safetensors":
            safetensors.numpy.save_file({name: np.asarray(leaf) for name, leaf in arrays.items()}, path)
        case ".pkl":
            with path.open("wb") as file:
                pickle.dump(traverse_util.unflatten_dict(arrays, sep="/"), file, protocol=5)
        case ".msgpack":
            path.write_bytes(serialization.msgpack_serialize(traverse_util.unflatten_dict(arrays, sep="/")))
        case _:
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(path.absolute(), traverse_util.unflatten_dict(arrays, sep="/"), force=True)


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns path -> array."""
    return traverse_util.flatten_dict(tree, sep="/")
