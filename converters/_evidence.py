"""Evidence: of which framework a checkpoint's variables are, by how their parts are called and how deep they lie.

What speaks for a framework and against it is kept in words, which are shown whether it is decided or not. Nothing is
counted: a framework is taken if nothing speaks against it and it is the only such, or of these the only one that
something speaks for.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from bridges.core import _flat
from bridges.core._errors import listing
from converters import _native
from converters._errors import CheckpointError
from converters._frameworks import FRAMEWORKS

COLLECTIONS = ("batch_stats", "cache", "intermediates", "losses", "spectral_stats", "params_axes", "perturbations")
_AUTO = re.compile(r"[A-Z][A-Za-z0-9]*_[0-9]+")
_HAIKU_LEAVES = {"w", "b", "offset", "embeddings"}
_FLAX_LEAVES = {"kernel", "bias", "embedding"}


@dataclasses.dataclass(frozen=True)
class Evidence:
    """For each framework what speaks for it, and what speaks against it."""

    pro: Mapping[str, list[str]]
    contra: Mapping[str, list[str]]

    def decided(self, keys: Sequence[Any]) -> tuple[str, str]:
        """Returns the framework that the evidence leaves, and what speaks for it.

        Args:
          keys: What the tree holds at its top, for the error.

        Raises:
          CheckpointError: It leaves none, or several.
        """
        left = [name for name in self.pro if not self.contra[name]]
        if len(left) > 1:
            for_it = [name for name in left if self.pro[name]]
            left = for_it if len(for_it) == 1 else left
        if len(left) == 1:
            reasons = self.pro[left[0]] or [
                text for name, texts in self.contra.items() if name != left[0] for text in texts
            ]
            return left[0], "; ".join(dict.fromkeys(reasons[:2]))
        lines = []
        for name in self.pro:
            texts = [f"for it: {t}" for t in self.pro[name]] + [f"against it: {t}" for t in self.contra[name]]
            lines.append(f"{FRAMEWORKS[name]}: {'; '.join(texts) or 'nothing speaks for it or against it'}")
        held = ", ".join(map(str, keys[:8])) or "nothing"
        raise CheckpointError(
            f"It is not clear of which framework these variables are (the tree holds {held}):\n"
            + listing(lines)
            + "\nSay it (--framework), name the model that they are of (--from-model), or the part that holds them (--part)."
        )


def evidence_of(params: Any, collections: set[str]) -> Evidence:
    """Returns the evidence.

    Args:
      params: The parameters' tree.
      collections: What lies beside it, by name; `params` too, where that is the name of the parameters' place.
    """
    pro: dict[str, list[str]] = {"haiku": [], "linen": [], "nnx": []}
    contra: dict[str, list[str]] = {"haiku": [], "linen": [], "nnx": []}
    params = _native.plain(params)
    values = _native.has_values(params)
    paths = [_flat.split(p) for p in _flat.flatten(_native.unwrapped(params) if values else params)]
    modules = {segment for path in paths for segment in path[:-1]}
    leaves = {path[-1] for path in paths if path}

    def add(to: dict[str, list[str]], text: str, *frameworks: str) -> None:
        for name in frameworks:
            to[name].append(text)

    if slashed := sorted(s for s in modules if "/" in s or s == "~"):
        add(pro, f"a module is called {slashed[0]!r}", "haiku")
        add(contra, f"a module is called {slashed[0]!r}", "linen", "nnx")
    if paths and any(len(path) != 2 for path in paths):
        deep = next(path for path in paths if len(path) != 2)
        add(contra, f"{_flat.join(deep)!r} is not one module and one leaf", "haiku")
    if values:
        add(pro, "each leaf is {'value': array}", "nnx")
        add(contra, "each leaf is {'value': array}", "haiku", "linen")
    if numbers := sorted(s for s in modules if s.isdigit()):
        add(pro, f"a part is called {numbers[0]}", "nnx")
        add(contra, f"a part is called {numbers[0]}", "haiku", "linen")
    if known := sorted(collections.intersection(COLLECTIONS)):
        add(pro, f"there is a collection {known[0]}", "linen")
        add(contra, f"there is a collection {known[0]}", "haiku", "nnx")
    if auto := sorted(s for s in modules if _AUTO.fullmatch(s)):
        add(pro, f"a module is called {auto[0]!r}", "linen")
        add(contra, f"a module is called {auto[0]!r}", "haiku")
    if leaves & _FLAX_LEAVES:
        leaf = min(leaves & _FLAX_LEAVES)
        add(contra, f"a leaf is called {leaf!r}", "haiku")
    elif leaves & _HAIKU_LEAVES:
        leaf = min(leaves & _HAIKU_LEAVES)
        add(pro, f"a leaf is called {leaf!r}", "haiku")
        add(contra, f"a leaf is called {leaf!r}", "linen", "nnx")
    if {"mean", "var"} <= leaves and "batch_stats" not in collections:
        add(pro, "running statistics lie beside the weights", "nnx")
        add(contra, "running statistics lie beside the weights", "linen")
    if "params" in collections:
        add(pro, "the weights lie under 'params'", "linen")
    return Evidence(pro, contra)
