"""Layout: the native tree that a file is to have, from its parts.

Where nothing but variables was in the source, the target is what its framework calls its variables: Haiku's `params` or
`(params, state)`, Linen's collections, NNX's pure dictionary (which is what `nnx.state` looks like on disk). Between two
trees of one framework the form of the source stays. Otherwise:

| | with the state of an optimizer | with further fields (a step, a random key) |
|---|---|---|
| Haiku | `(params, state, opt_state)` | a dictionary of these fields |
| Linen | the fields of a `TrainState`: `params`, collections, `opt_state` | and the further fields |
| NNX | `{'model': …, 'optimizer': {'opt_state': …, 'step': …}}` | and the further fields |
| flat | path -> array; `opt_state/…` | and the further fields |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bridges.core import _flat
from bridges.core._errors import CollisionError
from converters import _native
from converters._contents import Contents


def bare(framework: str, native: Any) -> Any:
    """Returns variables alone, as the framework's own calls give them."""
    if framework != "haiku":
        return native
    params, state = native
    return (params, state) if state else params


def laid_out(
    framework: str,
    native: Any,
    source: Contents,
    optimizers: Mapping[Any, Any],
    twins: Mapping[Any, Any],
    rest: Mapping[Any, Any],
    values: bool = False,
) -> Any:
    """Returns the tree of the target.

    Args:
      framework: The target's.
      native: Its native variables (`_native.native`, without `{'value': leaf}`).
      source: What the source held.
      optimizers, twins, rest: What goes beside the variables, by the source's fields.
      values: Whether each NNX leaf gets a dictionary of its own, as Orbax wants it.
    """
    wrap = _native.wrapped if values and framework == "nnx" else lambda tree: tree
    if framework == "nnx":
        native, optimizers, twins = wrap(native), wrap(dict(optimizers)), wrap(dict(twins))
    if source.framework == framework and source.form in ("tuple", "fields"):
        return _as_before(framework, native, source, optimizers, twins, rest, wrap)
    if not (optimizers or twins or rest):
        return bare(framework, native)
    more = {_name(key): value for key, value in {**twins, **rest}.items()}
    states = {_name(key): value for key, value in optimizers.items()}
    opt_state = next(iter(states.values())) if len(states) == 1 else states
    if framework == "flat":
        parts = {**({"opt_state": opt_state} if states else {}), **more}
        return _joined(dict(native), {} if not parts else _flat.flatten(parts))
    if framework == "haiku":
        params, state = native
        if not more:
            return params, state, opt_state
        return {"params": params, "state": state, **({"opt_state": opt_state} if states else {}), **more}
    if framework == "linen":
        return _joined(dict(native), {**({"opt_state": opt_state} if states else {}), **more})
    if not states:
        return {"model": native, **more}
    step = {"step": wrap(more.pop("step"))} if "step" in more else {}
    return {"model": native, "optimizer": {"opt_state": opt_state, **step}, **more}


def _name(key: Any) -> str:
    return key if isinstance(key, str) else f"item_{key}"


def _joined(a: dict[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    if both := a.keys() & b.keys():
        raise CollisionError(f"{', '.join(sorted(both))} would be written twice: as variables, and as another field.")
    return {**a, **b}


def _as_before(
    framework: str,
    native: Any,
    source: Contents,
    optimizers: Mapping[Any, Any],
    twins: Mapping[Any, Any],
    rest: Mapping[Any, Any],
    wrap: Callable[[Any], Any],
) -> Any:
    """Returns the source's own container with new parts."""
    params, state, collections = native, None, {}
    if framework == "haiku":
        params, state = native
    elif framework == "linen":
        params, collections = native.get("params", {}), {k: v for k, v in native.items() if k != "params"}
    inner = {key for key, role in source.fields if role == "collection"}
    out: dict[Any, Any] = {}
    for key, role in source.fields:
        if role == "variables":
            own = {"params": params, **{k: v for k, v in collections.items() if k not in inner}}
            out[key] = own if framework == "linen" else params
        elif role == "params":
            out[key] = params
        elif role == "state":
            out[key] = state if framework == "haiku" else collections.get("state", {})
        elif role == "collection":
            out[key] = collections.get(key, {})
        elif role == "optimizer":
            held = optimizers[key]
            out[key] = held
            if _is_nnx(source, key):  # an nnx.Optimizer has its own step beside its state
                out[key] = {"opt_state": held, "step": wrap(rest["step"])}
        elif key in twins or key in rest:
            out[key] = twins.get(key, rest.get(key))
    if not any(role == "variables" for _, role in source.fields):
        new = [k for k in collections if k not in out and k != "state"]
        out.update({k: collections[k] for k in new})
    if framework == "haiku" and state and not any(role == "state" for _, role in source.fields):
        out["state" if source.form == "fields" else len(out)] = state
    if source.form == "tuple":
        return tuple(out.values())
    if hasattr(source.tree, "_fields") and list(out) == list(source.tree._fields):
        return type(source.tree)(**out)
    return out


def _is_nnx(source: Contents, key: Any) -> bool:
    before = source.tree[key] if isinstance(source.tree, Mapping) else None
    return isinstance(before, Mapping) and set(map(str, before)) == {"opt_state", "step"}
