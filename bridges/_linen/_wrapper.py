"""FlaxModule: a Linen module as a part of the host, and `FromFlax`, which makes a class of a Linen class."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from flax import linen as nn

from bridges._linen._call import Call, no_method, public_methods
from bridges._linen._flags import arguments, following
from bridges._linen._keys import HostKeys
from bridges._linen._memory import Memory
from bridges._linen._run import perform
from bridges.core import Module, context
from bridges.core._errors import FieldError, describe
from bridges.core._naming import snake_case
from bridges.core._training import training_flags


class FlaxModule(Module):
    """A Linen module that keeps its variables in the running context.

    The entries lie below the wrapper's path as `<collection>/<native path>`. They are made at the first call in a context
    that may create, by Linen's own `init`: with `bridges.init(wrapper)({}, x, seed=key)` they are exactly what
    `module.init(key, x)` gives. After that nothing is initialised: a missing or misshapen entry is an error.

    A call modifies what the Linen module modifies, without being told: running statistics and caches are written back.
    Dropout and other streams draw from the host's seed; a call that draws nothing needs none. What is sown is recorded in
    `Intermediate` entries, anew at every call; a call that does not sow leaves what an earlier one has recorded.

    `bridges.flags(train=…, deterministic=…, use_running_average=…)` reach the call where it takes an argument of that name
    (or `is_training`, `training`) that is not passed and no field of the module, and the layers inside that would not know
    otherwise (`nn.Dropout(0.5)(x)`).

    An entry that no call could use is an error too, where that can be known: the module has one public method, and no
    Python values but flags are passed to it.

    Args:
      ctor: A Linen module class, a `functools.partial` of one, a function that returns a module, or an instance (which is
        never changed; a bound one is unbound).
      *args: Arguments of `ctor`; none with an instance.
      name: The wrapper's name, as for every module.
      **kwargs: Arguments of `ctor`.

    Raises:
      FieldError: `ctor` gives no Linen module, or arguments come with an instance.

    >>> import bridges as br, jax, numpy as np
    >>> net = FlaxModule(nn.Dense, 3)
    >>> state = br.init(net)({}, np.ones((1, 2), np.float32), seed=0)
    >>> {path: value.shape for path, value in state.items()}
    {'dense/params/bias': (3,), 'dense/params/kernel': (2, 3)}
    >>> state, y = br.pure(net)(state, np.ones((1, 2), np.float32))
    >>> y.shape
    (1, 3)
    """

    def __init__(self, ctor: Any, /, *args: Any, **kwargs: Any):
        self._linen = _instance(ctor, args, kwargs)
        self._memory = Memory()

    @classmethod
    def _auto_name(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        return _name_of(args[0]) if args else "flax_module"

    def __call__(self, /, *args: Any, method: Any = None, mutable: Any = None, **kwargs: Any) -> Any:
        """Returns the output of a method of the Linen module; what it modifies is written to the entries.

        Args:
          *args: The method's arguments.
          method: Which method, as in `Module.apply`: a name, or a function of the module; `__call__` if not given.
          mutable: Collections that may be modified, as in `Module.apply`. If not given, they are those that the call
            modifies when none was made mutable for it.
          **kwargs: The method's arguments.

        Raises:
          MissingEntryError: The state lacks an entry; all that are missing are listed.
          EntryShapeError: Entries have other shapes than the module gives them.
          StructureError: There are entries that the module has no use for.
          SeedError: The module draws, and there is no seed.
          PermissionsError: It modifies a collection that `mutable` leaves out.
        """
        ctx, path = context(), self.path
        flags = training_flags(ctx.flags)
        kwargs = {**kwargs, **arguments(self._linen, method, args, kwargs, flags)}
        with following(flags):
            call = Call(self._linen, method, args, kwargs, flags)
            return perform(ctx, path, self._memory, call, HostKeys(ctx, path), mutable)

    def _wrapped(self, name: str) -> Any:
        return self.__getattr__(name) if name in public_methods(type(self._linen)) else None

    def __getattr__(self, name: str) -> Callable[..., Any]:
        # Reached only for what the wrapper itself does not have, so that no layer's name can hide one of the wrapper's.
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in public_methods(type(self._linen)):
            raise FieldError(no_method(type(self._linen), name))
        bound = functools.partial(self.__call__, method=name)
        bound.__name__, bound.__self__ = name, self  # type: ignore[attr-defined]  # As a bound method has them.
        return bound


LinenModule = FlaxModule


def FromFlax(ctor: Any) -> type[FlaxModule]:
    """Returns a `Module` subclass whose instances wrap `ctor(*args, **kwargs)`, or the given instance.

    >>> Linear = FromFlax(nn.Dense)
    >>> Linear(128, name='h1')
    FromFlax(Dense)('h1')
    """

    class Wrapper(FlaxModule):
        __doc__ = f"`{_class_name(ctor)}` as a part of the host; see `FlaxModule`."

        def __init__(self, /, *args: Any, **kwargs: Any):
            super().__init__(ctor, *args, **kwargs)

        @classmethod
        def _auto_name(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
            return _name_of(ctor)

    Wrapper.__name__ = Wrapper.__qualname__ = f"FromFlax({_class_name(ctor)})"
    Wrapper._origin = (FromFlax, ctor)  # type: ignore[attr-defined]  # How the class is pickled.
    return Wrapper


FromLinen = FromFlax


def _instance(ctor: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> nn.Module:
    if isinstance(ctor, nn.Module):
        if args or kwargs:
            raise FieldError(
                f"Arguments {(*args, *kwargs)} came with an instance of {type(ctor).__name__}, which is made already. Pass"
                f" the class and its arguments, FlaxModule({type(ctor).__name__}, …), or the instance alone."
            )
        return ctor if ctor.scope is None else ctor.unbind()[0]
    # A module made while another Linen module's method runs would become its submodule: parent=None prevents it.
    apart = {"parent": None} if _is_class(ctor) and "parent" not in kwargs else {}
    module = ctor(*args, **apart, **kwargs) if callable(ctor) else ctor
    if not isinstance(module, nn.Module):
        raise FieldError(
            f"FlaxModule wraps a Linen module: a class, an instance, or a function that returns one. {ctor!r} gave"
            f" {describe(module)}."
        )
    return module


def _is_class(ctor: Any) -> bool:
    while isinstance(ctor, functools.partial):
        ctor = ctor.func
    return isinstance(ctor, type) and issubclass(ctor, nn.Module)


def _class_name(ctor: Any) -> str:
    while isinstance(ctor, functools.partial):
        ctor = ctor.func
    return str(getattr(ctor, "__name__", type(ctor).__name__))


def _name_of(ctor: Any) -> str:
    name = snake_case(_class_name(ctor))
    return name if name.isidentifier() else "flax_module"
