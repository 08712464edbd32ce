"""End: one side of a pair behind one interface, run as its own framework runs it, over flat entries."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import bridges as br
from bridges import haiku_adapter, linen_adapter, nnx_adapter
from bridges._infer._evaluation import call_of
from bridges._infer._function import Function
from bridges._infer._model import Model
from bridges.core._state import State

Entries = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class End:
    """A model with the shapes of its entries.

    Attributes:
      framework: `'haiku'`, `'linen'`, `'nnx'`, `'core'` or `'function'`.
      model: What `infer_mapping` takes.
      spec: What a plan is made with.
      shapes: Path -> shape and dtype, without random keys and their counts.
      run: `run(entries, *inputs)`, the output.
    """

    framework: str
    model: Any
    spec: Any
    shapes: Mapping[str, jax.ShapeDtypeStruct]
    run: Callable[..., Any]

    @classmethod
    def of(cls, model: Any, inputs: tuple[Any, ...]) -> End:
        """Returns the end of a model of any framework."""
        framework = framework_of(model)
        flags = call_of(Model.of(model), inputs, {})[1]  # is_training and the like, where the model asks for them
        if framework == "function":
            leaves, structure = jax.tree_util.tree_flatten_with_path(model.params)
            paths = [path_of(keys) for keys, _ in leaves]
            spec = {p: jax.ShapeDtypeStruct(x.shape, x.dtype) for p, (_, x) in zip(paths, leaves, strict=True)}

            def function(entries: Entries, *args: Any) -> Any:
                return model.apply(jax.tree.unflatten(structure, [entries[p] for p in paths]), *args, **flags)

            return cls(framework, model, spec, spec, function)
        if framework == "core":
            made = jax.eval_shape(lambda: dict(br.init(model)({}, *inputs, seed=0, **flags)))

            def core(entries: Entries, *args: Any) -> Any:
                return br.pure(model)(entries, *args, **flags)[1]

            return cls(framework, model, State(made), made, core)
        if framework == "nnx":
            spec = nnx_adapter.spec(model, *inputs, **flags)
            random = {p for p, x in spec.entries.items() if _random(p, x)}
            abstract = model if isinstance(model, nnx.Module) else nnx.eval_shape(model)
            structure, state = nnx.split(abstract)
            keys = {p: jax.random.key(0) if p.endswith("key") else jnp.zeros((), jnp.uint32) for p in random}

            def run(entries: Entries, *args: Any) -> Any:
                return nnx.merge(structure, nnx_adapter.unflatten(State({**keys, **entries}), state))(*args, **flags)

            return cls(framework, model, spec, {p: x for p, x in spec.entries.items() if p not in random}, run)
        if framework == "linen":
            spec = linen_adapter.spec(model, *inputs, **flags)

            def linen(entries: Entries, *args: Any) -> Any:
                return model.apply(linen_adapter.unflatten(State(entries), spec.native), *args, **flags)

            return cls(framework, model, spec, dict(spec.entries), linen)
        spec = haiku_adapter.spec(model, *inputs, **flags)
        return cls(
            framework, model, spec, dict(spec.entries),
            lambda entries, *args: haiku_adapter.apply(model, State(entries), *args, **flags)[0],
        )  # fmt: skip


def framework_of(model: Any) -> str:
    """Returns the framework of a model: a function of its own is Haiku's, a function of no argument makes an NNX module."""
    for kind, name in ((Function, "function"), (br.Module, "core"), (nn.Module, "linen"), (nnx.Module, "nnx")):
        if isinstance(model, kind):
            return name
    return "nnx" if getattr(getattr(model, "__code__", None), "co_argcount", 1) == 0 else "haiku"


def path_of(keys: tuple[Any, ...]) -> str:
    """Returns `'layers/0/weight'` for a path of a pytree."""
    return "/".join(str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key)))) for key in keys)


def randomised(shapes: Mapping[str, Any], seed: int, dtype: Any = np.float64) -> dict[str, np.ndarray]:
    """Returns random entries of moderate size; what is no parameter is positive (variances), a count is 3.

    A matrix is divided by the root of its columns' length, so that nothing saturates; a vector, which may be a scale, keeps
    away from zero.
    """
    rng = np.random.default_rng(seed)

    def value(path: str, x: Any) -> np.ndarray:
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return np.full(x.shape, 3, x.dtype)
        if path.split("/")[0] in ("state", "batch_stats"):
            return rng.uniform(0.5, 1.5, x.shape).astype(dtype)
        if len(x.shape) > 1 and min(x.shape) > 1:
            return (rng.normal(size=x.shape) * 1.4 / np.sqrt(np.prod(x.shape[:-1]))).astype(dtype)
        return (rng.uniform(0.3, 1.2, x.shape) * rng.choice([-1, 1], x.shape)).astype(dtype)

    return {p: value(p, x) for p, x in shapes.items()}


def _random(path: str, x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key) or path.endswith("/count")
