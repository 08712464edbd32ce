"""Inputs of a model as the command line writes them: `--input float32[4,8]`, `--input batch.npz`, `--input train=true`.

float32[4,8]        an array of that dtype and shape; random values where values are needed
int32[4,8]<1000     integers from 0 up to, and without, 1000 (without `<`: below 2)
x.npy, x.npz        arrays from a file; those of an archive in order, `arr_0` and numbers as positions, others by name
true, false, none, 3, 1e-5, 'text'   plain values
name=…              any of these, by keyword
"""

from __future__ import annotations

import ast
import pathlib
import re
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bridges.core._errors import BridgeError, hint

_ABSTRACT = re.compile(r"([a-z_]+[0-9a-z_]*)\[([0-9, ]*)\](?:<([0-9]+))?")
_KEYWORD = re.compile(r"([A-Za-z_]\w*)=(?!=)(.+)", re.DOTALL)
_WORDS = {"true": True, "false": False, "none": None}


class InputError(BridgeError, ValueError):
    """An input on the command line cannot be understood."""


def parse(texts: Iterable[str], seed: int | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns positional and keyword arguments.

    Args:
      texts: One an input, in order.
      seed: What random values are made of (standard normal; integers uniform). If None, arrays of which only dtype and
        shape are given stay `jax.ShapeDtypeStruct`.

    Raises:
      InputError: A text is none of the forms above.

    >>> parse(['float32[2,3]', 'train=true'])
    ((ShapeDtypeStruct(shape=(2, 3), dtype=float32),), {'train': True})
    """
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    rng = None if seed is None else np.random.default_rng(seed)
    for text in texts:
        keyword = _KEYWORD.fullmatch(text)
        if keyword and not pathlib.Path(text).exists():
            kwargs[keyword[1]] = _one(keyword[2], text, rng)
        elif text.endswith(".npz"):
            positions, names = _archive(text)
            args += positions
            kwargs.update(names)
        else:
            args.append(_one(text, text, rng))
    return tuple(args), kwargs


def _one(text: str, whole: str, rng: np.random.Generator | None) -> Any:
    if text.endswith(".npy"):
        return _loaded(text)
    if found := _ABSTRACT.fullmatch(text):
        return _array(found[1], found[2], found[3], whole, rng)
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as err:
        raise InputError(
            f"--input {whole}: {text!r} is no input. Write float32[4,8], int32[4,8]<1000, a file x.npz or x.npy, a plain"
            " value (true, 3, 'text'), or name=… of these."
        ) from err
    return value


def _array(dtype: str, shape: str, bound: str | None, whole: str, rng: np.random.Generator | None) -> Any:
    try:
        kind = jnp.dtype(dtype)
        sizes = tuple(int(n) for n in shape.split(",") if n.strip())
    except (TypeError, ValueError) as err:
        names = ("float32", "float64", "bfloat16", "float16", "int32", "int64", "uint8", "bool")
        raise InputError(f"--input {whole}: {dtype!r} is no dtype.{hint(dtype, names)}") from err
    if rng is None:
        return jax.ShapeDtypeStruct(sizes, kind)
    if jnp.issubdtype(kind, jnp.inexact):
        return rng.standard_normal(sizes).astype(kind)
    return rng.integers(0, int(bound or 2), sizes).astype(kind)


def _loaded(file: str) -> Any:
    try:
        return np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as err:
        raise InputError(f"--input {file}: it cannot be read: {err}") from err


def _archive(file: str) -> tuple[list[Any], dict[str, Any]]:
    with _loaded(file) as archive:
        entries = {name: archive[name] for name in archive.files}
    numbered = {int(name.removeprefix("arr_")): x for name, x in entries.items() if name.removeprefix("arr_").isdigit()}
    named = {name: x for name, x in entries.items() if not name.removeprefix("arr_").isdigit()}
    return [numbered[n] for n in sorted(numbered)], named
