"""Side: one of the two models that are compared, as a function of flat variables, whatever it came as.

A side is made of a plain function `apply(variables, *inputs)`, or of a model that an adapter knows (then `spec` and
`apply` of the adapter are used). This file imports an adapter only when a model of its framework is at hand.

Invariant: `side.run(flat, inputs)` reads exactly the entries that it is given, and never changes them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

import bridges
from bridges._infer._model import Model
from bridges._infer._model import framework_of as shown
from bridges.core._errors import StructureError, hint, listing
from bridges.core._flat import escape, flatten, unescape
from bridges.core._spec import Spec
from bridges.core._state import State


@dataclasses.dataclass(frozen=True)
class Form:
    """How a function wants its variables: the structure of its tree, and the flat path of each of its leaves."""

    treedef: Any
    paths: tuple[str, ...]

    def native(self, flat: Mapping[str, Any]) -> Any:
        """Returns the function's own tree of the flat variables."""
        return jax.tree.unflatten(self.treedef, [flat[path] for path in self.paths])


@dataclasses.dataclass(frozen=True)
class Side:
    """A model as a function of flat variables.

    Attributes:
      end: 'source' or 'target'.
      run: `(flat variables, inputs) -> (output, new flat variables or None)`; None where it does not say.
      spec: What an adapter says of the model; None for a function.
      extras: Entries that no plan converts (random state), which the model keeps for itself.
    """

    end: str
    run: Callable[[Mapping[str, Any], Sequence[Any]], tuple[Any, Mapping[str, Any] | None]]
    spec: Spec | None = None
    extras: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def framework_of(model: Any) -> str | None:
    """Returns the framework of a model that shows it by its type; None for a plain function, which shows nothing.

    >>> framework_of(lambda variables, x: x) is None
    True
    """
    found = model.framework if isinstance(model, Model) else shown(model)
    return "flat" if found in ("core", "function") else found


def model_side(model: Any, framework: str, inputs: Sequence[Any], end: str) -> Side:
    """Returns the side of a model, through the adapter of its framework.

    Args:
      model: What the adapter's `spec` and `apply` take; for 'flat' a `bridges.Module`.
      framework: One of `FRAMEWORKS`.
      inputs: The model's inputs.
      end: 'source' or 'target'.
    """
    known = isinstance(model, Model) or framework == "flat"
    made = Model.of(model) if known else Model(framework, model, f"the {end}")
    spec = made.spec(*inputs)
    random = [p for p, x in spec.entries.items() if framework == "nnx" and _random(spec.entries, p, x)]
    extras = made.random_state(random)

    def run(flat: Mapping[str, Any], inputs: Sequence[Any]) -> tuple[Any, Mapping[str, Any] | None]:
        return made.apply(State(flat, spec.entries.declared), *inputs)

    return Side(end, run, spec, extras)


def _random(entries: State, path: str, value: Any) -> bool:
    kind = entries.declared.get(path)
    named = isinstance(kind, type) and issubclass(kind, bridges.RngState)
    return named or jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key) or isinstance(kind, bridges.RngState)


def function_side(fn: Callable[..., Any], form: Form, train: bool, end: str) -> Side:
    """Returns the side of a plain function.

    Args:
      fn: `fn(variables, *inputs) -> output`; in training `-> (output, new variables)`, where None or a part of the
        variables stands for those that did not change.
      form: How it wants its variables.
      train: Whether it returns new variables too.
      end: 'source' or 'target'.
    """

    def run(flat: Mapping[str, Any], inputs: Sequence[Any]) -> tuple[Any, Mapping[str, Any] | None]:
        out = fn(form.native(flat), *inputs)
        if not train:
            return out, None
        if not isinstance(out, tuple) or len(out) != 2:
            raise StructureError(
                f"The {end}'s function for training must return (output, new variables); got {type(out).__name__}."
            )
        out, new = out
        if new is None:
            return out, None
        return out, named(new, form.paths, f"new variables of the {end}", partly=True)

    return Side(end, run)


def form_of(tree: Any, wanted: Iterable[str] | None, what: str, partly: bool = False) -> Form:
    """Returns the form of a variable tree: the flat path of each leaf.

    A flat mapping, a nested tree of collections, Haiku's parameters, its pair of parameters and state, a bare tree of
    parameters, and NNX's state and pure dictionary are recognised by which of these readings gives paths that are all among
    the wanted ones.

    Args:
      tree: Any pytree.
      wanted: The paths of the plan (or the other known ones); None takes the tree's own.
      what: What it is, for the error.
      partly: Whether paths of `wanted` may be missing from the tree.

    Raises:
      StructureError: No reading gives the wanted paths.
    """
    treedef = jax.tree.structure(tree)
    if isinstance(tree, Mapping) and not any(isinstance(v, (Mapping, list, tuple)) for v in tree.values()):
        own = list(tree) if isinstance(tree, State) else sorted(tree)
    else:
        own = list(flatten(tree))
    if wanted is None:
        return Form(treedef, tuple(own))
    known = set(wanted)
    best: list[str] | None = None
    below = {path.partition("/")[2]: path for path in known}  # NNX's own names, which have no collection
    readings: tuple[Callable[[str], str], ...] = (
        str,
        _collections,
        _opened,
        lambda p: "params/" + p,
        lambda p: "params/" + _opened(p),
        lambda p: below.get(p.removesuffix("/value"), p),
    )
    for reading in readings:
        paths = [reading(path) for path in own]
        odd = [path for path in paths if path not in known]
        if not odd and len(set(paths)) == len(paths):
            missing = sorted(known - set(paths))
            if missing and not partly:
                raise StructureError(f"The {what} lacks entries of the plan:\n" + listing(map(repr, missing)))
            return Form(treedef, tuple(paths))
        best = odd if best is None or len(odd) < len(best) else best
    raise StructureError(
        f"These entries of the {what} are not those of the plan:\n"
        + listing(f"{path!r}.{hint(path, known)}" for path in best or ())
        + "\nPass the variables that the plan was made for, as a flat state or as the framework's own tree."
    )


def _opened(path: str) -> str:
    """Haiku's own tree: the module path is one key."""
    *parents, leaf = path.split("/")
    return "/".join([escape(s) for p in parents for s in unescape(p).split("/")] + [leaf])


def _collections(path: str) -> str:
    """Haiku's pair of parameters and state."""
    first, _, rest = path.partition("/")
    return {"0": "params/", "1": "state/"}.get(first, first + "/") + _opened(rest)


def named(tree: Any, wanted: Iterable[str] | None, what: str, partly: bool = False) -> dict[str, Any]:
    """Returns the flat variables of a tree, by the paths of `form_of`."""
    form = form_of(tree, wanted, what, partly)
    return dict(zip(form.paths, jax.tree.leaves(tree), strict=True))
