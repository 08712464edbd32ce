"""What `ToNNX` hosts: any part as a `bridges.Module`, found without importing a framework.

A part that is no `bridges.Module` is given its wrapper, which is looked up by the framework that the part's class comes
from, and loaded then. A function is taken for Haiku's.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax

from bridges._nnx._leaves import collection_of
from bridges.core import Module
from bridges.core._errors import FieldError, UnsupportedError, describe
from bridges.core._flat import SEPARATOR, under
from bridges.core._frame import Frame, enter

ROOT = "variables"  # The name of a wrapper, and so what paths in errors begin with: that of the attribute of ToNNX.
OUTSIDE = ".."  # What paths of entries begin with that lie beside the wrapper: those of modules made elsewhere.

# The package that a class comes from, or one that it inherits from -> the module and name of the wrapper.
_WRAPPERS = {
    "flax.linen": ("bridges.linen_adapter", "FlaxModule"),
    "flax.nnx": ("bridges.nnx_adapter", "NNXModule"),
    "haiku": ("bridges.haiku_adapter", "HaikuModule"),
}
# The arguments that say whether a call trains, and what they are when it does.
_TRAINING = {"is_training": True, "train": True, "training": True, "deterministic": False, "use_running_average": False}


class Host:
    """A part with its arguments, and the `bridges.Module` that runs it.

    Two are equal when parts and arguments are, so that models made of equal parts have one tree structure.

    Args:
      part: As for `ToNNX`.
      args, kwargs: Arguments of the part, where it is a class.

    Attributes:
      module: The module.
      core: Whether the part is a `bridges.Module` itself.
      known: Shape and dtype by path, as far as calls have made entries of a core part; those of a wrapper check
        themselves.

    Raises:
      UnsupportedError: The part is nothing that can be hosted.
      FieldError: Arguments came with what is made already.
    """

    def __init__(self, part: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None):
        self.part, self.args, self.kwargs = part, args, dict(kwargs or {})
        self.framework = framework_of(part)
        self.core = self.framework is None
        with enter(Frame(None, None)):  # It is nobody's submodule, wherever it is made.
            self.module: Any = self._make()
        self.known: dict[str, jax.ShapeDtypeStruct] = {}

    def _make(self) -> Module:
        part = self.part
        if self.args or self.kwargs:
            if not isinstance(_innermost(part), type):
                raise FieldError(
                    f"Arguments ({', '.join([*map(describe, self.args), *self.kwargs])}) came with {describe(part)}, which"
                    " is no class. Pass the class and its arguments, ToNNX(hk.Linear, 128), or the part alone; inputs go to"
                    " lazy_init, ToNNX(part, rngs=rngs).lazy_init(x)."
                )
            part = functools.partial(part, *self.args, **self.kwargs)
        if self.framework is not None:
            module, name = _WRAPPERS[self.framework]
            return getattr(importlib.import_module(module), name)(part, name=ROOT)
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
        return hash(type(self.part))

    def __repr__(self) -> str:
        part = _innermost(self.part)
        return str(getattr(part, "__name__", None) or type(part).__name__)

    # Paths -----------------------------------------------------------------------------------------------------------

    def inner(self, path: str) -> str:
        """Returns the path in the running context of what `ToNNX` holds at a path."""
        if path.startswith(OUTSIDE + SEPARATOR):
            return path[len(OUTSIDE) + 1 :]
        return path if self.core else f"{ROOT}{SEPARATOR}{path}"

    def outer(self, path: str) -> str:
        """Returns the path at which `ToNNX` holds what the running context has at a path; the inverse of `inner`."""
        if self.core:
            return path
        return path[len(ROOT) + 1 :] if under(path, ROOT) else f"{OUTSIDE}{SEPARATOR}{path}"

    @property
    def types(self) -> dict[str, type]:
        """The Variable types that an NNX part uses itself, by collection; empty for all others."""
        if self.framework != "flax.nnx":
            return {}
        leaves = self.module._memory.base()[0].leaves
        return {collection_of(leaf.type): leaf.type for leaf in leaves if leaf.type is not None}

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
            part = _innermost(self.part)
            if isinstance(part, type):
                return _without_first(getattr(part, method or "__call__"))
            if method is None:
                original = getattr(getattr(part, "apply", None), "_original_fn", None)
                return inspect.signature(original or part)
        except (AttributeError, TypeError, ValueError):
            pass
        return None

    def settings(
        self, method: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], modes: Mapping[str, bool | None]
    ) -> dict[str, bool]:
        """Returns the arguments that tell a call whether it trains, as `train()` and `eval()` have set it.

        Args:
          method, args, kwargs: The call.
          modes: `deterministic` and `use_running_average`, None where they are not set.
        """
        given = [mode for mode in modes.values() if mode is not None]
        signature = self.signature(method) if given and self.framework != "flax.nnx" else None
        if signature is None:
            return {}
        try:
            bound = signature.bind_partial(*args, **kwargs).arguments
        except TypeError:  # The call itself will say what is wrong with its arguments.
            return {}
        found = {}
        for name, training in _TRAINING.items():
            parameter = signature.parameters.get(name)
            if parameter is None or parameter.kind is parameter.POSITIONAL_ONLY or name in bound or self._fixed(name):
                continue
            own = modes.get(name)
            found[name] = own if own is not None else given[0] is not training
        return found

    def variants(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[inspect.BoundArguments] | None:
        """Returns calls that between them draw random numbers if any call does, None if that cannot be told.

        It can for a function, or a class whose call is its only method, if all that is passed to it, or might be, are
        arrays and flags: as it is called here, with every flag up, and with every flag down.
        """
        signature = self.signature(None)
        if self.core or self.framework == "flax.nnx" or signature is None or self._other_methods():
            return None
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        flags = []
        for name, parameter in signature.parameters.items():
            leaves = [leaf for leaf in jax.tree.leaves(bound.arguments[name]) if not hasattr(leaf, "shape")]
            if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) or not all(
                isinstance(leaf, bool) for leaf in leaves
            ):
                return None
            if name in _TRAINING or isinstance(bound.arguments[name], bool):
                flags += [] if self._fixed(name) else [name]
            elif leaves:
                return None
        calls = [bound]
        for up in (True, False) if flags else ():
            calls.append(signature.bind(*args, **kwargs))
            calls[-1].apply_defaults()
            calls[-1].arguments.update(dict.fromkeys(flags, up))
        return calls

    def _other_methods(self) -> bool:
        part: Any = type(self.module._linen) if self.framework == "flax.linen" else _innermost(self.part)
        if not isinstance(part, type):
            return hasattr(part, "apply") and not hasattr(part.apply, "_original_fn")
        known = {"setup", *getattr(part, "__dataclass_fields__", ())}
        for base in part.__mro__:
            if base.__name__ == "Module" and base.__module__.startswith(str(self.framework)):
                known.update(dir(base))
        return any(callable(getattr(part, n)) for n in dir(part) if not n.startswith("_") and n not in known)

    def _fixed(self, name: str) -> bool:
        """Whether a Linen module has this as a field that is set: it refuses to be told twice."""
        linen = getattr(self.module, "_linen", None) if self.framework == "flax.linen" else None
        return getattr(linen, name, None) is not None


def framework_of(part: Any) -> str | None:
    """Returns which framework's wrapper a part needs, None for a `bridges.Module`.

    Raises:
      UnsupportedError: The part is nothing that can be hosted.
    """
    inner = _innermost(part)
    cls = inner if isinstance(inner, type) else type(inner)
    if issubclass(cls, Module):
        return None
    for base in cls.__mro__:
        for package in _WRAPPERS:
            if base.__module__ == package or base.__module__.startswith(package + "."):
                return package
    if callable(inner) and not isinstance(inner, type):
        return "haiku"
    raise UnsupportedError(
        f"{part!r} cannot become an NNX module. Pass a Haiku function, hk.Module class or what hk.transform gave, a Linen"
        " module, an NNX class, or a bridges.Module."
    )


def _innermost(part: Any) -> Any:
    while isinstance(part, functools.partial):
        part = part.func
    return part


def _attribute(found: Any, name: str) -> Any:
    return found[int(name)] if name.isdigit() else getattr(found, name)


def _without_first(fn: Callable[..., Any]) -> inspect.Signature:
    signature = inspect.signature(fn)
    return signature.replace(parameters=list(signature.parameters.values())[1:])
