"""From the entries below a wrapper to native variables: which entries there are, which there should be, how they nest.

A `Template` is made once for each set of paths and then builds the native tree in one call of JAX's own unflattening.
What Linen does not check is checked here: shapes outside of `params`, and entries that no call could use.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax.core import FrozenDict

from bridges._linen._call import Call, is_array, public_methods
from bridges._linen._observe import Spy
from bridges._linen._variables import entry_of, is_leaf, leaf_of, leaves
from bridges.core import _flat
from bridges.core._errors import StructureError, hint, listing
from bridges.core._kind import Kind
from bridges.core._spec import abstract

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
      stock: Whether all modules involved are flax's own.
      fixed: Path -> shape, of the entries whose shape has to be checked here: Linen does so for `params`, and some follow
        the inputs.
    """

    entries: Mapping[str, Any]
    parts: Mapping[str, Any]
    stock: bool
    fixed: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, variables: Any, spy: Spy) -> Expected:
        """Returns what is expected, from the (abstract) variables that `init` made and the spy that watched it."""
        variables = dict(variables)
        entries = {path: entry_of(leaf)[0] for path, leaf in leaves(variables).items()}
        for variable in spy.sown:
            entries = {path: value for path, value in entries.items() if not _flat.under(path, variable)}
        parts = {
            path: jax.tree.map(abstract, part)
            for path, part in _flat.flatten(variables, _is_part).items()
            if not is_array(part) and not is_leaf(part)
        }
        shapes = {path: abstract(value) for path, value in entries.items()}
        free = ("params", *_INPUT_SHAPED)
        fixed = {p: s.shape for p, s in shapes.items() if p.partition(_flat.SEPARATOR)[0] not in free}
        return cls(shapes, parts, spy.stock, fixed)

    def misshapen(self, entries: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
        """Returns (path, value, wanted) of the entries to be checked whose shape is not the expected one."""
        return [
            (path, entries[path], self.entries[path])
            for path, shape in self.fixed.items()
            if path in entries and np.shape(entries[path]) != shape
        ]


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


def expect(call: Call, rngs: Any = None) -> Expected | None:
    """Returns what `init` would make for a call; None if the model cannot be initialised by such a call.

    A call that takes a step with what earlier ones have stored need not be one that `init` could begin with, and an eager
    call may look at the values of its inputs. Where the arguments are wrong, the call itself will say so.
    """
    spy = Spy()
    try:
        with nn.intercept_methods(spy):
            return Expected.of(call.abstract_init(rngs), spy)
    except Exception:
        return None


def check_known(call: Call, paths: Iterable[str], expected: Expected, where: str) -> None:
    """Raises a `StructureError` if entries exist that no call of the module could use.

    Only a module with a single public method can be judged: another method could use them. The arguments decide too:
    flags are tried both ways (auxiliary heads exist in training only). Where arguments are optional or are other Python
    values than flags, nothing is said, unless all modules are flax's own, whose variables do not depend on them.

    Args:
      call: The call at hand.
      paths: Entries below the wrapper.
      expected: What `init` makes for this call.
      where: The wrapper's path.
    """
    unknown = [path for path in paths if path not in expected.entries]
    if not unknown or len(public_methods(type(call.model))) != 1:
        return
    variants = _variants(call, expected.stock)
    if variants is None:
        return
    for variant in variants:
        made = expect(variant)
        unknown = [path for path in unknown if made is None or path not in made.entries]
        if not unknown:
            return
    missing = [path for path in expected.entries if path not in set(paths)]
    lines = [f"{at(where, path)!r}{hint(path, missing)}" for path in unknown]
    raise StructureError(
        f"{type(call.model).__name__} has no use for these entries:\n"
        + listing(lines)
        + "\nRename them, or remove them from the state: state.pop(path)."
    )


def _variants(call: Call, stock: bool) -> list[Call] | None:
    """Returns the call with its flags, given or by default, in all combinations (at most 32).

    None where other Python values than flags decide, which cannot be tried; of `stock` modules these are left as they are.
    """
    method = call.method if callable(call.method) else getattr(type(call.model), call.method or "__call__", None)
    try:
        bound = inspect.signature(method).bind(call.model, *call.args, **call.kwargs)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    bound.apply_defaults()
    parameters = list(bound.signature.parameters.values())[1:]
    variable = {p.kind: p.name for p in parameters if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    named = {p.name: bound.arguments[p.name] for p in parameters if p.name not in variable.values()}
    extra_name = variable.get(inspect.Parameter.VAR_KEYWORD)
    extra = dict(bound.arguments[extra_name]) if extra_name is not None else {}
    flags = [name for name, value in {**named, **extra}.items() if isinstance(value, bool)]
    rest = [value for name, value in named.items() if name not in flags]
    if not stock and (variable or not all(is_array(leaf) for leaf in jax.tree.leaves(rest, is_leaf=_is_none))):
        return None
    variants = []
    for values in itertools.islice(itertools.product((True, False), repeat=len(flags)), 32):
        chosen = dict(zip(flags, values, strict=True))
        bound.arguments.update({name: value for name, value in chosen.items() if name in named})
        if extra_name is not None:
            bound.arguments[extra_name] = {**extra, **{n: v for n, v in chosen.items() if n in extra}}
        variants.append(Call(call.model, call.method, bound.args[1:], bound.kwargs, call.flags))
    return variants


def _is_none(value: Any) -> bool:
    return value is None


def at(where: str, path: str) -> str:
    """Returns the full path of an entry below a wrapper."""
    return f"{where}{_flat.SEPARATOR}{path}" if where else path
