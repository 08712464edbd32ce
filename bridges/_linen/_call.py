"""One call of a Linen module as a pure function: native variables in, native variables out.

A `Call` knows the module, the method and the arguments, and nothing of entries, contexts or wrappers. `Module.bind` and
`nn.init_with_output` do the work, so that what a call computes is what Linen computes. (`Module.apply` is not used: it
refuses a submodule named `params`, and takes the layer's own keyword arguments `rngs` and `mutable` for its own.)
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax.core import DenyList

from bridges.core._errors import FieldError, hint

Rngs = Any  # key | Mapping[str, key] | None
NATIVE = DenyList("intermediates")  # What module.init records: every collection but the intermediates.


class Call:
    """A method of an unbound Linen module with its arguments.

    Args:
      model: The module; it is cloned before use and never changed.
      method: None for `__call__`, a name (of a method, or of a submodule made in `setup`), or a function whose first
        argument is the module.
      args, kwargs: The method's arguments.
      flags: What the layers inside follow; see `_flags.following`.
    """

    __slots__ = ("model", "method", "args", "kwargs", "flags")

    def __init__(
        self,
        model: nn.Module,
        method: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        flags: Mapping[str, Any] | None = None,
    ):
        self.model, self.method, self.args, self.kwargs, self.flags = model, method, args, kwargs, dict(flags or {})

    def run(self, module: nn.Module) -> Any:
        """Returns the output of the method of a bound module."""
        method: Any = self.method
        if method is None:
            return module(*self.args, **self.kwargs)
        if isinstance(method, str):
            return attribute(module, method)(*self.args, **self.kwargs)
        if inspect.ismethod(method) and isinstance(method.__self__, nn.Module):
            method = method.__func__
        return method(module, *self.args, **self.kwargs)

    def init(self, rngs: Rngs, mutable: Any = NATIVE) -> tuple[Any, Any]:
        """Returns the output and the variables that Linen's own `init_with_output` gives."""
        return nn.init_with_output(self.run, self.model, mutable=mutable)(rngs)

    def apply(self, variables: Any, rngs: dict[str, Any] | None, mutable: Any) -> tuple[Any, Any]:
        """Returns the output and the variables of the mutable collections after the call."""
        module: Any = self.model.bind(variables, rngs=rngs, mutable=mutable)
        out = self.run(module)
        return out, {} if mutable is False else module.scope.mutable_variables()

    def abstract(self, fn: Callable[..., Any], *trees: Any) -> Any:
        """Returns the shapes of `fn(call, *trees)`, with the arrays among the arguments and the trees abstract."""
        arrays, filled = self.opened()
        return jax.eval_shape(lambda arrays, *trees: fn(filled(arrays), *trees), arrays, *trees)

    def opened(self) -> tuple[dict[int, Any], Callable[[dict[int, Any]], Call]]:
        """Returns the arrays among the arguments, and what makes the call with others in their place."""
        leaves, treedef = jax.tree.flatten((self.args, self.kwargs))

        def filled(arrays: dict[int, Any]) -> Call:
            args, kwargs = jax.tree.unflatten(treedef, [arrays.get(i, leaf) for i, leaf in enumerate(leaves)])
            return Call(self.model, self.method, args, kwargs, self.flags)

        return {i: leaf for i, leaf in enumerate(leaves) if is_array(leaf)}, filled

    def abstract_init(self, rngs: Rngs = None) -> Any:
        """Returns the variables that `init` would create, as `jax.ShapeDtypeStruct`; of `rngs` only names matter."""
        keys = dict.fromkeys(("params", *(rngs if isinstance(rngs, Mapping) else ())), abstract_key())
        return self.abstract(lambda call, keys: call.init(keys)[1], keys)

    def signature(self) -> Any:
        """Returns what decides which way a call goes: method, static arguments, shapes and dtypes; None if unhashable."""
        leaves, treedef = jax.tree.flatten((self.args, self.kwargs))
        key = (self.method, treedef, tuple(map(_described, leaves)), tuple(self.flags.items()))
        try:
            hash(key)
        except TypeError:
            return None
        return key


def attribute(module: nn.Module, name: str) -> Callable[..., Any]:
    """Returns the method or submodule of this name of a bound module.

    Raises:
      FieldError: There is none, or it cannot be called; the methods are listed.
    """
    try:
        found = getattr(module, name)
    except AttributeError as err:
        if hasattr(type(module), name):
            raise
        raise FieldError(no_method(type(module), name)) from err
    if not callable(found):
        raise FieldError(
            f"{type(module).__name__}.{name} is a {type(found).__name__} and cannot be called as a method."
        )
    return found


def public_methods(cls: type) -> tuple[str, ...]:
    """Returns the names of the methods that a Linen module class defines, `__call__` among them; not those of Linen.

    >>> public_methods(nn.Embed), public_methods(nn.Dense)
    (('__call__', 'attend'), ('__call__',))
    """
    return _public_methods(cls)


@functools.cache
def _public_methods(cls: type) -> tuple[str, ...]:
    names = {
        name
        for base in cls.__mro__
        if issubclass(base, nn.Module) and base is not nn.Module and base not in nn.Module.__mro__
        for name, value in vars(base).items()
        if (inspect.isroutine(value) or isinstance(value, functools.partial))
        and (name == "__call__" or not name.startswith("_"))
        and not isinstance(value, (staticmethod, classmethod))
    }
    return tuple(sorted(names - {"setup"} - set(getattr(cls, "__dataclass_fields__", ()))))


def no_method(cls: type, name: str) -> str:
    """Returns the text of the error about a method that a Linen module class does not have."""
    methods = public_methods(cls)
    return (
        f"{cls.__name__} has no method {name!r}.{hint(name, methods)} Its methods are {', '.join(methods) or 'none'};"
        " a submodule that setup makes is called by its name, wrapper(x, method='encoder')."
    )


def is_array(leaf: Any) -> bool:
    """Whether a leaf of the arguments is an array (a tracer, an abstract array), rather than a static Python value.

    NumPy's scalars are static: `np.bool_` is a flag to those who compute their flags with NumPy.
    """
    return isinstance(leaf, (jax.Array, np.ndarray, jax.ShapeDtypeStruct))


def abstract_key() -> jax.ShapeDtypeStruct:
    """Returns the shape of a random key; no key is made."""
    return jax.eval_shape(lambda: jax.random.key(0))


def _described(leaf: Any) -> Any:
    if is_array(leaf):
        return leaf.shape, leaf.dtype
    return type(leaf), leaf
