"""Proof of a conversion from files: `verify` for a checkpoint, two models, and the converted file if there is one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bridges.core._errors import hint, listing
from bridges.core._kind import RngState, kind_type
from bridges.core._spec import Spec
from bridges.core._state import State
from bridges.mapping._mapping import Mapping as Rules
from converters import formats
from converters._contents import contents
from converters._errors import CheckpointError
from converters._job import rules_for, source_spec
from converters._models import Model
from converters._transformation import transformation
from converters._verify import verify
from converters.formats import read_leaf
from converters.report import Report


def prove(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str] | None,
    from_model: Model,
    into: Model,
    inputs: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    mapping: Rules | None = None,
    train: tuple[Model, Model] | None = None,
    optimizer: str | None = None,
    framework: str | None = None,
    part: str | None = None,
    src_format: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Report:
    """Returns the report of `verify` for files.

    Args:
      src: The source's checkpoint.
      dst: The converted one; None converts in memory.
      from_model, into: The two models.
      inputs, kwargs: Their inputs, with values.
      mapping, framework, part, src_format, options: As for `converters.convert`.
      train: The two models in training mode.
      optimizer: The name of an optax optimizer (its learning rate is then 1e-3), or `file.py:name` of a transformation: a
        training step is compared with it.

    Raises:
      CheckpointError, MappingError, StructureError: Files, models and mapping do not fit.
      UnsupportedError: There is no such optimizer.
    """
    given = dict(kwargs or {})
    specs = [model.spec(*inputs, **given) for model in (from_model, into)]
    names = [model.family for model in (from_model, into)]
    found = contents(formats.read(src, src_format, **(options or {})).tree, framework or names[0], part, specs[0])
    rules = rules_for(mapping, found, names[1], specs[1])
    assert rules is not None, "there is a target's spec"
    plan = rules.plan(source_spec(found, specs[0]), specs[1])
    ends: list[State | None] = [_read(found.variables, plan.src), None]
    if dst is not None:
        there = contents(formats.read(dst).tree, names[1], None, specs[1]).variables
        lacking = [f"{path!r}.{hint(path, there)}" for path in plan.dst if path not in there]
        if lacking:
            raise CheckpointError(f"{dst} lacks entries of {into.name}:\n" + listing(lacking))
        ends[1] = _read(there, plan.dst)
    sides = [_function(model, spec, given) for model, spec in zip((from_model, into), specs, strict=True)]
    in_training = [_function(model, spec, given, True) for model, spec in zip(train or (), specs, strict=False)]
    return verify(
        *sides,
        *inputs,
        src=ends[0],
        dst=ends[1],
        plan=plan,
        train=(in_training[0], in_training[1]) if train else None,
        optimizer=transformation(optimizer) if optimizer else None,
    )


def _read(entries: Mapping[str, Any], wanted: State) -> State:
    return State({path: read_leaf(entries[path]) for path in wanted}, wanted.declared)


def _function(model: Model, spec: Spec, kwargs: Mapping[str, Any], train: bool = False) -> Callable[..., Any]:
    """Returns the model as a function of flat variables; it has its own random state beside what is converted."""
    random = {p for p in spec.entries if (kind := spec.entries.kind(p)) and issubclass(kind_type(kind), RngState)}
    own = model.random_state(random) if model.framework == "nnx" else {}

    # In training mode a model may ask for random numbers, as dropout does at any rate.
    rngs = 0 if train and model.framework != "nnx" else None

    def apply(variables: Mapping[str, Any], *inputs: Any) -> Any:
        out, state = model.apply(State({**own, **variables}, spec.entries.declared), *inputs, rngs=rngs, **kwargs)
        return (out, {path: state[path] for path in variables}) if train else out

    return apply
