"""The table of ops by name, and reading one from plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from bridges.core._errors import MappingError, hint
from bridges.mapping._each import Add, Cast, Expand, Flip, Reshape, Scale, Squeeze, Swap, Transpose
from bridges.mapping._heads import Every, Heads, Merge, Repeat
from bridges.mapping._lists import Concat, Copy, Lead, Pick, Reorder, Split, Stack, Sum, Unstack
from bridges.mapping._op import Op
from bridges.mapping._over import Fold, Over, Permute, Unfold

OPS: dict[str, type[Op]] = {
    op.name: op
    for op in (
        *(Transpose, Swap, Reshape, Squeeze, Expand, Flip, Add, Scale, Cast),
        *(Split, Concat, Stack, Unstack, Reorder, Sum, Lead, Pick, Copy),
        *(Fold, Unfold, Permute, Over),
        *(Heads, Merge, Repeat, Every),
    )
}


def op_from_dict(given: Mapping[str, Any] | str | Op) -> Op:
    """Returns the op of its plain data; a bare name is an op with no arguments.

    >>> op_from_dict({'op': 'transpose', 'axes': [1, 0]})
    Transpose(axes=(1, 0), part=None)
    """
    if isinstance(given, str):
        given = {"op": given}
    if isinstance(given, Op):
        return given
    if not isinstance(given, Mapping):
        raise MappingError(f"An op is a name or a table with the key `op`, not {given!r}.")
    args = dict(given)
    name = args.pop("op", None)
    if not isinstance(name, str) or name not in OPS:
        raise MappingError(f"{name!r} is not an op.{hint(str(name), OPS)} There are {', '.join(OPS)}.")
    known = [f.name for f in dataclasses.fields(OPS[name])]
    wrong = [key for key in args if key not in known]
    if wrong:
        raise MappingError(f"The op {name} has no argument {wrong[0]!r}; it has {', '.join(known) or 'none'}.")
    if name == Over.name:
        args["ops"] = tuple(map(op_from_dict, args.get("ops", ())))
    return OPS[name](**args)


def recorded_op(given: Mapping[str, Any]) -> Op:
    """Returns the op of what `to_dict` wrote into a plan or a manifest, today or in an earlier version.

    A copy says since decision 70 whether it is `equal`; one that does not is of before, and is not.

    >>> recorded_op({'op': 'copy'}), op_from_dict({'op': 'copy'})
    (Copy(parts=None, equal=False), Copy(parts=None, equal=True))
    """
    op = op_from_dict(given)
    if isinstance(op, Copy) and "equal" not in given:
        return dataclasses.replace(op, equal=False)
    if isinstance(op, Over):
        return dataclasses.replace(op, ops=tuple(map(recorded_op, given["ops"])))
    return op
