"""One row of the table of layers: a layer in each framework that has it, with an input."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import haiku as hk
import numpy as np
from flax import nnx

from bridges import param_mapping
from bridges.mapping._plan import EVALUATION as EVALUATION
from bridges.mapping._plan import NOT_EXACT as NOT_EXACT
from bridges.mapping._plan import ROUNDING as ROUNDING

TEXT, IMAGE, SHORT, CUBE = (2, 5, 6), (2, 7, 6, 4), (2, 8, 4), (1, 4, 3, 5, 2)
true = {"epsilon": 1e-5, "use_fast_variance": False}
some = hk.initializers.RandomNormal()
Pair = tuple[str, str]
HL, HN, LN = ("haiku", "linen"), ("haiku", "nnx"), ("linen", "nnx")
LH, NH, NL = HL[::-1], HN[::-1], LN[::-1]


@dataclasses.dataclass(frozen=True)
class Case:
    """A layer in three frameworks.

    Attributes:
      haiku: A function of the input.
      linen: A module.
      nnx: A function that returns a module, of an `nnx.Rngs`.
      shape: The input's shape; or `int` for tokens.
      train: A Haiku function that makes all variables, where `haiku` does not (BatchNorm in evaluation).
      verdicts: What is not 'exact', by pair.
      refused: Part of the error's text, by pair.
      x64: Whether float64 is kept throughout; some NNX layers compute in float32 whatever they are given.
      own: The user's modules that stand for one another, by framework: `[modules]` of every pair.
      constants: Entries that are no weights, with the value that the model has for them.
      mapping: Further sections of a mapping, by pair; a pair without has the inverse of its reverse.
    """

    haiku: Callable[..., Any] | None = None
    linen: nn.Module | None = None
    nnx: Callable[..., Any] | None = None
    shape: Any = TEXT
    train: Callable[..., Any] | None = None
    verdicts: Mapping[Pair, str] = dataclasses.field(default_factory=dict)
    refused: Mapping[Pair, str] = dataclasses.field(default_factory=dict)
    x64: bool = True
    constants: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    own: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    mapping: Mapping[Pair, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    @property
    def frameworks(self) -> list[str]:
        return [name for name in ("haiku", "linen", "nnx") if getattr(self, name) is not None]

    def inputs(self) -> np.ndarray:
        rng = np.random.default_rng(3)
        if self.shape is int:
            return rng.integers(0, 7, (2, 3)).astype(np.int32)
        return rng.normal(size=self.shape).astype(np.float32)

    def user_mapping(self, src: str, dst: str) -> param_mapping.Mapping:
        """Returns what a user has to say of this pair, beside the conventions."""
        made = param_mapping.Mapping.of(modules=dict(zip(self.own.get(src, ()), self.own.get(dst, ()), strict=True)))
        if (src, dst) in self.mapping:
            return made | param_mapping.Mapping.of(self.mapping[src, dst])
        if (dst, src) in self.mapping:
            return made | param_mapping.Mapping.of(self.mapping[dst, src]).inverse
        return made


class Chain(nn.Module):
    """Calls modules that are made in setup, or functions, in turn: `layers_0`, `layers_2`, …"""

    made: Any

    def setup(self) -> None:
        self.layers = [make() for make in self.made]

    def __call__(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return x


class Inline(nn.Module):
    """Calls a function in a compact method, so that modules made in it have automatic names."""

    run: Callable[..., Any]

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return self.run(self, x)


class Parts(nnx.Module):
    """An NNX module of named parts and a function that calls them."""

    def __init__(self, run: Callable[..., Any], **parts: Any):
        self._run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def __call__(self, x: Any) -> Any:
        return self._run(self, x)


def unrolled(core: Callable[[], hk.RNNCore]) -> Callable[..., Any]:
    def run(x: Any) -> Any:
        made = core()
        return hk.dynamic_unroll(made, x, made.initial_state(x.shape[0]), time_major=False)[0]

    return run


def rolled(cell: type, *args: Any, **kwargs: Any) -> Callable[..., Any]:
    return lambda rngs: nnx.RNN(cell(*args, rngs=rngs, **kwargs), rngs=rngs)
