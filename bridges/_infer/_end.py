"""End: one of two models as a function of flat variables and flat inputs, in evaluation mode, with values to run it on.

Invariant: `end.run(variables, arrays)` reads exactly the entries of `end.spec` and draws nothing at random that two calls
would not draw alike. Both ends of a search are run on the same arrays.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from bridges._infer._arrays import Inputs
from bridges._infer._evaluation import call_of, evaluated
from bridges._infer._model import Model, ModelError
from bridges._infer._random import drawn, randomised, variables
from bridges.core._errors import SeedError, UnsupportedError
from bridges.core._jaxpr import trace
from bridges.core._kind import Param, RngState, kind_type
from bridges.core._spec import Spec
from bridges.core._state import State


@dataclasses.dataclass(frozen=True)
class End:
    """A model with its inputs.

    Attributes:
      model: The model, in evaluation mode.
      spec: What its variables look like.
      inputs: The inputs of both models: `inputs.arrays` by path, the rest in its place.
      fixed: Entries that keep the value that the model gives them: integers, random state, plain arrays (masks).
      draws: Whether a call asks for random numbers although it does not train.
    """

    model: Model
    spec: Spec
    inputs: Inputs
    fixed: Mapping[str, Any]
    draws: bool = False

    @classmethod
    def of(cls, model: Any, inputs: Inputs) -> End:
        """Returns the end of a model.

        Args:
          model: What `Model.of` takes.
          inputs: The inputs, taken apart with `taken`.

        Raises:
          ModelError: The model cannot be called with these inputs.
        """
        made = evaluated(Model.of(model))
        args, kwargs = call_of(made, *inputs.filled(inputs.arrays))
        spec = made.spec(*args, **kwargs)
        if not spec.entries:
            raise UnsupportedError(
                f"{made.name} has no variables when it is called with these inputs. A function of parameters that are"
                " passed to it is a bridges.Function(apply, params)."
            )
        fixed = _fixed(made, spec, args, kwargs)
        end = cls(made, spec, inputs, fixed)
        return dataclasses.replace(end, draws=True) if end._draws() else end

    @property
    def weights(self) -> dict[str, Any]:
        """The abstract entries that are to be placed: all but `fixed`."""
        return {path: x for path, x in self.spec.entries.items() if path not in self.fixed}

    def run(self, variables: Mapping[str, Any], arrays: Mapping[str, Any]) -> Any:
        """Returns the output of a call.

        Args:
          variables: The entries by path; those of `fixed` may be left out.
          arrays: The inputs by path.
        """
        args, kwargs = call_of(self.model, *self.inputs.filled(arrays))
        state = State({**self.fixed, **variables}, self.spec.entries.declared)
        out = self.model.apply(state, *args, rngs=jax.random.key(0) if self.draws else None, **kwargs)[0]
        return jax.tree.map_with_path(self._number, out)

    def _number(self, path: Any, x: Any) -> Any:
        if isinstance(x, (str, bytes)):  # it is no part of what is computed
            return None
        if not hasattr(x, "dtype") and not isinstance(x, (bool, int, float, complex)):
            at = f" at {jax.tree_util.keystr(path)}" if path else ""
            raise ModelError(
                f"{self.model.name} returns a {type(x).__name__}{at}, of which it is not known what is in it:"
                " return arrays, in containers that JAX knows (jax.tree_util.register_dataclass)."
            )
        return x

    def needed(self, variables: Mapping[str, Any], arrays: Mapping[str, Any]) -> Any:
        """Returns the output of a call, computed without what it does not depend on (new running statistics)."""
        return trace(self.run, dict(variables), dict(arrays)).needed()(dict(variables), dict(arrays))

    def values(self, seed: int = 0, positive: bool = False) -> dict[str, Any]:
        """Returns random variables, and those of `fixed`.

        Args:
          seed: What they are made of.
          positive: Whether vectors and scalars are all positive: an entry may be under a root or a logarithm.
        """
        return {**variables(self.spec, seed, positive), **self.fixed}

    def _draws(self) -> bool:
        try:
            jax.eval_shape(self.run, dict(self.spec.entries), self.inputs.arrays)
        except SeedError:
            return True
        return False


def taken(args: Sequence[Any], kwargs: Mapping[str, Any] | None = None, seed: int = 0) -> Inputs:
    """Returns the inputs of both models taken apart, with values: see `drawn`.

    Args:
      args, kwargs: The inputs; arrays may be nested, and `jax.ShapeDtypeStruct`.
      seed: What random values are made of.
    """
    rng = np.random.default_rng(seed)
    args, kwargs = jax.tree.map(
        lambda x: drawn(x, rng) if hasattr(x, "dtype") else x, (tuple(args), dict(kwargs or {}))
    )
    return Inputs.of((args, kwargs), floats=False)


def is_random(spec: Spec, path: str) -> bool:
    """Whether an entry is random state: a key, or how often it was drawn from."""
    kind = spec.entries.kind(path)
    return kind is not None and issubclass(kind_type(kind), RngState)


def _fixed(model: Model, spec: Spec, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the initial values of entries that are no weights; nothing else is computed."""
    wanted = [path for path, x in spec.entries.items() if _is_fixed(spec, path, x)]
    if not wanted:
        return {}
    found: dict[str, Any] = {}
    if model.framework == "function":
        found = {p: x for p, x in model.init(0).items() if p in wanted and not isinstance(x, jax.ShapeDtypeStruct)}
    elif model.framework == "nnx":
        found = model.random_state(wanted)
    else:
        inputs = Inputs.of((tuple(args), dict(kwargs)), floats=False)

        def made(arrays: Mapping[str, Any]) -> dict[str, Any]:
            args, kwargs = inputs.filled(arrays)
            state = model.init(jax.random.key(0), *args, **kwargs)
            return {path: state[path] for path in wanted if path in state}

        # Haiku makes the statistics of its norms in training only: without them a call in evaluation cannot initialise.
        with contextlib.suppress(ModelError):
            found = jax.jit(made)(inputs.arrays)
    entries = {p: spec.entries[p] for p in wanted}
    made_up = randomised({p: x for p, x in entries.items() if p not in found})
    return {p: _host(found[p]) if p in found else made_up[p] for p in wanted}


def _is_fixed(spec: Spec, path: str, x: Any) -> bool:
    if not jax.dtypes.issubdtype(x.dtype, np.inexact):
        return True
    kind = spec.entries.kind(path)
    return is_random(spec, path) or (spec.framework == "nnx" and path.startswith("arrays/") and not _is_param(kind))


def _is_param(kind: Any) -> bool:
    return kind is not None and issubclass(kind_type(kind), Param)


def _host(x: Any) -> Any:
    return x if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else np.asarray(x)
