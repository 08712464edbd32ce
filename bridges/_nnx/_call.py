"""One call of an NNX module: which method, with which arguments. It knows nothing of entries, contexts or wrappers."""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from flax import nnx

from bridges._nnx._leaves import is_array
from bridges._nnx._maker import as_rngs, signature_of
from bridges.core._errors import FieldError, hint


class Call:
    """A method of an NNX module with its arguments.

    Args:
      method: None for `__call__`; the name of a method, or of a submodule, also of one further inside
        (`'encoder.layers.0'`, `'encoder.attend'`); or a function whose first argument is the module.
      args, kwargs: The method's arguments.
      rngs: Random streams for this call, as for `apply`; None to draw from those that are part of the module.
    """

    __slots__ = ("method", "args", "kwargs", "rngs")

    def __init__(self, method: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], rngs: Any = None):
        self.method, self.args, self.kwargs, self.rngs = method, args, kwargs, rngs

    def run(self, module: Any, sows: bool = True) -> Any:
        """Returns the output of the method of a module, which it may change.

        Args:
          module: The module.
          sows: Whether it may sow.
        """
        method: Any = self.method
        first: tuple[Any, ...] = ()
        if callable(method):
            fn, first = getattr(method, "__func__", method), (module,)
        else:
            fn = module if method is None else lookup(module, method)
            if not callable(fn):
                raise FieldError(no_method(module, method or "__call__"))
        kwargs = dict(self.kwargs)
        if self.rngs is not None:
            signature = signature_of(fn)
            if "rngs" in (signature.parameters if signature is not None else ()):
                kwargs.setdefault("rngs", as_rngs(self.rngs))
            else:
                reseed(module, self.rngs)
        if not sows:
            return fn(*first, *self.args, **kwargs)
        with _sowing():
            return fn(*first, *self.args, **kwargs)

    def abstract(self, fn: Callable[..., Any], *trees: Any) -> Any:
        """Returns the shapes of `fn(call, *trees)`, with the arrays among the arguments and the trees abstract."""
        leaves, treedef = jax.tree.flatten((self.args, self.kwargs))
        arrays = {i: leaf for i, leaf in enumerate(leaves) if is_array(leaf)}

        def evaluate(arrays: dict[int, Any], *trees: Any) -> Any:
            args, kwargs = jax.tree.unflatten(treedef, [arrays.get(i, leaf) for i, leaf in enumerate(leaves)])
            return fn(Call(self.method, args, kwargs, self.rngs), *trees)

        return jax.eval_shape(evaluate, arrays, *trees)


def lookup(module: Any, path: str) -> Any:
    """Returns what the dotted path of attributes and indices leads to.

    Raises:
      FieldError: There is no such attribute; the methods and submodules are listed.
    """
    found = module
    for name in path.split("."):
        try:
            found = found[_index(found, name)] if _indexed(found, name) else getattr(found, name)
        except (AttributeError, LookupError, TypeError) as err:
            if hasattr(type(found), name):
                raise
            raise FieldError(no_method(found, name)) from err
    return found


def _indexed(node: Any, name: str) -> bool:
    return not hasattr(node, name) and hasattr(node, "__getitem__")


def _index(node: Any, name: str) -> Any:
    return int(name) if name.isdigit() and not (isinstance(node, Mapping) and name in node) else name


def public_methods(cls: type) -> tuple[str, ...]:
    """Returns the names of the methods that an NNX class defines, `__call__` among them; not those of NNX itself.

    >>> public_methods(nnx.Embed), public_methods(nnx.Linear)
    (('__call__', 'attend'), ('__call__',))
    """
    names = {
        name
        for base in cls.__mro__
        if issubclass(base, nnx.Pytree) and base not in nnx.Module.__mro__
        for name, value in vars(base).items()
        if (inspect.isroutine(value) or isinstance(value, functools.partial))
        and (name == "__call__" or not name.startswith("_"))
        and not isinstance(value, (staticmethod, classmethod))
    }
    return tuple(sorted(names - {"set_view"}))


def no_method(module: Any, name: str) -> str:
    """Returns the text of the error about something that a module does not have, or that cannot be called."""
    methods = public_methods(type(module))
    parts = (
        [key for key, value in vars(module).items() if isinstance(value, nnx.Pytree)]
        if hasattr(module, "__dict__")
        else []
    )
    return (
        f"{type(module).__name__} has no method {name!r}.{hint(name, (*methods, *parts))} Its methods are"
        f" {', '.join(methods) or 'none'}; its submodules {', '.join(parts) or 'none'}."
    )


def reseed(module: Any, rngs: Any) -> None:
    """Gives the random streams of a module new keys, and begins their counts anew.

    Each stream, in the order of `nnx.iter_graph`, draws its key from the stream of `rngs` that has its tag, or from
    `default`; a stream that `rngs` has nothing for stays. A stream of many keys gets as many.
    """
    source = as_rngs(rngs)
    for _, stream in nnx.iter_graph(module, graph=True):
        if isinstance(stream, nnx.RngStream) and (stream.tag in source or "default" in source):
            key = source[stream.tag]()
            shape = stream.key.get_value().shape
            stream.key.set_value(jax.random.split(key, shape) if shape else key)
            stream.count.set_value(jax.numpy.zeros(shape, jax.numpy.uint32))


# Sowing --------------------------------------------------------------------------------------------------------------


def mentions_sow(module: Any) -> bool:
    """Whether the code of any class in a module mentions `sow` or `perturb`."""
    classes = {type(node) for _, node in nnx.iter_graph(module, graph=True) if isinstance(node, nnx.Pytree)}
    bases = {base for cls in classes for base in cls.__mro__ if base not in nnx.Module.__mro__}
    return any(
        not {"sow", "perturb"}.isdisjoint(_names(value.__code__))
        for base in bases
        for value in vars(base).values()
        if isinstance(value, types.FunctionType)
    )


def _names(code: types.CodeType) -> set[str]:
    inner = [_names(const) for const in code.co_consts if isinstance(const, types.CodeType)]
    return set(code.co_names).union(*inner)


_LOCK = threading.RLock()


@contextlib.contextmanager
def _sowing() -> Iterator[None]:
    """Lets modules sow without `nnx.capture`, which would have to be told beforehand what they sow.

    `Module.sow` and `perturb` (flax 0.12.8) warn about that. Python's warning filters are shared by all threads, hence the
    lock.
    """
    with _LOCK, warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\s*Using 'Module\.(sow|perturb)\(\)' outside", DeprecationWarning)
        yield
