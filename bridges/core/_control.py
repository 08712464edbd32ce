"""cond, switch, scan, while_loop and fori_loop, lifted over state and random streams.

A body is traced once, with every entry of the state an input, so that what it reads and modifies is known before JAX's
own control flow is built; that is then built from the traced operations, never from the Python function again. Where
entries may be created, each body is first run once inline, creating only. Nested to depth d, the innermost body is
therefore traced at most d + 1 times (once, where nothing may be created).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from bridges.core._context import Context, context
from bridges.core._errors import BridgeError
from bridges.core._frame import current_frame
from bridges.core._jaxpr import Traced, trace
from bridges.core._rng import Streams, fold
from bridges.core._stack import Stack
from bridges.core._transforms import Body, Effects, prepare


class _Step:
    """One body traced to `(effects, out) = step(entries, keys, *args)`, with what it modifies.

    Args:
      fn: The stateful function.
      args: Its arguments, or `jax.ShapeDtypeStruct` for them.
      counters: Draws so far, so that a body that runs beside another one draws other keys.
      modify: Whether it may modify entries.
      entries: The entries that it sees, if not those of the running context.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        counters: Any = None,
        modify: bool = True,
        entries: Mapping[str, Any] | None = None,
    ):
        body = Body(fn)
        outer = body.outer
        streams = outer.streams
        self.keys = None if streams is None else streams.given()
        begin = counters if counters is not None else {} if streams is None else streams.counters
        used: list[Streams | None] = []

        def run(entries: dict[str, Any], keys: Any, *args: Any) -> tuple[Effects, Any]:
            inner = None if keys is None else Streams(keys, begin)
            ctx = outer.child(entries, inner, create=False, modify=modify and outer.modify)
            out = body.run(ctx, args, {})
            used.append(None if inner is None else inner.tally())
            return Effects.of(ctx), out

        self.traced: Traced = trace(run, dict(outer.entries if entries is None else entries), self.keys, *args)
        self.streams = used[-1]
        effects, self.out = self.traced.shape
        self.written: dict[str, Any] = effects.written("scan, cond, switch, while_loop and fori_loop")

    @property
    def drawn(self) -> bool:
        """Whether the body drew a key."""
        return self.streams is not None and self.streams.drawn

    def __call__(self, entries: dict[str, Any], keys: Any, *args: Any) -> tuple[dict[str, Any], Any]:
        effects, out = self.traced(entries, keys, *args)
        return {**effects.created, **effects.modified}, out


def _begin(outer: Context, written: dict[str, Any]) -> dict[str, Any]:
    """Returns what the written entries are before: their value, zeros for one that the body records anew."""
    entries = outer.entries

    def fits(path: str, wanted: Any) -> bool:
        return path in entries and (entries[path].shape, entries[path].dtype) == (wanted.shape, wanted.dtype)

    return {p: entries[p] if fits(p, s) else jnp.zeros(s.shape, s.dtype) for p, s in written.items()}


def _settled(build: Callable[[Any], _Step], init: Any, carry: Callable[[_Step], Any]) -> tuple[_Step, Any]:
    """Returns the step that `build(init)` traces, and `init` as it must be for it.

    A Python number in the first carry takes the type of what comes out of the body, as JAX does it; where that changes
    its dtype, the body is traced once more.
    """
    frame = current_frame()
    names = set() if frame is None else set(frame.names)
    step = build(init)
    given, out = jax.eval_shape(lambda x: x, init), carry(step)
    if jax.tree.structure(given) != jax.tree.structure(out):  # type: ignore[operator]
        return step, init  # JAX explains that better than anybody.
    promoted = jax.tree.map(_promoted, init, given, out)
    if all(a is b for a, b in zip(jax.tree.leaves(promoted), jax.tree.leaves(init), strict=True)):
        return step, init
    if frame is not None:
        frame.names &= names
    return build(promoted), promoted


def _promoted(value: Any, given: Any, out: Any) -> Any:
    weak = getattr(given, "weak_type", False) and given.dtype != out.dtype and given.shape == out.shape
    return jnp.asarray(value, jnp.promote_types(given.dtype, out.dtype)) if weak else value


def _known(entries: Mapping[str, Any], changing: dict[str, Any]) -> dict[str, Any]:
    """Returns the entries as inputs of a traced body, the changing ones at their present values.

    A recorded value that has taken another shape is no input of the body: that was traced with what was there before.
    """
    return {
        path: changing[path] if path in changing and changing[path].shape == value.shape else value
        for path, value in entries.items()
    }


def _finish(outer: Context, written: dict[str, Any], steps: Sequence[_Step]) -> None:
    for path, value in written.items():
        outer.write(path, value, outer.kind(path))
    if outer.streams is not None:
        for step in steps:
            if step.streams is not None:
                most = {**outer.streams.counters}
                for key, count in step.streams.counters.items():
                    most[key] = max(count, most.get(key, 0))
                outer.streams.counters = most
                outer.streams.drawn |= step.streams.drawn


def cond(pred: Any, true_fun: Callable[..., Any], false_fun: Callable[..., Any], *operands: Any) -> Any:
    """Returns `true_fun(*operands)` where `pred` holds, else `false_fun(*operands)`, as `jax.lax.cond`.

    Both functions may read, create and modify state; what only one modifies keeps its value in the other.
    """

    def choose(branches: list[Callable[..., Any]], written: dict[str, Any], operands: tuple[Any, ...]) -> Any:
        return jax.lax.cond(pred, *branches, written, *operands)

    return _select([true_fun, false_fun], operands, choose)


def switch(index: Any, branches: Sequence[Callable[..., Any]], *operands: Any) -> Any:
    """Returns `branches[index](*operands)`, the index clamped, as `jax.lax.switch`; state as in `cond`."""

    def choose(branches: list[Callable[..., Any]], written: dict[str, Any], operands: tuple[Any, ...]) -> Any:
        return jax.lax.switch(index, branches, written, *operands)

    return _select(list(branches), operands, choose)


def _select(functions: list[Callable[..., Any]], operands: tuple[Any, ...], choose: Callable[..., Any]) -> Any:
    outer = context()
    prepare(functions, operands, {})
    steps = [_Step(fn, operands) for fn in functions]
    written = _begin(outer, {path: shape for step in steps for path, shape in step.written.items()})

    def branch(step: _Step) -> Callable[..., Any]:
        def run(before: dict[str, Any], *operands: Any) -> Any:
            new, out = step(_known(outer.entries, before), step.keys, *operands)
            return {**before, **new}, out

        return run

    after, out = choose([branch(step) for step in steps], written, operands)
    _finish(outer, after, steps)
    return out


def scan(
    fn: Callable[[Any, Any], tuple[Any, Any]],
    init: Any,
    xs: Any = None,
    length: int | None = None,
    reverse: bool = False,
    unroll: int | bool = 1,
    *,
    state_axes: Mapping[Any, int | None] | None = None,
) -> tuple[Any, Any]:
    """Returns `(carry, ys)` of `carry, y = fn(carry, x)` over the leading axis of `xs`, as `jax.lax.scan`.

    State that `fn` modifies is carried from step to step; state that it creates is created once and shared by all steps,
    but for what `state_axes` names. Every step draws keys of its own.

    Args:
      fn: A stateful function `(carry, x) -> (carry, y)`.
      init: The first carry, any pytree of arrays.
      xs: Arrays `[length, …]`, any pytree, or None.
      length: The number of steps, where `xs` is None.
      reverse: Whether to run from the last to the first.
      unroll: As in `jax.lax.scan`.
      state_axes: Module, path or prefix -> axis (None: shared, within a prefix that is not). Every step has its own entries
        there, stacked along the axis: layers of one sort, `scan(lambda x, _: (layer(x), None), x, length=12,
        state_axes={layer: 0})`. They are created with distinct keys; what a step writes to them, and what an `Intermediate`
        there records, is stacked likewise.

    Raises:
      EntryShapeError: A stacked entry has no axis of that length.
      MissingEntryError: `state_axes` names a path with no entries.

    >>> import bridges as br
    >>> class Layer(br.Module):
    ...   def __call__(self, x):
    ...     return jnp.tanh(x @ self.get('w', lambda: jax.random.normal(br.rng(), (2, 2))))
    >>> layer = Layer()
    >>> deep = lambda x: br.scan(lambda x, _: (layer(x), None), x, length=12, state_axes={layer: 0})[0]
    >>> br.init(deep)({}, jnp.ones((1, 2)), seed=0)['layer/w'].shape
    (12, 2, 2)
    """
    lengths = {leaf.shape[0] for leaf in jax.tree.leaves(xs)}
    if len(lengths | ({length} if length is not None else set())) != 1:
        raise BridgeError(
            f"scan needs one length: the leading axes of xs are {sorted(lengths)}, length={length}. Give xs with equal"
            " leading axes, or length= alone."
        )
    (count,) = lengths or {length}
    body = Body(fn)
    outer = body.outer
    stack = Stack(outer, state_axes or {}, count)
    if outer.create:
        at = count - 1 if reverse else 0
        first = jax.tree.map(lambda x: x[at] if count else jnp.zeros(x.shape[1:], x.dtype), xs)
        if state_axes:
            first = jax.tree.map(lambda x: jnp.asarray(x)[None], first)
            stack.create(lambda ctx, given: body.run(ctx, (init, *given), {}), (xs,), (first,))
        else:
            body.prepare(init, first)
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), jax.eval_shape(lambda x: x, xs))

    def carry_of(step: _Step) -> Any:
        if not isinstance(step.out, (tuple, list)) or len(step.out) != 2:
            got = jax.tree.structure(step.out)
            raise BridgeError(f"The function of scan must return (carry, y); it returned {got}.")
        return step.out[0]

    stacked = stack.entries()
    known = {path: value for path, value in outer.entries.items() if path not in stack}
    entries = {**known, **{p: jax.ShapeDtypeStruct(v.shape[1:], v.dtype) for p, v in stacked.items()}}
    step, init = _settled(lambda init: _Step(fn, (init, one), entries=entries), init, carry_of)

    def run(before: tuple[dict[str, Any], Any], inputs: tuple[Any, ...]) -> Any:
        (changing, carry), (index, own, x) = before, inputs
        keys = step.keys if index is None else fold(step.keys, index)
        new, (carry, y) = step({**_known(known, changing), **own}, keys, carry, x)
        own = {path: new.pop(path) for path in [*new] if path in stack}
        return ({**changing, **new}, carry), (own, y)

    index = jnp.arange(count) if step.drawn else None
    begin = (_begin(outer, {path: s for path, s in step.written.items() if path not in stack}), init)
    inputs = (index, stacked, xs)
    (written, carry), (own, ys) = jax.lax.scan(run, begin, inputs, length=count, reverse=reverse, unroll=unroll)
    _finish(outer, {**written, **stack.whole(own)}, [step])
    stack.check()
    return carry, ys


def while_loop(cond_fun: Callable[[Any], Any], body_fun: Callable[[Any], Any], init_val: Any) -> Any:
    """Returns the value after `val = body_fun(val)` while `cond_fun(val)` holds, as `jax.lax.while_loop`.

    `body_fun` may read, create and modify state; `cond_fun` may read it, and sees what the body modified.
    """
    outer = context()
    prepare([cond_fun, body_fun], (init_val,), {})
    tests: list[_Step] = []

    def build(init: Any) -> _Step:
        tests.append(_Step(cond_fun, (init,), modify=False))
        return _Step(body_fun, (init,), None if tests[-1].streams is None else tests[-1].streams.counters)

    step, init_val = _settled(build, init_val, lambda step: step.out)
    test = tests[-1]
    counted = test.drawn or step.drawn

    def keys(index: Any) -> Any:
        return fold(step.keys, index) if counted else step.keys

    def holds(before: Any) -> Any:
        index, changing, value = before
        return test(_known(outer.entries, changing), keys(index), value)[1]

    def run(before: Any) -> Any:
        index, changing, value = before
        new, value = step(_known(outer.entries, changing), keys(index), value)
        return index + 1 if counted else None, {**changing, **new}, value

    begin = (jnp.int32(0) if counted else None, _begin(outer, step.written), init_val)
    _, written, value = jax.lax.while_loop(holds, run, begin)
    _finish(outer, written, [test, step])
    return value


def fori_loop(lower: Any, upper: Any, body_fun: Callable[[Any, Any], Any], init_val: Any) -> Any:
    """Returns the value after `val = body_fun(i, val)` for `i` from `lower` to `upper - 1`, as `jax.lax.fori_loop`."""
    body = Body(body_fun)
    outer = body.outer
    if outer.create:
        body.prepare(jnp.asarray(lower), init_val)
    index = jax.eval_shape(jnp.asarray, lower)
    step, init_val = _settled(lambda init: _Step(body_fun, (index, init)), init_val, lambda step: step.out)

    def run(index: Any, before: tuple[dict[str, Any], Any]) -> Any:
        changing, value = before
        keys = fold(step.keys, index) if step.drawn else step.keys
        new, value = step(_known(outer.entries, changing), keys, index, value)
        return {**changing, **new}, value

    written, value = jax.lax.fori_loop(lower, upper, run, (_begin(outer, step.written), init_val))
    _finish(outer, written, [step])
    return value
