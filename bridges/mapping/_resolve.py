"""The shapes between the ops of a rule, found from both ends."""

from __future__ import annotations

from collections.abc import Sequence

from bridges.core._errors import MappingError
from bridges.mapping._op import Abstract, Op, shapes, signature


def resolve(
    ops: Sequence[Op], ins: Sequence[Abstract], outs: Sequence[Abstract], check: bool = True
) -> tuple[tuple[Abstract, ...], ...]:
    """Returns shapes and dtypes before the first op, between the ops and after the last.

    What an op leaves open (the shape of a reshape, the sizes of a split) is read off the other end. Without `check`, it is
    known that the ops can take `ins` to `outs`: what goes back over a plan may be more than could be planned.

    Raises:
      MappingError: The ops cannot take `ins` to `outs`, or leave more open than both ends say.
    """
    left, right = [list(ins)], [list(outs)]  # grow towards each other
    ops = list(ops)
    while len(left) <= len(ops) and (found := ops[len(left) - 1].infer(left[-1])) is not None:
        left.append(found)
    if len(left) > len(ops):
        if signature(left[-1]) != signature(outs):
            raise MappingError(f"{shapes(ins)} becomes {shapes(left[-1])}, the target has {shapes(outs)}")
        return tuple(map(tuple, left))
    stuck = len(left) - 1
    while len(right) < len(ops) - stuck and (found := ops[-len(right)].inverse.infer(right[-1])) is not None:
        right.append(found)
    if len(right) < len(ops) - stuck:
        raise MappingError(
            f"the sizes between {ops[stuck]} and {ops[-len(right)]} are open: write them out in one of the two"
        )
    if check:
        ops[stuck].check(left[-1], right[-1])
    return tuple(map(tuple, left + right[::-1]))
