"""What a Linen model is made of, with nothing allocated: abstract variables and the layers that own them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen as nn

from bridges._linen._axes import Watch, stacks_of
from bridges._linen._call import Call
from bridges._linen._variables import flatten, unflatten
from bridges.core import _flat
from bridges.core._spec import Layer, Spec, plain
from bridges.core._state import State
from bridges.core._uses import uses


def _module(value: Any) -> str | None:
    return f"linen.{type(value).__name__}" if isinstance(value, nn.Module) else None


def layer_of(module: nn.Module) -> Layer:
    """Returns the layer of a bound or unbound Linen module: its class, and its dataclass fields as plain values."""
    fields = {
        field.name: plain(getattr(module, field.name, None), _module)
        for field in dataclasses.fields(module)
        if field.name not in ("parent", "name")
    }
    return Layer.of(type(module), (nn.Module,), "linen", fields, lifted="flax.linen.transforms")


def spec(model: nn.Module, *args: Any, rngs: Any = None, method: Any = None, **kwargs: Any) -> Spec:
    """Returns the spec of a Linen model: what `model.init` would create, found by abstract evaluation.

    Args:
      model: A Linen module instance.
      *args, **kwargs: The model's inputs; arrays may be `jax.ShapeDtypeStruct`.
      rngs: A key, or keys by stream, of which only the names matter. Needed only where a model asks `has_rng`.
      method: The method to initialise by, as in `model.init`.

    Returns:
      A `Spec` with `layers` by module path (`''` is the model itself) and `native` the abstract variables. Modules that
      share one scope (`nn.share_scope`) are listed once, as the outer one. Its `stacks` has the modules that `nn.scan` and
      `nn.vmap` keep several copies of in one variable, and along which axis.

    >>> import jax, numpy as np
    >>> s = spec(nn.Dense(4), jax.ShapeDtypeStruct((2, 3), np.float32))
    >>> s.entries['params/kernel'], s.layers[''].type, s.layers[''].hyperparameters['features']
    (ShapeDtypeStruct(shape=(3, 4), dtype=float32), 'linen.Dense', 4)
    """
    layers: dict[str, Layer] = {}
    watch = Watch()
    call = Call(model, method, args, kwargs)

    def record(next_method: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        path = _flat.join(context.module.path)
        if path not in layers:
            layers[path] = layer_of(context.module)
        watch.shadow(context.module)
        return next_method(*args, **kwargs)

    with nn.intercept_methods(record):
        native = call.abstract_init(rngs)
    entries = flatten(native)
    stacks = stacks_of(call, rngs, watch, entries)
    arrays, filled = call.opened()

    def run(state: dict[str, Any], arrays: dict[int, Any]) -> Any:
        keys = dict.fromkeys(("params", *(rngs if isinstance(rngs, Mapping) else ())), jax.random.key(0))
        variables = unflatten(State(state, entries.declared), native)
        return filled(arrays).apply(variables, keys, mutable=True)[0]

    return Spec(entries, "linen", layers, native, stacks, tuple(layers), uses(run, entries, arrays))
