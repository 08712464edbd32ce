"""`spec`, `init` and `apply` of a Haiku model, over a flat `State`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from bridges._haiku._abstract import abstract_init
from bridges._haiku._part import Multi, Part, arrays_abstract, part_of
from bridges._haiku._run import Call, Runner, init_explained
from bridges._haiku._tree import flatten, kind
from bridges.core._errors import SeedError
from bridges.core._spec import Spec
from bridges.core._state import State
from bridges.core._uses import uses


def spec(model: Any, *args: Any, method: str | int | None = None, **kwargs: Any) -> Spec:
    """Returns the spec of a Haiku model's variables: no array is allocated, no seed needed, no weight initialised.

    Args:
      model: A function that uses Haiku modules, an `hk.Module` class (or a `functools.partial` of one), or what Haiku's
        transforms give.
      *args: Arguments of a first call; arrays may be `jax.ShapeDtypeStruct`. BatchNorm makes its state whatever it is told
        about training. A `multi_transform` takes the arguments of its template.
      method: The method that is called first, for a class; the function of a `multi_transform` whose part is wanted (a
        name, an index, or a path).
      **kwargs: The same, by keyword.

    Returns:
      A `Spec`. Its `native` is `(params, state)` with `jax.ShapeDtypeStruct` leaves. Its `layers` has every module of the
      model by Haiku's module path, with the constructor's arguments: plain values, arrays as their shapes, functions as
      their full names, initialisers and anything else left out. Its `stacks` has the modules that `hk.layer_stack` and
      lifted `vmap`s keep several copies of in one entry.

    >>> import haiku as hk, jax, jax.numpy as jnp, functools
    >>> found = spec(functools.partial(hk.BatchNorm, True, True, 0.9), jax.ShapeDtypeStruct((8, 3), jnp.float32), True)
    >>> found.entries['params/batch_norm/scale'], found.layers['batch_norm'].hyperparameters['eps']
    (ShapeDtypeStruct(shape=(1, 3), dtype=float32), 1e-05)
    """
    part, method = part_of(model), _named(method)
    _check(part, method)
    found = abstract_init(part, method, (args, kwargs))
    entries = flatten(*found.native)
    shapes, fill = arrays_abstract((args, kwargs))

    def run(state: dict[str, Any], arrays: list[Any]) -> Any:
        given, named = fill(arrays)
        return apply(model, State(state, entries.declared), *given, rngs=0, method=method, **named)[0]

    return Spec(entries, "haiku", found.layers, found.native, found.stacks, found.called, uses(run, entries, shapes))


def init(model: Any, rng: Any, /, *args: Any, method: str | int | None = None, **kwargs: Any) -> State:
    """Returns the variables of a Haiku model, bit for bit those of its native `init` with the same key.

    Args:
      model: As for `spec`.
      rng: A key, an integer, a dictionary of these (the stream `params` or else `default` is used), or None for a model
        that draws nothing.
      *args: Arguments of a first call.
      method: As for `spec`.
      **kwargs: Arguments by keyword.

    Raises:
      SeedError: The model draws and `rng` is None.
    """
    part, method = part_of(model), _named(method)
    _check(part, method)
    key = _pick(rng, ("params", "default"))
    call = Call(method, (args, kwargs), part.name)
    if not part.has_init(method):
        made = Runner(part).make({}, None if key is None else lambda: key, call)
        return State(made, {path: kind(path, value) for path, value in made.items()})
    return flatten(*init_explained(part, key, call))


def apply(
    model: Any,
    state: Mapping[str, Any],
    /,
    *args: Any,
    rngs: Any = None,
    method: str | int | None = None,
    **kwargs: Any,
) -> tuple[Any, State]:
    """Returns the output of a Haiku model and its new variables, always in this order.

    Args:
      model: As for `spec`.
      state: The variables: `params/…` and `state/…`.
      *args: Arguments of the call.
      rngs: A key, an integer, or a dictionary of these (the stream `default`, or the only one beside `params`); None for a
        call that draws nothing.
      method: The method to call, or the function of a `multi_transform`.
      **kwargs: Arguments by keyword.

    Returns:
      The output, and all variables with what the call changed.

    Raises:
      MissingEntryError: A variable is missing.
      EntryShapeError: Variables have other shapes than the model asks for.
      StructureError: There are variables that the model has no use for.
      SeedError: The call draws and `rngs` is None.
    """
    part, method = part_of(model), _named(method)
    part.check(method)
    given = State(state)

    def draw() -> Any:  # Called only where the code draws: a stream that nobody draws from is not missed.
        others = [name for name in rngs if name != "params"] if isinstance(rngs, Mapping) else []
        key = _pick(rngs, ("default", *others) if len(others) == 1 else ("default", "params"))
        return jax.random.PRNGKey(key) if isinstance(key, int) else key

    out, changed, _ = Runner(part).run(
        dict(given), None if _none(rngs) else draw, Call(method, (args, kwargs), part.name)
    )
    return out, _updated(given, changed)


def _updated(state: State, changed: Mapping[str, Any]) -> State:
    if all(path in state for path in changed):
        new = state.copy()
        for path, value in changed.items():
            new[path] = value
        return new
    return State({**state, **changed}, {**{p: kind(p, v) for p, v in changed.items()}, **state.kinds})


def _check(part: Part, method: str | None) -> None:
    if not (isinstance(part, Multi) and method is None):
        part.check(method)


def _named(method: str | int | None) -> str | None:
    return None if method is None else str(method)


def _none(rngs: Any) -> bool:
    return rngs is None or (isinstance(rngs, Mapping) and not rngs)


def _pick(rngs: Any, streams: tuple[str, ...]) -> Any:
    if not isinstance(rngs, Mapping):
        return rngs
    if not rngs:
        return None
    for name in streams:
        if name in rngs:
            return rngs[name]
    raise SeedError(f"There is no random stream {streams[0]!r} among {sorted(rngs)}: Haiku has a single one. Add it.")
