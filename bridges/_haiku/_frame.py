"""Running code in Haiku's frames: one transformed function for everything, and what watches it run.

Haiku keeps its frames and its stacks of creators, getters and interceptors a thread; a watch is entered inside a frame and
sees what that code reads and creates, also in the inner frames of `hk.lift` and `hk.layer_stack`. A part that runs inside
another part's Haiku code sees only its own watch.
"""

from __future__ import annotations

import collections
import contextlib
import contextvars
from collections.abc import Callable
from typing import Any

import haiku as hk
import jax
from haiku._src import base as _haiku_base

from bridges._haiku._tree import PARAMS, STATE, Native
from bridges.core._errors import SeedError

Thunk = Callable[[], Any]
Draw = Callable[[], jax.Array]
Place = tuple[str, str, str]  # collection, module, leaf
Missing = Callable[[str, str, Any, Any], Exception]  # of a parameter's module, leaf, shape and dtype

# The one Haiku function of the project: it runs what it is given inside a frame.
_RUN = hk.transform_with_state(lambda thunk: thunk())


def run_init(key: Any, thunk: Thunk) -> tuple[Native, Any]:
    """Returns the variables that `thunk` makes in a Haiku frame at init time, and its output."""
    out = []
    native = _RUN.init(key, lambda: out.append(thunk()))
    return native, out[0]


def run_apply(native: Native, thunk: Thunk) -> tuple[Any, Any]:
    """Returns the output of `thunk` in a Haiku frame that holds the variables, and the new state."""
    return _RUN.apply(native[0], native[1], None, thunk)


class _LazySequence(hk.PRNGSequence):
    """A sequence whose first key is drawn when it is needed, so that what draws nothing traces no random operation."""

    __slots__ = ("_draw", "_drawn")

    def __init__(self, draw: Draw):
        self._draw = draw
        self._drawn: Any = None
        self._subkeys = collections.deque()

    @property
    def _key(self) -> Any:
        if self._drawn is None:
            self._drawn = self._draw()
        return self._drawn

    @_key.setter
    def _key(self, key: Any) -> None:
        self._drawn = key


def private_haiku(draw: Draw | None) -> tuple[contextlib.AbstractContextManager[Any], type[Exception]]:
    """Returns what this project takes from Haiku's private API; with `sequence` it is all. `tests` pin dm-haiku 0.0.17.

    Returns:
      A context manager under which the current frame draws from `draw` at need (`hk.with_rng` would need a key at once,
      and so a random operation in every program), and the error that Haiku raises when it draws without a key.
    """
    if draw is None:
        return contextlib.nullcontext(), _haiku_base.MissingRNGError
    return _haiku_base.current_frame().rng_stack(_LazySequence(draw)), _haiku_base.MissingRNGError


def sequence() -> hk.PRNGSequence | None:
    """Returns the sequence of keys that `hk.next_rng_key` draws from in the current frame, None if there is no key.

    Guests draw when other frames run inside of this one, and whether there is a key at all must be known without a draw.
    """
    return _haiku_base.current_frame().rng_stack.peek()


def drawing(draw: Draw | None, thunk: Thunk) -> Any:
    """Returns what `thunk` returns, called in the current Haiku frame with keys drawn from `draw`, or with none."""
    if draw is None:
        return thunk()
    with private_haiku(draw)[0]:
        return thunk()


def explained(err: Exception, where: str, what: str) -> Exception:
    """Returns a `SeedError` that names the part and the remedy for Haiku's error for a missing key; else the error."""
    if not isinstance(err, private_haiku(None)[1]):
        return err
    return SeedError(
        f"{where} draws random numbers {what}, and no seed was given. Pass one: seed=0 (or a key, or a dictionary of"
        " streams) to bridges.init, bridges.pure or bridges.jit; rng or rngs to the verbs of haiku_adapter."
    )


_ACTIVE: contextvars.ContextVar[Watch | None] = contextvars.ContextVar("bridges_haiku_watch", default=None)


class Watch:
    """What Haiku code does to variables while it runs; the base class lets everything pass.

    Enter it inside a Haiku frame. The hooks are called for the innermost watch only.
    """

    def run(self, thunk: Thunk) -> Any:
        """Returns what `thunk` returns, called in the current Haiku frame with the hooks in place."""
        token = _ACTIVE.set(self)
        try:
            return self.hooked(thunk)
        finally:
            _ACTIVE.reset(token)

    def hooked(self, thunk: Thunk) -> Any:
        """Installs the hooks and returns what `thunk` returns."""
        return thunk()

    @property
    def active(self) -> bool:
        """Whether the code that runs is what this watches, and not another part inside of it."""
        return _ACTIVE.get() is self


def where(context: hk.GetterContext) -> tuple[str, str]:
    """Returns module and leaf name (Haiku's own `context.name` is wrong where the leaf's name holds a slash)."""
    module = context.module.module_name if context.module is not None else "~"
    return module, context.full_name[len(module) + 1 :]


class Reader(Watch):
    """Watches code run over variables that must be there.

    Attributes:
      verified: The stored entries that were seen to have the shape that the code asks for.
    """

    def __init__(self, native: Native, missing: Missing, create: bool):
        self._params, self._state = native
        self._missing = missing
        self._create = create
        self.verified: set[Place] = set()
        self.created: dict[tuple[str, str], Any] = {}

    def hooked(self, thunk: Thunk) -> Any:
        with hk.custom_creator(self._new_param), hk.custom_getter(self._got, state=bool(self._state)):
            if not self._create:  # A state entry that Haiku makes is noticed among the new state.
                return thunk()
            with hk.custom_creator(self._new_state, params=False, state=True):
                return thunk()

    def _new_param(self, next_creator: Any, shape: Any, dtype: Any, init: Any, context: hk.GetterContext) -> Any:
        if hk.running_init() or not self.active:  # The code initialises something of its own, as it likes.
            return next_creator(shape, dtype, init)
        raise self._missing(*where(context), shape, dtype)

    def _new_state(self, next_creator: Any, shape: Any, dtype: Any, init: Any, context: hk.GetterContext) -> Any:
        value = next_creator(shape, dtype, init)
        if self.active and not hk.running_init():
            self.created[where(context)] = value
        return value

    def _got(self, next_getter: Any, value: Any, context: hk.GetterContext) -> Any:
        if self.active:
            module, leaf = where(context)
            if self._params.get(module, {}).get(leaf) is value:  # Haiku compares the shape, after other getters.
                self.verified.add((PARAMS, module, leaf))
            elif self._state.get(module, {}).get(leaf) is value and _has_shape(value, context.original_shape):
                self.verified.add((STATE, module, leaf))
        return next_getter(value)


def _has_shape(value: Any, shape: Any) -> bool:
    return shape is not None and hasattr(value, "shape") and tuple(value.shape) == tuple(shape)


class Filler(Reader):
    """Watches code run at apply time and makes the parameters and state that it lacks.

    Used where there is no init function for the code that runs: the apply functions of a `hk.multi_transform`. Haiku
    refuses to store new parameters at apply time, so they are kept here and handed to the code by the getter.

    Attributes:
      params: The parameters that were made, by (module, leaf).
      created: The state entries that were made, by (module, leaf), as they were made.
    """

    def __init__(self, native: Native, missing: Missing, abstract: bool = False):
        super().__init__(native, missing, create=True)
        self._abstract = abstract
        self.params: dict[tuple[str, str], Any] = {}

    def _new_param(self, next_creator: Any, shape: Any, dtype: Any, init: Any, context: hk.GetterContext) -> Any:
        init = zeros if self._abstract else init
        if hk.running_init() or not self.active:
            return next_creator(shape, dtype, init)
        place = where(context)
        if place not in self.params:
            value = next_creator(shape, dtype, init)
            if value is hk.DO_NOT_STORE:
                return value
            self.params[place] = value
        return hk.DO_NOT_STORE

    def _got(self, next_getter: Any, value: Any, context: hk.GetterContext) -> Any:
        if self.active and value is hk.DO_NOT_STORE:
            value = self.params.get(where(context), value)
        return super()._got(next_getter, value, context)


class Training(Watch):
    """Watches code run at init time and tells BatchNorm that it trains: only then does it make its state."""

    def hooked(self, thunk: Thunk) -> Any:
        with hk.intercept_methods(self._method):
            return thunk()

    def _method(self, next_fun: Any, args: Any, kwargs: Any, context: hk.MethodContext) -> Any:
        if isinstance(context.module, hk.BatchNorm) and context.method_name == "__call__" and hk.running_init():
            args = (args[0], True, *args[2:]) if len(args) > 1 else args
            kwargs = {**kwargs, "is_training": True} if len(args) < 2 else kwargs
        return next_fun(*args, **kwargs)


class Skeleton(Training):
    """Watches code run at init time and makes parameters with no initialiser.

    State initialisers do run, abstractly: what a state entry holds (its shape, its tree) only they know.
    """

    def hooked(self, thunk: Thunk) -> Any:
        with hk.custom_creator(self._new_param):
            return super().hooked(thunk)

    def _new_param(self, next_creator: Any, shape: Any, dtype: Any, init: Any, context: hk.GetterContext) -> Any:
        return next_creator(shape, dtype, zeros)


def zeros(shape: Any, dtype: Any) -> jax.Array:
    """Returns zeros: an initialiser that draws nothing."""
    return jax.numpy.zeros(shape, dtype)
