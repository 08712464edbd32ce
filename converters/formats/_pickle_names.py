"""Names: the lists of what a pickle may name, and what is said of a name that is on none.

Each list is a literal table of dotted names, those of old releases too. A name on it is never looked up: the reader has
code of its own for every list.
"""

from __future__ import annotations

from typing import Any

from converters.formats import _pickle_arrays as arrays
from converters.formats._pickle_nodes import Call, Items, state_of

DTYPE = "numpy.dtype"
_MANY, _LONG = 20, 40  # Fields, and letters of one, that a suggestion shows at most.
_JAX_MODULES = (
    "jax._src.array",
    "jax._src.device_array",
    "jax.interpreters.xla",
    "jax.interpreters.pxla",
    "jaxlib.xla_extension",
    "jaxlib._jax",
)
ARRAYS = frozenset(
    (
        *arrays.RECONSTRUCT,
        *arrays.SCALAR,
        *arrays.FROM_BUFFER,
        arrays.JOBLIB,
        *(f"{module}._reconstruct_array" for module in _JAX_MODULES),
        *(f"{module}.reconstruct_device_array" for module in _JAX_MODULES),
    )
)
# Called with an array, and things that an array does not have (weak type, device).
WRAPPED_ARRAYS = frozenset(
    (
        "jax._src.literals.TypedNdArray",
        *(f"{module}.{name}" for module in _JAX_MODULES for name in ("ArrayImpl", "DeviceArray", "_DeviceArray")),
    )
)
BYTES = frozenset((arrays.ENCODE, "builtins.bytes", "builtins.bytearray", "__builtin__.bytes", "__builtin__.bytearray"))

# Mappings of Haiku and Flax that were called with one dictionary, which they stand for; lists likewise.
_HAIKU = "haiku._src.data_structures."
MAPPINGS = frozenset(
    (
        *(
            _HAIKU + n
            for n in ("FlatMapping", "FlatMap", "frozendict", "FrozenDict", "to_haiku_dict", "to_immutable_dict")
        ),
        "flax.core.frozen_dict.FrozenDict",
        "builtins.dict",
        "__builtin__.dict",
    )
)
LISTS = frozenset((_HAIKU + "FrozenList", "builtins.list", "__builtin__.list"))
SETS = {f"{module}.{name}": kind for module in ("builtins", "__builtin__") for name, kind in
         (("set", set), ("frozenset", frozenset))}  # fmt: skip
COMPLEX = frozenset(("builtins.complex", "__builtin__.complex"))
ORDERED = "collections.OrderedDict"
DEFAULT = "collections.defaultdict"
FACTORIES = {"builtins." + f.__name__: f for f in (dict, list, int, float, set, tuple)}

KEYS = frozenset(("jax._src.random.prng.PRNGKeyArray", "jax._src.prng.PRNGKeyArray", "jax._src.prng.PRNGKeyArrayImpl"))
# The tag of a key's implementation, of which old releases kept nothing else -> the name that JAX wants.
IMPLEMENTATIONS = {"fry": "threefry2x32", "threefry2x32": "threefry2x32", "rbg": "rbg", "urbg": "unsafe_rbg",
                    "unsafe_rbg": "unsafe_rbg"}  # fmt: skip

# Data classes of the frameworks whose fields beside these are code.
DATACLASSES = {"flax.training.train_state.TrainState": ("step", "params", "opt_state")}

# `nnx.State` holds a dictionary in one of these fields, an NNX Variable of any class its array; the rest is bookkeeping.
NNX_STATES = frozenset(
    f"flax.nnx.{module}.{name}" for module in ("statelib", "state", "nnx.state") for name in ("State", "FlatState")
)
NNX_MAPPING = ("_mapping",)
NNX_VALUE = ("_raw_value", "raw_value", "value")
_NNX_VARIABLES = ("flax.nnx.variablelib.", "flax.nnx.variables.", "flax.nnx.nnx.variables.", "flax.nnx.rnglib.")


def is_nnx_variable(name: str, state: dict[str, Any] | None) -> bool:
    """Whether an object is an NNX Variable: one of Flax's classes, or one of the user's own that holds the same."""
    known = name.startswith(_NNX_VARIABLES) and any(field in (state or {}) for field in NNX_VALUE)
    return known or {"_raw_value", "_var_metadata", "_trace_state"} <= (state or {}).keys()


def harmless(name: str) -> bool:
    """Whether a name means data wherever it stands, so that nobody needs to have used it."""
    module = name.partition(".")[0]
    lists = (ARRAYS, MAPPINGS, LISTS, SETS, COMPLEX, BYTES, KEYS, WRAPPED_ARRAYS, FACTORIES, arrays.NDARRAY)
    return any(name in names for names in lists) or name in (ORDERED, DEFAULT, DTYPE) or module == "ml_dtypes"


def refusal(name: str, call: Call | None) -> str:
    """Returns what is said of a name on no list: what it looks like there, and what can be done."""
    if name.startswith("cloudpickle."):
        return "a class or function pickled by value (cloudpickle), which is code"
    if name.startswith("joblib."):
        return "arrays in files beside this one (joblib before 0.10); load it and dump it anew"
    fields, count = _looks(call)
    if not fields and not count:
        return "neither an array nor a container"
    about = "an object with these fields" if fields else f"a tuple of {count}"
    says = repr(tuple(fields or ["…"] * count))
    option = ",".join(fields or ["FIELD"] * count)
    return (
        f"{about}. If it is your NamedTuple or data class, say its fields: namedtuples={{{name!r}: {says}}}, or"
        f" --namedtuple {name}={option}"
    )


def _looks(call: Call | None) -> tuple[list[str], int]:
    """Returns what a refused object looks like: the fields of its state, or the number of its values."""
    if call is None or not call.new:
        return [], 0
    state = state_of(call)
    if state is not None:
        names = [n for n in state if n.isidentifier() and not n.startswith("_") and len(n) < _LONG]
        return names[:_MANY], 0
    count = len(call.args.items) if isinstance(call.args, Items) else 0
    return [], count if count <= _MANY else 0
