"""Haiku code as a `bridges.Module`."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Any

import jax

from bridges._haiku._flags import following
from bridges._haiku._part import Code, Multi, part_of
from bridges._haiku._run import Call, Runner
from bridges._haiku._tree import kind
from bridges.core._context import Context, context
from bridges.core._errors import SeedError, StructureError, listing
from bridges.core._flat import SEPARATOR
from bridges.core._frame import current_frame
from bridges.core._module import Module
from bridges.core._naming import snake_case
from bridges.core._training import training_flags


class HaikuModule(Module):
    """Runs Haiku code as a part of a model; its variables are entries of the state like any others.

    The entries are `<path>/params/<Haiku's path>` and `<path>/state/<Haiku's path>`, with exactly the names that
    `hk.transform_with_state` of the code gives, so a native checkpoint drops in below a prefix. What the code changes in
    its state is written back. Where the wrapper is the whole model, initial values are those of the native `init` for the
    same key. A seed is needed only where the code draws; of several streams it draws from `default`, or else from the only
    one beside `params`.

    Every call creates what it needs and does not find, where creating is allowed, and never makes anew what is there. In
    all other calls nothing may be missing, misshapen or left over; no initialiser is traced and no seed asked for. (What
    is left over cannot be told for a module class with several public methods, since any of them may use it.)

    Args:
      part: An `hk.Module` class or a `functools.partial` of one; a function that uses Haiku modules; what `hk.transform`,
        `hk.transform_with_state`, `hk.multi_transform`, `hk.multi_transform_with_state` or `hk.without_apply_rng` give.
      *args: Arguments of the class's constructor.
      name: As for every module. To name the Haiku module inside, pass `functools.partial(hk.Linear, name='head')`.
      **kwargs: Arguments of the class's constructor.

    `bridges.flags(train=…, deterministic=…, use_running_average=…)` reach a call of a function or class where it takes an
    argument of that name (or `is_training`, `training`) that is not passed, and layers inside that lack it (`hk.BatchNorm`
    in a `hk.Sequential`, for which `use_running_average` decides too).

    Calls take the arguments of the code. A method of the class, or one of the functions of a `multi_transform`, is reached
    by its name as an attribute, `net.encode(x)`, or as `net(x, method='encode')`; the latter also where the wrapper has an
    attribute of that name (`get`, `put`, `name`, `path`, …). A property of the class is read as an attribute.

    Raises:
      UnsupportedError: `part` is none of these.
      FieldError: Constructor's arguments were given for a part that is not a class; a method does not exist.

    >>> import bridges as br, haiku as hk, jax.numpy as jnp
    >>> class Net(br.Module):
    ...   def __init__(self):
    ...     self.enc = br.HaikuModule(hk.nets.MLP, [4, 2])
    ...   def __call__(self, x):
    ...     return self.enc(x)
    >>> state = br.init(Net())({}, jnp.ones((1, 3)), seed=0)
    >>> [p for p in state if p.endswith('w')]
    ['net/enc/params/mlp/~/linear_0/w', 'net/enc/params/mlp/~/linear_1/w']
    """

    def __init__(self, part: Any, /, *args: Any, **kwargs: Any):
        self._runner = Runner(part_of(part, args, kwargs))

    @classmethod
    def _auto_name(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        return snake_case(part_of(args[0], args[1:], kwargs).name) if args else super()._auto_name(args, kwargs)

    def __call__(self, *args: Any, method: str | int | None = None, **kwargs: Any) -> Any:
        """Calls the code.

        Args:
          *args: Its arguments.
          method: Which method of the class, or function of the `multi_transform` (a name, an index, or a path), to call.
          **kwargs: Its arguments by keyword.

        Returns:
          What the code returns. A `multi_transform` called without a method, where entries may be created, is
          initialised by its template and returns None.

        Raises:
          MissingEntryError: Variables are missing and may not be created here.
          EntryShapeError: Variables have other shapes than the code asks for.
          StructureError: There are entries below this module that the code has no use for.
          SeedError: The code draws a key and no seed was given.
        """
        runner, ctx, path = self._runner, context(), self.path
        method = None if method is None else str(method)
        flags = training_flags(ctx.flags)
        if flags:
            kwargs = {**kwargs, **runner.part.told(method, (args, kwargs), flags)}
        call = Call(method, (args, kwargs), repr(path), path + SEPARATOR, tuple(flags.items()))
        if not flags:
            return _perform(self, runner, ctx, call)
        with following(flags):
            return _perform(self, runner, ctx, call)

    def _wrapped(self, name: str) -> Any:
        return self.__getattr__(name) if name in self._runner.part.methods else None

    def __getattr__(self, name: str) -> Any:
        part = self.__dict__["_runner"].part if "_runner" in self.__dict__ and not name.startswith("_") else None
        if part is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        part.check(name)
        if isinstance(part, Code) and part.is_property(name):
            return self(method=name)
        return types.MethodType(_method(name), self)


# Functions and not methods: a method of a module has a frame, and automatic names, of its own.


def _perform(module: HaikuModule, runner: Runner, ctx: Context, call: Call) -> Any:
    """Returns the output of a call; what it makes and changes is written to the entries."""
    path = module.path
    if isinstance(runner.part, Multi) and runner.part.template_only and call.method is None and ctx.create:
        _make(runner, ctx, path, _stored(ctx, path)[0], call)
        return None
    runner.part.check(call.method)
    draw = _once(lambda: ctx.draw(_stream(ctx), path)) if ctx.has_seed else None
    stored, others = _stored(ctx, path)
    done = runner.attempt(stored, draw, call) if ctx.create and stored else None
    if ctx.create and done is None:
        try:
            _make(runner, ctx, path, stored, call)
        except SeedError:  # Nothing is lost where only state is missing that is made without a key.
            done = runner.attempt(stored, draw, call, create=True) if stored and not ctx.has_seed else None
            if done is None:
                raise
        stored, others = _stored(ctx, path)
    out, changed, made = done or runner.run(stored, draw, call, create=ctx.create)
    for entries in (made, changed):
        for name, value in entries.items():
            ctx.write(f"{path}{SEPARATOR}{name}", value, kind(name, value))
    if others:
        _check(module, others)
    return out


def _stored(ctx: Context, path: str) -> tuple[dict[str, Any], list[str]]:
    """Returns the entries below a path that are Haiku's, and the paths of those that are not."""
    stored = ctx.under(path)
    others = [name for name in stored if not name.startswith(("params/", "state/"))]
    return {p: v for p, v in stored.items() if p not in others} if others else stored, others


def _check(module: HaikuModule, others: list[str]) -> None:
    """Raises if entries are neither Haiku's nor of a module that the Haiku code made in this call."""
    frame = current_frame()
    made = module._names | (frame.names if frame is not None else set())
    unknown = [name for name in others if name.split(SEPARATOR, 1)[0] not in made]
    if unknown:
        raise StructureError(
            f"Below the Haiku part {module.path!r} there are entries that are neither its params nor its state:\n"
            + listing(f"unexpected {module.path + SEPARATOR + name!r}." for name in unknown)
            + "\nRemove them from the state, or rename them to the entries that they were meant for."
        )


def _make(runner: Runner, ctx: Context, path: str, stored: Mapping[str, Any], call: Call) -> None:
    """Writes the entries that a first call makes."""
    key = (lambda: ctx.init_key(path)) if ctx.has_seed else None
    for name, value in runner.make(stored, key, call).items():
        ctx.write(f"{path}{SEPARATOR}{name}", value, kind(name, value))


def _method(name: str) -> Callable[..., Any]:
    def call(self: HaikuModule, /, *args: Any, **kwargs: Any) -> Any:
        return self(*args, method=name, **kwargs)

    call.__name__ = call.__qualname__ = name
    return call


def _once(make: Callable[[], jax.Array]) -> Callable[[], jax.Array]:
    """Returns a function that gives what `make` gives, the same at every call."""
    made: list[jax.Array] = []

    def given() -> jax.Array:
        if not made:
            made.append(make())
        return made[0]

    return given


def _stream(ctx: Context) -> str:
    """Returns the random stream for Haiku's only one: `default`, or the only stream given beside `params`."""
    others = [name for name in ctx.streams_given if name != "params"]
    return others[0] if len(others) == 1 else "default"


def FromHaiku(part: Any) -> type[HaikuModule]:
    """Returns a `Module` class for Haiku code: its instances are `HaikuModule(part, *args, **kwargs)`.

    Args:
      part: As for `HaikuModule`. For an `hk.Module` class, the class that is returned takes its constructor's arguments.

    >>> import bridges as br, haiku as hk
    >>> Linear = br.FromHaiku(hk.Linear)
    >>> Linear(128, name='h1')
    Linear('h1')
    """

    class Wrapper(HaikuModule):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(part, *args, **kwargs)

        @classmethod
        def _auto_name(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
            return snake_case(part_of(part, args, kwargs).name)

    Wrapper.__name__ = Wrapper.__qualname__ = part_of(part).name
    Wrapper._origin = (FromHaiku, part)  # type: ignore[attr-defined]  # How the class is pickled.
    return Wrapper
