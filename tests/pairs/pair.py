"""Pair: two models of one network, written as two people would, with how to convert one into the other.

Each file of `models/` is one pair. It defines `source()` and `target()`, which return what `infer_mapping` takes, `inputs()`
for both, and `truth(entries)`, which makes the target's entries of the source's: written by hand, proved by running both.
`FREE` names target entries that no output depends on (patterns of fnmatch), where the truth is one choice of many.
`X64 = False` says, with the reason, that a framework's own layer leaves float64; `SLOW`, that no test runs the pair.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import importlib
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.light import light
from tests.pairs.ends import End, Entries, randomised

HERE = pathlib.Path(__file__).parent / "models"
NAMES = tuple(sorted(file.stem for file in HERE.glob("*.py")))


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two models and the truth about them.

    Attributes:
      name: The file's name.
      about: The first line of its docstring.
      source, target: The two models.
      inputs: For both.
      truth: The target's entries, of the source's.
      free: Patterns of target entries that the output does not depend on.
      x64: Whether both keep float64 throughout.
      slow: Whether it is for `make pairs` only.
    """

    name: str
    about: str
    source: Any
    target: Any
    inputs: tuple[Any, ...]
    truth: Callable[[Entries], dict[str, Any]]
    free: tuple[str, ...] = ()
    x64: bool = True
    slow: bool = False

    @classmethod
    def load(cls, name: str) -> Pair:
        """Returns the pair of `models/<name>.py`."""
        module = importlib.import_module(f"tests.pairs.models.{name}")
        about = module.__doc__.strip().splitlines()[0].rstrip(".")
        with jax.enable_x64(False):
            ends = module.source(), module.target()
        options = {key.lower(): getattr(module, key) for key in ("FREE", "X64", "SLOW") if hasattr(module, key)}
        return cls(name, about, *ends, module.inputs(), module.truth, **options)

    @functools.cached_property
    def src(self) -> End:
        with jax.enable_x64(False):
            return End.of(self.source, self.inputs)

    @functools.cached_property
    def dst(self) -> End:
        with jax.enable_x64(False):
            return End.of(self.target, self.inputs)

    def is_free(self, path: str) -> bool:
        return any(fnmatch.fnmatchcase(path, pattern) for pattern in self.free)

    def proved(self, gradients: bool = True, seed: int = 0) -> tuple[float, ...]:
        """Returns how far apart outputs, and gradients if wanted, are under the truth, each relative to the largest value.

        In float64 where both models keep it, in float32 elsewhere. The gradients are those of the source's entries: the
        source's own, and the target's taken through the truth.

        Raises:
          AssertionError: The truth does not give the target's entries, or there is nothing to compare.
        """
        dtype = np.float64 if self.x64 else np.float32
        with jax.enable_x64(self.x64):
            entries = randomised(self.src.shapes, seed, dtype)
            inputs = jax.tree.map(lambda x: x.astype(dtype) if np.issubdtype(x.dtype, np.floating) else x, self.inputs)
            made = jax.eval_shape(self.truth, entries)
            wanted = {p: x.shape for p, x in self.dst.shapes.items()}
            given = {p: x.shape for p, x in made.items()}
            if given != wanted:
                raise AssertionError(f"{self.name}: the truth gives {_differences(given, wanted)}")
            real = {p: x for p, x in entries.items() if np.issubdtype(x.dtype, np.floating)}
            rest = {p: x for p, x in entries.items() if p not in real}

            def own(real: Entries) -> Any:
                out = self.src.run({**rest, **real}, *inputs)
                return _loss(out), out

            def through(real: Entries) -> Any:
                out = self.dst.run(self.truth({**rest, **real}), *inputs)
                return _loss(out), out

            @light
            def both(real: Entries) -> Any:
                if gradients:
                    return [jax.grad(run, has_aux=True)(real)[::-1] for run in (own, through)]
                return [run(real)[1:] for run in (own, through)]

            src, dst = jax.tree.map(np.asarray, both(real))
        if any(np.ptp(x) == 0 for x in jax.tree.leaves(src[0]) if x.size > 1):
            raise AssertionError(f"{self.name}: an output is constant")
        return tuple(distance(x, y) for x, y in zip(src, dst, strict=True))


def distance(wanted: Any, got: Any) -> float:
    """Returns the largest difference between leaves in order, relative to the largest value of all."""
    wanted, got = (jax.tree.leaves(x) for x in (wanted, got))
    if [x.shape for x in wanted] != [x.shape for x in got]:
        return float("inf")
    top = max(float(np.max(np.abs(x), initial=0)) for x in wanted)
    apart = (np.max(np.abs(x - y), initial=0) for x, y in zip(wanted, got, strict=True))
    return max(float(x) if np.isfinite(x) else float("inf") for x in apart) / max(top, 1e-30)


def _loss(out: Any) -> Any:
    """A scalar that weighs every output differently."""
    leaves = [x for x in jax.tree.leaves(out) if jnp.issubdtype(x.dtype, jnp.floating)]
    weights = [np.random.default_rng(9).normal(size=x.shape) for x in leaves]
    return sum(jnp.sum(w.astype(x.dtype) * (x + jnp.sin(x))) for w, x in zip(weights, leaves, strict=True))


def _differences(given: dict[str, Any], wanted: dict[str, Any]) -> str:
    lines = [f"no {p} {x}" for p, x in wanted.items() if p not in given]
    lines += [f"{p} {x}, which is not wanted" for p, x in given.items() if p not in wanted]
    lines += [f"{p} {given[p]}, not {x}" for p, x in wanted.items() if p in given and given[p] != x]
    return "\n  ".join(["", *sorted(lines)])
