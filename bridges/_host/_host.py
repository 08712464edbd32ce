"""Host: any part as a `bridges.Module`, for the modules of other frameworks that run it (`ToNNX`, `ToLinen`, `ToHaiku`).

A part that is no `bridges.Module` is given its wrapper. The entries of a wrapped part are known to the outside by their
paths below the wrapper, those of a core part by their own.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax

from bridges._host._framework import framework_of, innermost, wrapper_of
from bridges.core import Module
from bridges.core._errors import FieldError, UnsupportedError, describe
from bridges.core._flat import SEPARATOR, under
from bridges.core._frame import Frame, enter

# Where inputs go, by bridge.
_INPUTS = {
    "ToNNX": "lazy_init, ToNNX(part, rngs=rngs).lazy_init(x)",
    "ToLinen": "init and apply, ToLinen(part).init(key, x)",
    "ToHaiku": "the call, ToHaiku(part)(x)",
}
OUTSIDE = ".."  # What paths of entries begin with that lie beside the wrapper: those of modules made elsewhere.


class Host:
    """A part with its arguments, and the `bridges.Module` that runs it.

    Two are equal when parts and arguments are, so that models made of equal parts have one tree structure.

    Args:
      part: A Haiku function, an `hk.Module` class or what Haiku's transforms gave; a Linen module or class; an NNX class or
        instance; a `bridges.Module`, or a class of such. `functools.partial` of these classes.
      args, kwargs: Arguments of the part, where it is a class.
      root: The name of the wrapper, and so what paths in its errors begin with.
      bridge: What the user called, for errors: 'ToNNX'.

    Attributes:
      framework: Whose wrapper runs the part, None for a core part.
      module: The module.
      core: Whether the part is a `bridges.Module` itself.
      known: Shape and dtype by path, as far as calls have made entries of a core part; those of a wrapper check
        themselves.

    Raises:
      UnsupportedError: The part is nothing that can be hosted.
      FieldError: Arguments came with what is made already.
    """

    def __init__(
        self,
        part: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        root: str,
        bridge: str,
    ):
        self.part, self.args, self.kwargs = part, args, dict(kwargs or {})
        self.root, self.bridge = root, bridge
        self.framework = framework_of(part)
        self.core = self.framework is None
        with enter(Frame(None, None)):  # It is nobody's submodule, wherever it is made.
            self.module: Any = self._make()
        self.known: dict[str, jax.ShapeDtypeStruct] = {}
        self.fitting: set[Any] = set()  # Entries that were found to be what a call of a core part needs.
        self.recorded: frozenset[Any] = frozenset()  # Where calls have recorded what is not kept from call to call.
        self._hash: int | None = None

    def _make(self) -> Module:
        part = self.part
        if self.args or self.kwargs:
            if not isinstance(innermost(part), type):
                raise FieldError(
                    f"Arguments ({', '.join([*map(describe, self.args), *self.kwargs])}) came with {describe(part)}, which"
                    f" is no class. Pass the class and its arguments, {self.bridge}(hk.Linear, 128), or the part alone;"
                    f" inputs go to {_INPUTS[self.bridge]}."
                )
            part = functools.partial(part, *self.args, **self.kwargs)
        if self.framework is not None:
            wrapper = wrapper_of(self.framework)(part, name=self.root)
            if self.framework == "flax.linen":
                wrapper._memory = wrapper._memory.of_model(wrapper._linen)
            return wrapper
        made = part if isinstance(part, Module) else part()
        if not isinstance(made, Module):
            raise UnsupportedError(f"{part!r} gave {describe(made)}, and a bridges.Module is wanted.")
        return made

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Host) or type(self.part) is not type(other.part):
            return False
        try:
            return bool((self.part, self.args, self.kwargs) == (other.part, other.args, other.kwargs))
        except Exception:  # Arguments that refuse to be compared: arrays.
            return False

    def __hash__(self) -> int:
        # `nn.jit` takes modules of one hash for one module (flax 0.12 linen/transforms.py): it must tell them apart.
        if self._hash is None:
            self._hash = hash(
                (_hashed(self.part), *map(_hashed, self.args), *map(_hashed, sorted(self.kwargs.items())))
            )
        return self._hash

    def __deepcopy__(self, memo: Any) -> Host:
        return self  # Copies of a model are of one structure, and nothing here is ever changed but what is learned.

    def __repr__(self) -> str:
        part = innermost(self.part)
        return str(getattr(part, "__name__", None) or type(part).__name__)

    # Paths -----------------------------------------------------------------------------------------------------------

    def inner(self, path: str) -> str:
        """Returns the path in the running context of what the outside has at a path."""
        if path.startswith(OUTSIDE + SEPARATOR):
            return path[len(OUTSIDE) + 1 :]
        return path if self.core else f"{self.root}{SEPARATOR}{path}"

    def outer(self, path: str) -> str:
        """Returns the path at which the outside has what the running context has at a path; the inverse of `inner`."""
        if self.core:
            return path
        return path[len(self.root) + 1 :] if under(path, self.root) else f"{OUTSIDE}{SEPARATOR}{path}"

    # Calls -----------------------------------------------------------------------------------------------------------

    def call(self, method: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Returns the output of a method of the part, in a running context."""
        if method is None:
            return self.module(*args, **kwargs)
        if not self.core:
            return self.module(*args, method=method, **kwargs)
        if callable(method):
            return method(self.module, *args, **kwargs)
        return self.reached(method)(*args, **kwargs)

    def reached(self, path: str) -> Any:
        """Returns the attribute of the module that a dotted path leads to."""
        return functools.reduce(_attribute, path.split("."), self.module)

    def signature(self, method: Any) -> inspect.Signature | None:
        """Returns the signature of a call of the part itself, None where it cannot be told."""
        try:
            if callable(method):
                return _without_first(method)
            if self.core:
                return inspect.signature(self.module if method is None else self.reached(method))
            if self.framework == "flax.linen":
                return _without_first(getattr(type(self.module._linen), method or "__call__"))
            part = innermost(self.part)
            if isinstance(part, type):
                return _without_first(getattr(part, method or "__call__"))
            if method is None:
                original = getattr(getattr(part, "apply", None), "_original_fn", None)
                return inspect.signature(original or part)
        except (AttributeError, TypeError, ValueError):
            pass
        return None


def _hashed(value: Any) -> Any:
    """Returns something hashable that is equal for equal values, as far as can be told."""
    try:
        hash(value)
    except TypeError:
        if isinstance(value, Mapping):
            return tuple((_hashed(key), _hashed(item)) for key, item in sorted(value.items(), key=str))
        return tuple(map(_hashed, value)) if isinstance(value, (list, tuple)) else (type(value), id(value))
    return value


def _attribute(found: Any, name: str) -> Any:
    return found[int(name)] if name.isdigit() else getattr(found, name)


def _without_first(fn: Callable[..., Any]) -> inspect.Signature:
    signature = inspect.signature(fn)
    return signature.replace(parameters=list(signature.parameters.values())[1:])
