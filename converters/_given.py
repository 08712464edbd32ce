"""What a command was given, made into what it is about: references to models loaded, inputs and mappings read.

Nothing heavy is imported before a function runs, as in `cli`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import Any

import click

from converters._options import reader_options


def aside() -> contextlib.AbstractContextManager[Any]:
    """Sends what models print while they run to the standard error: the standard output is the command's."""
    return contextlib.redirect_stdout(sys.stderr)


def _arguments(
    src: str,
    dst: str,
    from_model: str | None,
    into: str | None,
    inputs: Sequence[str],
    mapping: str | None,
    to_format: str | None,
    namedtuples: Sequence[str],
    optimizer: str | None,
    **rest: Any,
) -> dict[str, Any]:
    """Returns the arguments of `converters.convert` for those of the command."""
    from bridges.mapping._mapping import Mapping
    from converters._inputs import parse
    from converters._models import load
    from converters._transformation import transformation

    args, kwargs = parse(inputs)
    models = [load(reference) if reference else None for reference in (from_model, into)]
    if any(models) and not inputs and any(m is not None and m.framework != "nnx" for m in models):
        name = next(m.name for m in models if m is not None and m.framework != "nnx")
        raise click.UsageError(f"{name} is made by its inputs: give them, such as --input 'float32[1,28,28,1]'.")
    return {
        "src": src,
        "dst": dst,
        "src_model": models[0],
        "dst_model": models[1],
        "inputs": args,
        "kwargs": kwargs,
        "mapping": Mapping.load(mapping) if mapping else None,
        "format": to_format,
        "options": reader_options(namedtuples),
        "tx": transformation(optimizer) if optimizer else None,
        **rest,
    }


def planned(**given: Any) -> Any:
    """Returns the job that `convert` would run for these options, planned."""
    from converters._job import Job

    with aside():
        return Job.of(**_arguments(**given))


def proof(
    src: str,
    dst: str | None,
    from_model: str | None,
    into: str | None,
    train_from: str | None,
    train_into: str | None,
    inputs: Sequence[str],
    mapping: str | None,
    optimizer: str | None,
    seed: int,
    namedtuples: Sequence[str],
    **reading: Any,
) -> Any:
    """Returns the report that `verify` and `report` show for these options."""
    from bridges.mapping._mapping import Mapping
    from converters._inputs import parse
    from converters._models import load
    from converters._proof import prove

    if not from_model or not into:
        raise click.UsageError("Two models are compared: give --from-model and --into.")
    if bool(train_from) != bool(train_into):
        raise click.UsageError("--train-from and --train-into go together.")
    args, kwargs = parse(inputs, seed)
    train = (load(train_from), load(train_into)) if train_from and train_into else None
    return prove(
        src,
        dst,
        load(from_model),
        load(into),
        args,
        kwargs,
        mapping=Mapping.load(mapping) if mapping else None,
        train=train,
        optimizer=optimizer,
        options=reader_options(namedtuples),
        **reading,
    )
