"""Uses: in which order a model's variables meet its inputs, and which of them feed which, found by tracing it once.

Names and numbers say how a model was written, the flow of data says what it computes: `b(a(x))` uses `b` on what `a` gave.
The order of uses in the trace is that of calls; whether one feeds the other is told apart from it, since the queries and
keys of an attention are called in some order and feed neither.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bridges.core._jaxpr import inner, trace


@dataclasses.dataclass(frozen=True)
class Use:
    """The first use of an entry together with something that depends on the model's inputs.

    Attributes:
      rank: Its place among all uses.
      own: The number of the entry's own bit in `after`. It is kept here, since entries change their order: a file has them
        in another one than the model that was traced.
      after: The bits of those entries are set that what it is used on depends on.
      backwards: Whether a `jax.lax.scan` reads its slices from the last to the first.
    """

    rank: int
    own: int
    after: int = 0
    backwards: bool = False


@dataclasses.dataclass(frozen=True)
class _Value:
    """A value of the trace.

    Attributes:
      mask: The entries that it depends on, as bits.
      latent: Whether it depends on no input: what is done to variables alone (a transposition, a cast) is no use of them.
    """

    mask: int = 0
    latent: bool = True


def uses(
    run: Callable[[dict[str, Any], Any], Any],
    entries: Mapping[str, Any],
    inputs: Any,
    failed: Callable[[str], Any] = lambda why: None,
) -> dict[str, Use]:
    """Returns the uses of a model's entries by path; an entry that is not used together with an input has none.

    None at all, if the model does not run on these inputs: nothing is then known of the order. It is evidence, not a check.

    Args:
      run: Runs the model on traced entries by path and traced inputs, and returns its output.
      entries: The entries; arrays or `jax.ShapeDtypeStruct`.
      inputs: A tree of arrays or `jax.ShapeDtypeStruct`.
      failed: Called with what the model raised, if it does not run.

    >>> import numpy as np
    >>> found = uses(lambda p, x: p['b'] @ (p['a'] @ x), {'a': np.ones((2, 2)), 'b': np.ones((2, 2))}, np.ones(2))
    >>> found['a'].rank, found['b'].rank, found['a'].after, found['b'].after == 1 << found['a'].own
    (0, 1, 0, True)
    """
    try:
        jaxpr = trace(run, dict(entries), inputs).closed.jaxpr
    except Exception as err:  # the model's own: it may need arguments of training, or have no call at all
        failed(f"{type(err).__name__}: {err}")
        return {}
    paths = sorted(entries)  # the order of leaves in a JAX tree of a dictionary
    bits = {path: n for n, path in enumerate(entries)}
    given = [_Value(1 << bits[path]) for path in paths]
    flow = _Flow()
    flow.run(jaxpr, given + [_Value(latent=False)] * (len(jaxpr.invars) - len(given)))
    found = {}
    for path, bit in bits.items():
        if bit in flow.first:
            rank, after = flow.first[bit]
            found[path] = Use(rank, bit, after, bool(flow.backwards >> bit & 1))
    return found


class _Flow:
    def __init__(self) -> None:
        self.first: dict[int, tuple[int, int]] = {}  # entry -> rank and what it is used on
        self.backwards = 0

    def run(self, jaxpr: Any, given: Sequence[_Value]) -> list[_Value]:
        """Goes through a jaxpr; returns its outputs for its inputs."""
        values = dict(zip(jaxpr.invars, given, strict=True))

        def of(var: Any) -> _Value:
            return _Value() if hasattr(var, "val") else values.get(var, _Value())  # a literal, a constant

        for eqn in jaxpr.eqns:
            ins = [of(var) for var in eqn.invars]
            bodies = inner(eqn)
            if bodies:
                outs = [_joined(found) for found in zip(*(self.body(*body, ins) for body in bodies), strict=True)]
            else:
                outs = [self.met(ins)] * len(eqn.outvars)
            values.update(zip(eqn.outvars, outs, strict=True))
        return [of(var) for var in jaxpr.outvars]

    def body(
        self, jaxpr: Any, taken: slice, carried: slice, outs: slice, back: slice, ins: list[_Value]
    ) -> list[_Value]:
        """Goes through the body of a loop or call; what it carries joins what comes in, until that no longer changes."""
        for value in ins[back]:
            self.backwards |= value.mask if value.latent else 0
        ins = ins[taken]
        while True:
            found = self.run(jaxpr, ins)[outs]
            if not (carry := ins[carried]):
                return found
            more = [_joined(pair) for pair in zip(carry, found, strict=False)]
            if more == carry:
                return found
            ins = [*ins[: carried.start], *more, *ins[carried.start + len(more) :]]

    def met(self, ins: Sequence[_Value]) -> _Value:
        """Returns the value that an operation gives for these; variables among them are used on the others."""
        whole = _joined(ins)
        if not whole.latent:
            rank, on = len(self.first), _joined(v for v in ins if not v.latent).mask
            for value in ins:
                mask = value.mask if value.latent else 0
                while mask:
                    bit = mask.bit_length() - 1
                    mask ^= 1 << bit
                    self.first.setdefault(bit, (rank, on & ~(1 << bit)))
        return whole


def _joined(values: Iterable[_Value]) -> _Value:
    mask, latent = 0, True
    for value in values:
        mask |= value.mask
        latent &= value.latent
    return _Value(mask, latent)
