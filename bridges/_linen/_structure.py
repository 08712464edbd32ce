"""From the entries below a wrapper to native variables: which entries there are, which there should be, how they nest.

A `Template` is made once for each set of paths and then builds the native tree in one call of JAX's own unflattening.
What Linen does not check is checked here: shapes outside of `params`, and entries that no call could use.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax.core import FrozenDict

from bridges._linen._call import Call, is_array, public_methods
from bridges._linen._variables import entry_of, is_leaf, leaf_of, leaves
from bridges.core import _flat
from bridges.core._errors import StructureError, hint, listing
from bridges.core._state import Kind

# Their shapes follow the inputs: a cache is as long as the sequence that made it, a perturbation as large as the batch.
_INPUT_SHAPED = ("cache", "perturbations", "intermediates")


class Template:
    """How a set of entries nests in native variables.

    Args:
      kinds: The entries to take, with their kinds (for boxes).
      parts: Variables that are no plain arrays (tuples, trees with integer keys), by path, from the model itself.
    """

    __slots__ = ("paths", "treedef")

    def __init__(self, kinds: Mapping[str, Kind], parts: Mapping[str, Any]):
        order = list(kinds)
        numbers = {path: number for number, path in enumerate(order)}
        nested: dict[str, Any] = {}
        for path, like in parts.items():
            inside = [p for p in order if p != path and _flat.under(p, path)]
            below = {p[len(path) + 1 :]: leaf_of(numbers[p], kinds[p]) for p in inside}
            if below:
                nested[path] = _flat.unflatten(below, like, is_leaf)
                numbers = {p: n for p, n in numbers.items() if not _flat.under(p, path)}
        nested.update({path: leaf_of(number, kinds[path]) for path, number in numbers.items()})
        tree = _flat.nest(nested)
        self.paths = [order[number] for number in jax.tree.leaves(tree)]
        self.treedef: Any = jax.tree.structure(tree)

    def build(self, entries: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the native variables of entries given by path."""
        variables: dict[str, Any] = self.treedef.unflatten([entries[path] for path in self.paths])
        return variables


@dataclasses.dataclass(frozen=True)
class Expected:
    """The variables that a model's own `init` makes for one method and arguments.

    Attributes:
      entries: Path -> array or `jax.ShapeDtypeStruct`; what is sown is not among them.
      parts: Path -> abstract value of variables that are no plain arrays.
    """

    entries: Mapping[str, Any]
    parts: Mapping[str, Any]

    @classmethod
    def of(cls, variables: Any, sown: Iterable[str] = ()) -> Expected:
        """Returns what is expected, from variables with arrays or abstract arrays."""
        variables = dict(variables)
        entries = {path: entry_of(leaf)[0] for path, leaf in leaves(variables).items()}
        for variable in sown:
            entries = {path: value for path, value in entries.items() if not _flat.under(path, variable)}
        parts = {
            path: part
            for path, part in _flat.flatten(variables, _is_part).items()
            if not is_array(part) and not is_leaf(part)
        }
        return cls({path: jax.ShapeDtypeStruct(*_shape(value)) for path, value in entries.items()}, parts)

    def misshapen(self, entries: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
        """Returns (path, value, wanted) of entries outside of `params` whose shape is not the expected one."""
        return [
            (path, entries[path], want)
            for path, want in self.entries.items()
            if path in entries
            and not path.startswith("params/")
            and path.partition(_flat.SEPARATOR)[0] not in _INPUT_SHAPED
            and np.shape(entries[path]) != want.shape
        ]


def _shape(value: Any) -> tuple[tuple[int, ...], Any]:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return tuple(value.shape), value.dtype
    value = jax.eval_shape(lambda: jax.numpy.asarray(value))
    return value.shape, value.dtype


def _is_part(value: Any) -> bool:
    if isinstance(value, (dict, FrozenDict)):
        return not all(isinstance(key, str) for key in value)
    return value is not None


def needs_model(paths: Iterable[str]) -> bool:
    """Whether the paths alone do not say how the entries nest, or hold what Linen would not check."""
    return any(
        not path.startswith("params/") or any(segment.isdigit() for segment in path.split(_flat.SEPARATOR)[2:])
        for path in paths
    )


def check_known(call: Call, paths: Iterable[str], expected: Expected, where: str) -> None:
    """Raises a `StructureError` if entries exist that no call of the module could use.

    Only a module with a single public method can be judged: another method could use them. The arguments decide too:
    flags are tried both ways (auxiliary heads exist in training only), and where other Python values than flags are
    passed, nothing is said.

    Args:
      call: The call at hand.
      paths: Entries below the wrapper.
      expected: What `init` makes for this call.
      where: The wrapper's path.
    """
    unknown = [path for path in paths if path not in expected.entries]
    if not unknown or not _judgeable(call):
        return
    for variant in _variants(call):
        try:
            made = Expected.of(variant.abstract_init()).entries
        except Exception:  # This combination of flags is not one that the model knows.
            continue
        unknown = [path for path in unknown if path not in made]
        if not unknown:
            return
    missing = [path for path in expected.entries if path not in set(paths)]
    lines = [f"{at(where, path)!r}{hint(path, missing)}" for path in unknown]
    raise StructureError(
        f"{type(call.model).__name__} has no use for these entries:\n"
        + listing(lines)
        + "\nRename them, or remove them from the state: state.pop(path)."
    )


def _judgeable(call: Call) -> bool:
    flags = (bool, type(None))
    static = [leaf for leaf in jax.tree.leaves((call.args, dict(call.kwargs))) if not is_array(leaf)]
    return len(public_methods(type(call.model))) == 1 and all(isinstance(leaf, flags) for leaf in static)


def _variants(call: Call) -> Iterator[Call]:
    """Yields the call with its flags, given or by default, in all other combinations; at most 32."""
    method = getattr(type(call.model), call.method or "__call__") if not callable(call.method) else call.method
    try:
        bound = inspect.signature(method).bind(call.model, *call.args, **call.kwargs)
    except (TypeError, ValueError):
        return
    bound.apply_defaults()
    flags = [name for name, value in bound.arguments.items() if isinstance(value, bool) or value is None]
    extra = next((p.name for p in bound.signature.parameters.values() if p.kind is p.VAR_KEYWORD), None)
    given = dict(bound.arguments.get(extra, {})) if extra is not None else {}
    loose = [name for name, value in given.items() if isinstance(value, bool)]
    choices = itertools.product((True, False), repeat=len(flags) + len(loose))
    for values in itertools.islice(choices, 32):
        bound.arguments.update(zip(flags, values, strict=False))
        if extra is not None:
            bound.arguments[extra] = {**given, **dict(zip(loose, values[len(flags) :], strict=False))}
        yield Call(call.model, call.method, bound.args[1:], bound.kwargs)


def at(where: str, path: str) -> str:
    """Returns the full path of an entry below a wrapper."""
    return f"{where}{_flat.SEPARATOR}{path}" if where else path
