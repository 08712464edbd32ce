"""What a gradient or an optimizer acts on: modules, paths, prefixes, filters, mappings and lists of them -> entry paths."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from bridges.core._context import Context
from bridges.core._errors import EntryShapeError, MissingEntryError, describe, hint
from bridges.core._filter import is_filter, predicate
from bridges.core._flat import SEPARATOR
from bridges.core._kind import Param, Variable, kind_type
from bridges.core._module import Module
from bridges.core._state import State

Targets = Any  # Module | str | kind | Not | All | PathMatches | PathContains | Mapping[str, Any] | Iterable[Targets]


def resolve(ctx: Context, targets: Targets) -> State:
    """Returns the entries that the targets name, with their kinds, for a gradient.

    Args:
      ctx: The running context.
      targets: An exact path names its entry. A module, or a path with entries below it, names the `Param` entries there.
        A kind, or a filter such as `All`, names the floating entries that match. A mapping (what `getm` gives) names its
        keys. Iterables of these name all of it. A function of the context gives the entries itself.

    Raises:
      MissingEntryError: A target names nothing.
      EntryShapeError: An exact path names an entry that has no gradient (an integer, a key).
    """
    if callable(targets) and not isinstance(targets, Module) and not is_filter(targets):
        return targets(ctx)
    exact, below = _named(ctx, targets)
    for path in exact:
        _differentiable(path, ctx.read(path))
    return _entries(ctx, [*exact, *below])


def trainable(ctx: Context, targets: Targets) -> State:
    """Returns what `resolve` does, less every entry named exactly that is no floating `Param`: what optimizers update."""
    exact, below = _named(ctx, targets)
    return _entries(ctx, [*(path for path in exact if _is_declared_param(ctx, path)), *below])


def _named(ctx: Context, targets: Targets) -> tuple[list[str], list[str]]:
    exact, below = [], []
    named = [*each(targets)]
    if not named:
        raise MissingEntryError(
            "There is nothing to differentiate or update: the targets are empty. Name modules, paths or prefixes; a"
            " getm() that found nothing is empty too."
        )
    for target in named:
        if isinstance(target, str) and target in ctx:
            exact.append(target)
            continue
        if is_filter(target):
            exact += _matching(ctx, target)
            continue
        prefix = target.path if isinstance(target, Module) else target
        names = [f"{prefix}{SEPARATOR}{name}" for name in ctx.under(prefix)]
        params = [path for path in names if _is_declared_param(ctx, path)]
        if not params:
            shown = f"The module {target!r}" if isinstance(target, Module) else repr(target)
            found = f"has {len(names)} entries and none of them is a Param" if names else "has no entries"
            raise MissingEntryError(
                f"{shown} was named to differentiate or update, and {found}.{hint(prefix, ctx.entries)} Name a module,"
                " a path or a prefix whose entries exist: call the module once before, or initialise the state."
            )
        below += params
    return exact, below


def _matching(ctx: Context, target: Any) -> list[str]:
    matches = predicate(target)
    # As for a module: what no code has declared (a moment in a plain dictionary) is of no kind in particular.
    found = [path for path, value in ctx.items() if matches(path, value, ctx.declared(path) or Variable)]
    floating = [path for path in found if _has_gradient(ctx.read(path))]
    if not floating:
        raise MissingEntryError(
            f"The filter {target!r} was named to differentiate or update, and matches {len(found)} of {len(ctx)} entries,"
            " none of them floating. The state has them once the model was called or initialised."
        )
    return floating


def _entries(ctx: Context, paths: list[str]) -> State:
    kinds = {path: kind for path in paths if (kind := ctx.declared(path)) is not None}
    return State({path: ctx.read(path) for path in paths}, kinds)


def _is_declared_param(ctx: Context, path: str) -> bool:
    """Whether an entry is a floating `Param`; one that no code has declared is none: what runs here does not read it."""
    return issubclass(kind_type(ctx.declared(path) or Variable), Param) and _has_gradient(ctx.read(path))


def kept(targets: Targets) -> Targets:
    """Returns the targets so that they can be gone through more than once."""
    return [*targets] if isinstance(targets, Iterator) else targets


def each(targets: Targets) -> Iterable[Any]:
    if isinstance(targets, (str, Module)) or is_filter(targets):
        yield targets
    elif isinstance(targets, (Mapping, Iterable)):
        for target in targets:
            yield from each(target)
    else:
        raise MissingEntryError(
            f"{targets!r} names no state entries. Name modules, paths, prefixes, kinds, or lists of these; or argument"
            " numbers."
        )


def _has_gradient(value: Any) -> bool:
    return bool(jax.dtypes.issubdtype(value.dtype, np.inexact))


def _differentiable(path: str, value: Any) -> None:
    if not _has_gradient(value):
        raise EntryShapeError(
            f"The state entry {path!r} is {describe(value)} and has no gradient. Name floating entries only, for example"
            " net.getm(…).filter(bridges.Param), or the module itself: it stands for its Param entries."
        )
