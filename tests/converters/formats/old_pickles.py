"""Pickles as releases wrote them that no Python of today runs, assembled opcode by opcode.

`Assembler` is Python's own pickler in Python (the same opcodes, memo and frames as the one in C), to which a `Name` stands
for the class or function that a release wrote by name, and a `Reduced` for an object of such a class: neither has to
exist. What each object's `__reduce__` gave is taken from the sources of the releases, cited below. That the assembler
writes what a release writes is tested on releases that do run: see `test_pickle_old.py`.

    python -m tests.converters.formats.old_pickles    writes the files of `FILES` to tests/converters/fixtures/pickle
"""

from __future__ import annotations

import io
import pathlib
import pickle
from typing import Any

import numpy as np

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures" / "pickle"


class Name:
    """A class or function, by module and name."""

    def __init__(self, module: str, name: str):
        self.module, self.name = module, name

    def __call__(self, *args: Any) -> Any:
        raise AssertionError("names are written, not called")


class Reduced:
    """What `fn(*args)` made, its state set: an object's `__reduce__`."""

    def __init__(self, fn: Name, args: tuple, state: Any = None):
        self.fn, self.args, self.state = fn, args, state


class Python2String(bytes):
    """A `str` of Python 2."""


_CHARACTERS: dict[str, str] = {}


class Assembler(pickle._Pickler):  # type: ignore[name-defined,misc]
    dispatch = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        # Pythons differ in whether two texts of one character are one object, which the memo sees.
        text = type(obj) is str and len(obj) == 1
        super().save(_CHARACTERS.setdefault(obj, obj) if text else obj, save_persistent_id)

    def save_name(self, obj: Name) -> None:  # As `save_global` does.
        if self.proto >= 4:
            self.save(obj.module)
            self.save(obj.name)
            self.write(pickle.STACK_GLOBAL)
        else:
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        self.memoize(obj)

    def save_reduced(self, obj: Reduced) -> None:
        if obj.fn is NEWOBJ:
            self.save(obj.args[0])
            self.save(obj.args[1:])
            self.write(pickle.NEWOBJ)
            self.memoize(obj)
        else:
            self.save_reduce(obj.fn, obj.args, obj.state, obj=obj)

    def save_python2(self, obj: Python2String) -> None:
        short = len(obj) < 256
        self.write((b"U" + bytes([len(obj)]) if short else b"T" + len(obj).to_bytes(4, "little")) + bytes(obj))
        self.memoize(obj)

    dispatch[Name], dispatch[Reduced], dispatch[Python2String] = save_name, save_reduced, save_python2


def assemble(tree: Any, protocol: int) -> bytes:
    file = io.BytesIO()
    Assembler(file, protocol).dump(tree)
    return file.getvalue()


# NumPy 1.x (numpy/core/src/multiarray/methods.c, descriptor.c) -----------------------------------------------------------

NEWOBJ = Name("copyreg", "__newobj__")
RECONSTRUCT, NDARRAY = Name("numpy.core.multiarray", "_reconstruct"), Name("numpy", "ndarray")
DTYPE = Name("numpy", "dtype")
_DTYPES: dict[str, Reduced] = {}


def dtype(code: str) -> Reduced:
    if code not in _DTYPES:  # One object for each, as NumPy has.
        order = "|" if code == "b1" else "<"
        _DTYPES[code] = Reduced(DTYPE, (code, False, True), (3, order, None, None, None, -1, -1, 0))
    return _DTYPES[code]


def parts(array: np.ndarray) -> tuple[Name, tuple, tuple]:
    """Returns what NumPy's `__reduce__` gave: function, arguments, state."""
    fortran = array.flags.f_contiguous and not array.flags.c_contiguous
    raw = array.tobytes("F" if fortran else "C")
    return RECONSTRUCT, (NDARRAY, tuple([0]), b"b"), (1, array.shape, dtype(array.dtype.str[1:]), bool(fortran), raw)


def numpy_array(array: np.ndarray) -> Reduced:
    return Reduced(*parts(array))


# JAX -----------------------------------------------------------------------------------------------------------------

# jax/interpreters/xla.py (0.1.75, 0.2.0, 0.2.9), jax/_src/device_array.py (0.2.28 to 0.3.10): "pickle saves and loads just
# like an ndarray".
plain_device_array = numpy_array

_DEVICE_ARRAY = Name("jax._src.device_array", "reconstruct_device_array")  # Its `__reduce__` in 0.3.25 and 0.4.1.
_ARRAY = Name("jax._src.array", "_reconstruct_array")  # jax/_src/array.py in 0.3.25 and later; named_shape until 0.4.


def device_array(array: np.ndarray, fn: Name = _DEVICE_ARRAY, weak_type: bool = False) -> Reduced:
    return Reduced(fn, (*parts(array), {"weak_type": weak_type, "named_shape": {}}))


def jax_array(array: np.ndarray, weak_type: bool = False) -> Reduced:
    return device_array(array, _ARRAY, weak_type)


# Haiku (haiku/_src/data_structures.py) and Optax -----------------------------------------------------------------------

_FLAT_MAPPING = Name("haiku._src.data_structures", "FlatMapping")  # 0.0.3 and later.
_FROZENDICT = Name("haiku._src.data_structures", "frozendict")  # 0.0.2.


def flat_mapping(tree: dict) -> Reduced:
    return Reduced(_FLAT_MAPPING, ({k: flat_mapping(v) if isinstance(v, dict) else v for k, v in tree.items()},))


def frozendict(tree: dict) -> Reduced:
    return Reduced(_FROZENDICT, ({k: frozendict(v) if isinstance(v, dict) else v for k, v in tree.items()},))


def namedtuple(module: str, name: str, *values: Any) -> Reduced:
    return Reduced(NEWOBJ, (Name(module, name), *values))


# Files -----------------------------------------------------------------------------------------------------------------


def values() -> dict[str, dict[str, np.ndarray]]:
    """Returns the parameters of a Haiku MLP that every file holds, one of them large."""
    rng = np.random.default_rng(0)
    shapes = {"mlp/~/linear_0": {"w": (8, 160), "b": (160,)}, "mlp/~/linear_1": {"w": (160, 2), "b": (2,)}}
    return {m: {n: rng.normal(size=s).astype(np.float32) for n, s in leaves.items()} for m, leaves in shapes.items()}


def checkpoint(array: Any, mapping: Any) -> tuple:
    """Returns (params, state, opt_state) with `array` around each array and `mapping` around the parameters."""
    params = {m: {n: array(v) for n, v in leaves.items()} for m, leaves in values().items()}
    counter = array(np.array(7, np.int32))
    moment = {m: {n: array(v * v) for n, v in leaves.items()} for m, leaves in values().items()}
    adam = namedtuple("optax._src.transform", "ScaleByAdamState", counter, mapping(params), mapping(moment))
    state = {
        "bn/~/mean_ema": {"counter": array(np.array(3, np.int32)), "hidden": array(np.arange(6.0).reshape(2, 3).T)}
    }
    # `EmptyState` lived in optax._src.transform first; `ScaleState` was one of its names.
    return mapping(params), mapping(state), (adam, namedtuple("optax._src.transform", "ScaleState"))


def files() -> dict[str, bytes]:
    """Returns the files by name."""
    return {
        "jax-0.2.9-haiku-0.0.4-protocol4.pkl": assemble(checkpoint(plain_device_array, flat_mapping), 4),
        "jax-0.1.75-haiku-0.0.2-protocol3.pkl": assemble(checkpoint(plain_device_array, frozendict), 3),
        "jax-0.3.25-haiku-0.0.9-protocol4.pkl": assemble(checkpoint(device_array, flat_mapping), 4),
        "jax-0.3.25-haiku-0.0.9-protocol2.pkl": assemble(checkpoint(device_array, dict), 2),
        "jax-0.4.1-haiku-0.0.9-protocol5.pkl": assemble(checkpoint(jax_array, dict), 5),
        "python2.pkl": assemble({Python2String(b"w"): Reduced(*python2(values()["mlp/~/linear_0"]["w"]))}, 2),
    }


def python2(array: np.ndarray) -> tuple[Name, tuple, tuple]:
    """Returns what `parts` does, with the strings of Python 2."""
    order = (3, Python2String(b"<"), None, None, None, -1, -1, 0)
    kind = Reduced(DTYPE, (Python2String(array.dtype.str[1:].encode()), False, True), order)
    raw = Python2String(array.tobytes())
    return RECONSTRUCT, (NDARRAY, (0,), Python2String(b"b")), (1, array.shape, kind, False, raw)


if __name__ == "__main__":
    FIXTURES.mkdir(parents=True, exist_ok=True)
    for name, content in files().items():
        (FIXTURES / name).write_bytes(content)
