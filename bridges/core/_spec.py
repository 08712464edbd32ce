"""Spec: what a model's variables look like, with nothing allocated.

An adapter's `spec(model, *inputs)` makes one; the mapping engine plans between two of them. Beside shapes, dtypes and
kinds it carries the layers that the model is made of, with the hyperparameters that decide what their parameters mean
(epsilon, decay, padding), where the model itself was at hand to be asked.
"""

from __future__ import annotations

import builtins
import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from bridges.core._errors import StructureError, describe
from bridges.core._state import State
from bridges.core._uses import Use


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer instance of a model.

    Attributes:
      type: `'<framework>.<class>'`, for example `'haiku.BatchNorm'` or `'linen.Dense'`.
      hyperparameters: Constructor arguments by name, as the framework's instance reports them; plain values.
      own: The full name of a user's class that derives from this type and has methods of its own in place of the type's:
        its variables are called alike, and what it computes with them is not known.
    """

    type: str
    hyperparameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    own: str = ""

    @classmethod
    def of(
        cls,
        module: builtins.type,
        roots: tuple[builtins.type, ...],
        framework: str,
        hyperparameters: Mapping[str, Any],
        lifted: str = "",
    ) -> Layer:
        """Returns the layer of a module class: of the framework's class that it is or derives from, if there is one.

        Args:
          module: The class.
          roots: The base classes of all modules, which are no layers.
          framework: `'haiku'`, `'linen'` or `'nnx'`.
          hyperparameters: As above.
          lifted: The Python module whose classes stand for the class that they derive from (`nn.remat` and the like).
        """
        package = roots[0].__module__.partition(".")[0] + "."
        users: list[type] = []
        for base in module.__mro__:
            if base in roots:
                break
            if base.__module__.startswith(package) and base.__module__ != lifted:
                own = next((u for u in users if _overrides(u, base)), None)
                return cls(f"{framework}.{base.__name__}", hyperparameters, _full(own) if own else "")
            if base.__module__ != lifted:
                users.append(base)
        return cls(_full(module), hyperparameters)


def _full(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _overrides(user: type, base: type) -> bool:
    """Whether the class has a method of its own, constructors aside, in place of one of the base's."""
    return any(
        inspect.isfunction(value) and inspect.isroutine(getattr(base, name, None))
        for name, value in vars(user).items()
        if name == "__call__" or not name.startswith("__")
        if name not in getattr(base, "__dataclass_fields__", ())
    )


@dataclasses.dataclass(frozen=True)
class Stack:
    """Copies of a module that live in the same entries, each along an axis of its own (scanned layers, ensembles).

    Attributes:
      size: How many copies.
      axes: Collection -> the axis of its entries, counted without the axes of stacks further out; from the end, if it is
        negative. The entries of other collections are the same for all copies.
    """

    size: int
    axes: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Spec:
    """The abstract variables of a model.

    Attributes:
      entries: Path -> `jax.ShapeDtypeStruct`, with kinds.
      framework: `'haiku'`, `'linen'`, `'nnx'` or `'flat'`.
      layers: Module path (without the collection) -> `Layer`; empty when only the variables were at hand.
      stacks: Module path -> the stacks of this very module and all below it, the outermost first. None where there are no
        stacks, or nothing was known of them.
      called: Module paths in the order in which the model first calls them, as far as it was run to find out.
      uses: Entry -> its first use together with the model's inputs, as far as the model was run to find out.
      unrun: What the model raised when it was to be run to find out `uses`; it does not take these inputs.
      native: The framework's own variable tree with `jax.ShapeDtypeStruct` leaves; a `like` for `unflatten`.
    """

    entries: State
    framework: str = "flat"
    layers: Mapping[str, Layer] = dataclasses.field(default_factory=dict)
    native: Any = None
    stacks: Mapping[str, tuple[Stack, ...]] = dataclasses.field(default_factory=dict)
    called: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Returns the modules that hold entries, one a line.

        >>> print(Spec.of({'params/net/w': np.ones((2, 3)), 'params/net/b': np.ones(3), 'state/n': 0}))
        flat: 3 entries
          net     params: b float64[3], w float64[2,3]
          (root)  state: n int64[]
        """
        rows: dict[tuple[str, str], list[str]] = {}
        for path, value in self.entries.items():
            collection, _, rest = path.rpartition("/")[0].partition("/")
            rows.setdefault((rest, collection), []).append(f"{path.rpartition('/')[2]} {describe(value)}")
        names = {m: (m or "(root)") + "".join(f" x {s.size}" for s in self.stacks.get(m, ())) for m, _ in rows}
        types = {m: self.layers[m].type if m in self.layers else "" for m in names}
        wide, kind = (max(map(len, texts.values()), default=0) for texts in (names, types))
        lines = [
            f"  {names[m]:{wide}}  {types[m]:{kind}}{'  ' * bool(kind)}{collection}: {', '.join(leaves)}"
            for (m, collection), leaves in rows.items()
        ]
        return "\n".join([f"{self.framework}: {len(self.entries)} entries", *lines])

    uses: Mapping[str, Use] = dataclasses.field(default_factory=dict)
    unrun: str = ""

    @classmethod
    def of(cls, entries: Mapping[str, Any] | Spec, framework: str = "flat") -> Spec:
        """Returns the spec of a state or plain dict of arrays (a spec is returned as it is).

        Raises:
          StructureError: It is a nested tree.

        >>> Spec.of({'w': np.ones((2, 3), np.float32)}).entries['w']
        ShapeDtypeStruct(shape=(2, 3), dtype=float32)
        """
        if isinstance(entries, Spec):
            return entries
        state = entries if isinstance(entries, State) else State(entries)
        if (nested := next((p for p, v in state.items() if isinstance(v, Mapping)), None)) is not None:
            raise StructureError(
                f"{nested!r} is a {type(state[nested]).__name__}, not an array. A flat mapping from path to array is wanted:"
                " flatten(variables) of the framework's adapter makes one of a nested tree, and spec(model, *inputs) tells"
                " the layers as well."
            )
        return cls(State({p: abstract(v) for p, v in state.items()}, state.declared), framework)


def abstract(value: Any) -> jax.ShapeDtypeStruct:
    """Returns shape and dtype of an array, a scalar or a `jax.ShapeDtypeStruct`, allocating nothing."""
    if type(value) is jax.ShapeDtypeStruct:
        return value
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        value = np.asarray(value)
    return jax.ShapeDtypeStruct(tuple(value.shape), value.dtype)


def plain(value: Any, name: Callable[[Any], str | None] = lambda value: None) -> Any:
    """Returns a constructor argument or attribute as a plain value: functions, types and dtypes by their names.

    Args:
      value: Anything.
      name: What to write for the framework's own objects, such as modules; None for anything else.

    >>> plain((3, 3)), plain(np.float32), plain(jax.nn.relu), plain(np.zeros(2))
    ((3, 3), 'float32', 'relu', 'float64[2]')
    """
    if value is None or isinstance(value, (bool, int, float, complex, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in (tuple, list):
        return type(value)(plain(item, name) for item in value)
    if isinstance(value, (tuple, list)):
        return tuple(plain(item, name) for item in value)
    if isinstance(value, dict):
        return {key: plain(item, name) for key, item in value.items()}
    if isinstance(value, (np.ndarray, jax.Array, jax.ShapeDtypeStruct)):
        return describe(value)
    if (own := name(value)) is not None:
        return own
    try:
        return np.dtype(value).name  # jnp.float32 is a scalar type's wrapper, and callable.
    except (TypeError, ValueError):  # ValueError: a class with an attribute `dtype`, such as nn.Dense.
        pass
    return getattr(value, "__name__", None) or repr(value)
