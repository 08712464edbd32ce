"""apply: the functional form that gives `(out, state)` for any method or submodule, from states in parts.

The module is the definition (it holds no arrays), the states are all its entries: `apply(net, params, rest)` stands for the
module with these values, and `.`, `[]` and a call go on from there as they would on the module itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bridges.core._context import context
from bridges.core._errors import FieldError, StructureError, describe
from bridges.core._pure import _checked, _root, _run
from bridges.core._rng import Seed
from bridges.core._state import State


def apply(
    fn: Callable[..., Any], /, *states: Mapping[str, Any], seed: Seed = None, flags: Mapping[str, Any] | None = None
) -> Applied:
    """Returns `fn` over the merged states: `out, state = apply(fn, params, rest)(*args, **kwargs)`.

    It may stand anywhere: outside, inside any JAX transformation, and inside of another stateful function (`jax.lax.scan`
    over the parameters of equal layers), whose state it does not touch and whose flags and seed it does not take.

    Args:
      fn: A module, a bound method, any stateful function, or what `pure` gave. Of a module, any method or submodule is
        reached from what is returned: `apply(net, state).encode(x)`, `apply(net, state).layers[0](x)`.
      *states: All entries that are needed, in disjoint parts such as `partition` gives; plain dictionaries too.
      seed: As for `pure`.
      flags: As for `pure`.

    Returns:
      A callable that takes the arguments of `fn` and returns its output and the new `State`, all entries in it.

    Raises:
      CollisionError: An entry is in two of the states.
      StructureError: What was passed is no state.
      CreateError, MissingEntryError: The states lack an entry.

    >>> import bridges as br, jax, jax.numpy as jnp
    >>> class Calls(br.Variable): ...
    >>> class Net(br.Module):
    ...   def __call__(self, x):
    ...     self.put('calls', self.get('calls', jnp.zeros, (), jnp.int32, kind=Calls) + 1)
    ...     return x * self.get('w', jnp.ones, ())
    >>> net = Net()
    >>> params, calls = br.init(net)({}, 2.0).partition(br.Param, Calls)
    >>> def loss(params, calls):
    ...   y, updates = br.apply(net, params, calls)(2.0)
    ...   return y, updates.filter(Calls)
    >>> jax.grad(loss, has_aux=True)(params, calls)
    (State({'net/w': Array(2., dtype=float32)}), State({'net/calls': Array(1, dtype=int32)}))
    """
    for state in states:
        if not isinstance(state, Mapping):
            raise StructureError(
                f"apply takes the function and its states, and got {describe(state)} among these. Arguments go to what it"
                " returns: out, state = bridges.apply(net, state)(x)."
            )
    merged = State(_checked(states[0]) if states else {}).merge(*map(_checked, states[1:]))
    fixed = getattr(fn, "_flags", {})
    return Applied(getattr(fn, "_stateful", fn), merged, seed, {**fixed, **(flags or {})}, ())


class Applied:
    """A function, or what is reached from a module by `.` and `[]`, over a state; see `apply`."""

    # Mangled, so that every name of a module's own is free.
    __slots__ = ("__flags", "__fn", "__seed", "__state", "__steps")

    def __init__(self, fn: Any, state: State, seed: Seed, flags: Mapping[str, Any], steps: tuple[tuple[str, Any], ...]):
        self.__fn, self.__state, self.__seed, self.__flags, self.__steps = fn, state, seed, flags, steps

    def __call__(self, /, *args: Any, **kwargs: Any) -> tuple[Any, State]:
        """Returns the output of the call and the new state."""

        def run(*args: Any, **kwargs: Any) -> Any:
            fn = self.__reached()
            context().root = _root(fn)
            return fn(*args, **kwargs)

        ctx, out = _run(
            run, None, self.__state, args, kwargs, seed=self.__seed, create=False, modify=True, flags=self.__flags
        )  # fmt: skip
        return out, ctx.snapshot()

    def __getattr__(self, name: str) -> Applied:
        if name.startswith("__"):
            raise AttributeError(name)
        return Applied(self.__fn, self.__state, self.__seed, self.__flags, (*self.__steps, (".", name)))

    def __getitem__(self, key: Any) -> Applied:
        return Applied(self.__fn, self.__state, self.__seed, self.__flags, (*self.__steps, ("[]", key)))

    def __reached(self) -> Callable[..., Any]:
        found, shown = self.__fn, getattr(self.__fn, "__qualname__", None) or repr(self.__fn)
        for how, key in self.__steps:
            try:
                found = getattr(found, key) if how == "." else found[key]
            except (AttributeError, LookupError, TypeError) as err:
                step = f".{key}" if how == "." else f"[{key!r}]"
                raise FieldError(f"{shown} has no {step}, which apply was to call: {err}") from err
            shown += f".{key}" if how == "." else f"[{key!r}]"
        if not callable(found):
            raise FieldError(f"{shown} is {describe(found)} and cannot be called; apply calls methods and submodules.")
        return found

    def __repr__(self) -> str:
        steps = "".join(f".{key}" if how == "." else f"[{key!r}]" for how, key in self.__steps)
        return f"apply({self.__fn!r}, {len(self.__state)} entries){steps}"
