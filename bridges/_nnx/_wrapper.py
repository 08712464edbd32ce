"""NNXModule: an NNX module as a part of the host, and `FromNNX`, which makes a class of an NNX class."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from flax import nnx

from bridges._nnx._call import Call, lookup, no_method
from bridges._nnx._maker import Maker, innermost
from bridges._nnx._memory import Memory
from bridges._nnx._run import perform
from bridges.core import Module, context
from bridges.core._errors import FieldError
from bridges.core._naming import snake_case
from bridges.core._training import told, training_flags


class NNXModule(Module):
    """An NNX module that keeps its Variables in the running context.

    The entries lie below the wrapper's path as `<collection>/<attribute path>`. They are made at the first call in a
    context that may create, by the module's own constructor: with `bridges.init(wrapper)({}, x, seed=0)` they are exactly
    those of `ctor(*args, rngs=nnx.Rngs(0))`, and with `seed={'params': 0, 'dropout': 1}` those of
    `rngs=nnx.Rngs(params=0, dropout=1)`. After that no initialiser runs, and no seed is asked for: every entry must be
    there, with its shape, and no other.

    A call runs on a module of its own, made of the entries; whatever it changes in it is written back: running statistics,
    caches, counts, Variables that it creates. What it sows is recorded in `Intermediate` entries, anew at every call.

    Random streams that the module keeps (dropout) are entries as in NNX itself, of kind `RngState`: the key stays, the
    count goes up at every draw. A state therefore determines what is drawn, and the host's seed has no part in it; the
    members of `bridges.vmap` draw alike, unless each has a key of its own (`state_axes={'net/RngKey': 0}`).

    `bridges.flags(train=True)` does what `module.train()` does, `train=False` what `module.eval()` does;
    `deterministic` and `use_running_average` set these attributes wherever they exist. A call that takes an argument
    `train`, `is_training` or `training` is given it, where it was not passed. Without flags, attributes are as the
    constructor, or the instance, has them.

    Args:
      ctor: An NNX module class (or any `nnx.Pytree`), a function that returns a module, a `functools.partial` of either,
        or an instance, whose values become the initial ones (and which is never changed). A parameter `rngs` that is left
        open is given the host's streams.
      *args: Arguments of `ctor`; none with an instance.
      name: The wrapper's name, as for every module.
      **kwargs: Arguments of `ctor`.

    Methods and submodules are attributes, `net.encode(x)`, `net.encoder.layers[0](x)`; `net(x, method='encoder.encode')`
    reaches those too whose names the wrapper has itself. Attributes that hold no arrays can be read.

    Raises:
      FieldError: `ctor` gives no NNX module, or arguments come with an instance.

    >>> import bridges as br, jax, numpy as np
    >>> net = NNXModule(nnx.Linear, 2, 3)
    >>> state = br.init(net)({}, np.ones((1, 2), np.float32), seed=0)
    >>> {path: value.shape for path, value in state.items()}
    {'linear/params/bias': (3,), 'linear/params/kernel': (2, 3)}
    >>> state, y = br.pure(net)(state, np.ones((1, 2), np.float32))
    >>> y.shape
    (1, 3)
    """

    def __init__(self, ctor: Any, *args: Any, **kwargs: Any):
        self._memory = Memory(Maker(ctor, args, kwargs))

    @classmethod
    def _auto_name(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        return _name_of(args[0]) if args else "nnx_module"

    def __call__(self, *args: Any, method: Any = None, **kwargs: Any) -> Any:
        """Returns the output of a method of the NNX module; what it changes is written to the entries.

        Args:
          *args: The method's arguments.
          method: Which method: a name, that of a submodule, a dotted path of these (`'layers.0'`), or a function of the
            module; `__call__` if not given.
          **kwargs: The method's arguments.

        Raises:
          MissingEntryError: The state lacks an entry; all that are missing are listed.
          EntryShapeError: Entries have other shapes than the module gives them.
          StructureError: There are entries that the module has no use for.
          SeedError: Entries must be made, and there is no seed.
          CreateError: The call creates a Variable, and entries may not be created here.
          UnsupportedError: The call removes a Variable, or changes an attribute that is no array.
          FieldError: There is no such method.
        """
        ctx = context()
        if flags := training_flags(ctx.flags):
            kwargs = {**kwargs, **_told(self._memory, method, args, kwargs, flags)}
        return perform(ctx, self.path, self._memory, Call(method, args, kwargs))

    def _wrapped(self, name: str) -> Any:
        return _reached(self, name) if hasattr(self._memory.base()[0].abstract(), name) else None

    def __getattr__(self, name: str) -> Any:
        # Reached only for what the wrapper itself does not have, so that no layer's name can hide one of the wrapper's.
        if name.startswith("_"):
            raise AttributeError(name)
        return _reached(self, name)


class Part:
    """A method or submodule of a wrapped module: called, it calls the wrapper; its attributes are parts again.

    Args:
      wrapper: The wrapper.
      path: Dotted path of the part.
    """

    __slots__ = ("_wrapper", "_path")

    def __init__(self, wrapper: NNXModule, path: str):
        self._wrapper, self._path = wrapper, path

    @property
    def __self__(self) -> NNXModule:  # As a bound method has it: `bridges.init` looks for the module there.
        return self._wrapper

    @property
    def __name__(self) -> str:
        return self._path.rpartition(".")[2]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._wrapper(*args, method=self._path, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return _reached(self._wrapper, f"{self._path}.{name}")

    def __getitem__(self, key: int | str) -> Any:
        return _reached(self._wrapper, f"{self._path}.{key}")

    def __repr__(self) -> str:
        return f"<{self._path} of {self._wrapper!r}>"


def _told(
    memory: Memory, method: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], flags: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the arguments by keyword that the flags give to a call; what is None by default is left to attributes."""
    module = memory.base()[0].abstract()
    found = functools.partial(method, module) if callable(method) else lookup(module, method or "__call__")
    try:
        parameters = inspect.signature(found).parameters
    except (TypeError, ValueError):
        return {}
    given = told(found, args, kwargs, flags)
    return {name: value for name, value in given.items() if parameters[name].default is not None}


def _reached(wrapper: NNXModule, path: str) -> Any:
    module = wrapper._memory.base()[0].abstract()
    found = lookup(module, path)
    if isinstance(found, nnx.Variable):
        raise FieldError(
            f"{path!r} of {type(module).__name__} is a {type(found).__name__}: a wrapper holds no arrays. Read its entry,"
            f" wrapper.getm(r'.*/{path.replace('.', '/')}')."
        )
    if isinstance(found, nnx.Pytree) or callable(found):
        return Part(wrapper, path)
    if nnx.is_data(found):
        raise FieldError(no_method(module, path))
    return found


def FromNNX(ctor: Any) -> type[NNXModule]:
    """Returns a `Module` subclass whose instances wrap `ctor(*args, **kwargs)`, or the given instance.

    >>> Linear = FromNNX(nnx.Linear)
    >>> Linear(2, 128, name='h1')
    FromNNX(Linear)('h1')
    """

    class Wrapper(NNXModule):
        __doc__ = f"`{_class_name(ctor)}` as a part of the host; see `NNXModule`."

        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(ctor, *args, **kwargs)

        @classmethod
        def _auto_name(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
            return _name_of(ctor)

    Wrapper.__name__ = Wrapper.__qualname__ = f"FromNNX({_class_name(ctor)})"
    Wrapper._origin = (FromNNX, ctor)  # type: ignore[attr-defined]  # How the class is pickled.
    return Wrapper


def _class_name(ctor: Any) -> str:
    ctor = innermost(ctor)
    return str(
        getattr(ctor, "__name__", type(ctor).__name__) if not isinstance(ctor, nnx.Pytree) else type(ctor).__name__
    )


def _name_of(ctor: Any) -> str:
    name = snake_case(_class_name(ctor))
    return name if name.isidentifier() else "nnx_module"
