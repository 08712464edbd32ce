"""Part: a piece of Haiku code, whatever form it came in, behind one pair of functions.

`init` returns exactly what the native `init` returns for the same key. `apply` runs the code over variables. Neither
checks anything: `_run.py` does.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any

import haiku as hk
import jax

from bridges._haiku._flags import for_layer
from bridges._haiku._frame import Draw, Watch, drawing, run_apply, run_init
from bridges._haiku._tree import Native
from bridges.core import _flat
from bridges.core._errors import FieldError, UnsupportedError, hint
from bridges.core._training import told

Args = tuple[tuple[Any, ...], Mapping[str, Any]]

_BASE_METHODS = frozenset(dir(hk.Module))


class Part:
    """A piece of Haiku code.

    Attributes:
      name: What it is called in Python.
      methods: The methods that can be called beside the default one, by name.
      whole: Whether one call creates and uses all of its variables; if not, what is unknown to one method may be another's.
    """

    name: str
    methods: tuple[str, ...]
    whole: bool

    def init(self, key: Any, method: str | None, args: Args, watch: Watch) -> Native:
        """Returns the native `(params, state)` that a first call makes."""
        raise NotImplementedError

    def apply(self, native: Native, draw: Draw | None, method: str | None, args: Args, watch: Watch) -> tuple[Any, Any]:
        """Returns the output of a call over the variables, and the new native state."""
        raise NotImplementedError

    def has_init(self, method: str | None) -> bool:
        """Whether the native code can initialise what this method uses."""
        return True

    def told(self, method: str | None, args: Args, flags: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the arguments by keyword that the host's flags give to a call; see `bridges.core._training`."""
        return {}

    def check(self, method: str | None) -> None:
        """Raises a `FieldError` if there is no such method."""
        if method is not None and method not in self.methods:
            have = ", ".join(map(repr, self.methods)) or "no methods beside its call"
            raise FieldError(f"{self.name} has no method {method!r}; it has {have}.{hint(method, self.methods)}")


class Code(Part):
    """A function that uses Haiku, or a module class with its constructor's arguments."""

    def __init__(self, make: Callable[..., Any] | None, call: Callable[..., Any] | None, name: str, cls: Any = None):
        self.name = name
        self._make, self._call, self._cls = make, call, cls
        self.methods, self.whole = ((), True) if cls is None else _methods(cls)
        self._callable = cls is None or any("__call__" in vars(base) for base in cls.__mro__)

    def _run(self, method: str | None, args: Args) -> Any:
        if self._make is None:
            return self._call(*args[0], **args[1])  # type: ignore[misc]
        if method is None:
            return self._make()(*args[0], **args[1])
        found = getattr(self._make(), method)
        return found(*args[0], **args[1]) if callable(found) else found

    def told(self, method: str | None, args: Args, flags: Mapping[str, Any]) -> dict[str, Any]:
        if self._cls is None:
            return told(self._call, args[0], args[1], flags)  # type: ignore[arg-type]
        found = getattr(self._cls, method or "__call__", None)
        if not flags or not callable(found):
            return {}
        signature = inspect.signature(found)
        signature = signature.replace(parameters=list(signature.parameters.values())[1:])
        return told(signature, args[0], args[1], for_layer(self._cls, flags))

    def is_property(self, method: str) -> bool:
        """Whether this method is a property, to be read and not called."""
        return not callable(inspect.getattr_static(self._cls, method))

    def check(self, method: str | None) -> None:
        if method is None and not self._callable:
            raise FieldError(f"{self.name} cannot be called; call one of its methods: {', '.join(self.methods)}.")
        if method is not None and not (self._cls is not None and callable(getattr(self._cls, method, None))):
            super().check(method)

    def init(self, key: Any, method: str | None, args: Args, watch: Watch) -> Native:
        return run_init(key, lambda: watch.run(lambda: self._run(method, args)))[0]

    def apply(self, native: Native, draw: Draw | None, method: str | None, args: Args, watch: Watch) -> tuple[Any, Any]:
        if draw is None:
            return run_apply(native, lambda: watch.run(lambda: self._run(method, args)))
        return run_apply(native, lambda: drawing(draw, lambda: watch.run(lambda: self._run(method, args))))


class Pair(Part):
    """A pair of pure functions `init` and `apply`, as in a `hk.Transformed`, that did not come from Haiku's transform."""

    methods = ()
    whole = True

    def __init__(self, pair: Any):
        self.name = type(pair).__name__
        self._pair = pair
        self._stateful = isinstance(pair, hk.TransformedWithState)

    def init(self, key: Any, method: str | None, args: Args, watch: Watch) -> Native:
        return _pair_init(self._pair, self._stateful, key, args, watch)

    def apply(self, native: Native, draw: Draw | None, method: str | None, args: Args, watch: Watch) -> tuple[Any, Any]:
        return _pair_apply(self._pair.apply, self._stateful, native, draw, args, watch)


class Multi(Part):
    """What `hk.multi_transform` gives: one init function, and a tree of apply functions, each a method by its path."""

    whole = False

    def __init__(self, pair: Any):
        self.name = type(pair).__name__
        self._pair = pair
        self._stateful = isinstance(pair, hk.MultiTransformedWithState)
        self._apply = _flat.flatten(pair.apply)
        self.methods = tuple(m for m in self._apply if m)

    def has_init(self, method: str | None) -> bool:
        return method is None

    def check(self, method: str | None) -> None:
        super().check(method)
        if method is None and "" not in self._apply:
            raise FieldError(
                f"{self.name} holds several functions: say which, method={self.methods[0]!r} or the attribute of that name."
                f" It has {', '.join(map(repr, self.methods))}. A call without a method only initialises, with the template."
            )

    @property
    def template_only(self) -> bool:
        """Whether a call without a method can only initialise."""
        return "" not in self._apply

    def init(self, key: Any, method: str | None, args: Args, watch: Watch) -> Native:
        return _pair_init(self._pair, self._stateful, key, args, watch)

    def apply(self, native: Native, draw: Draw | None, method: str | None, args: Args, watch: Watch) -> tuple[Any, Any]:
        return _pair_apply(self._apply[method or ""], self._stateful, native, draw, args, watch)


def _pair_init(pair: Any, stateful: bool, key: Any, args: Args, watch: Watch) -> Native:
    made = run_init(None, lambda: watch.run(lambda: pair.init(key, *args[0], **args[1])))[1]
    return (made[0], made[1]) if stateful else (made, {})


def _pair_apply(
    apply: Callable[..., Any], stateful: bool, native: Native, draw: Draw | None, args: Args, watch: Watch
) -> tuple[Any, Any]:
    variables = native if stateful else native[:1]
    key = (draw() if draw is not None else None,) if _takes_key(apply) else ()
    out = run_apply(({}, {}), lambda: watch.run(lambda: apply(*variables, *key, *args[0], **args[1])))[0]
    return out if stateful else (out, {})


def part_of(part: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Part:
    """Returns the part for anything that this project takes as a Haiku model.

    Args:
      part: A function, an `hk.Module` class, a `functools.partial` of one, or what Haiku's transforms give.
      args: Arguments of the constructor, for a class only.
      kwargs: The same by keyword.

    Raises:
      UnsupportedError: It is something else; the text says what to pass instead.
      FieldError: Constructor's arguments were given for what has no constructor.
    """
    kwargs = dict(kwargs or {})
    inner = part
    while isinstance(inner, functools.partial):
        inner = inner.func
    if isinstance(inner, type) and issubclass(inner, hk.Module):
        return Code(functools.partial(part, *args, **kwargs), None, inner.__name__, inner)
    if args or kwargs:
        raise FieldError(
            f"Only an hk.Module class takes constructor's arguments here; {_called(part)} is called with its arguments when"
            " the wrapper is called."
        )
    if isinstance(part, (hk.Transformed, hk.TransformedWithState)):
        original = _original(part)
        return Pair(part) if original is None else Code(None, original, _called(original, type(part).__name__))
    if isinstance(part, (hk.MultiTransformed, hk.MultiTransformedWithState)):
        return Multi(part)
    if isinstance(part, hk.Module):
        raise UnsupportedError(
            f"An instance of {type(part).__name__} lives only inside of the transform that made it. Pass the class and its"
            f" arguments, HaikuModule(hk.Linear, 128), or a function that makes and calls the module."
        )
    if isinstance(part, type) or not callable(part):
        raise UnsupportedError(
            f"{part!r} is no Haiku model. Pass an hk.Module class, a function that uses Haiku modules, or what hk.transform,"
            " hk.transform_with_state or hk.multi_transform gave."
        )
    if hasattr(part, "lower") and hasattr(part, "__wrapped__"):
        raise UnsupportedError(
            "The function is compiled with jax.jit already, and a function that uses Haiku modules has side effects that JAX"
            " does not know of. Pass the plain function, and compile the result of bridges.pure or of haiku_adapter.apply."
        )
    return Code(None, part, _called(part))


def _called(part: Any, otherwise: str = "") -> str:
    name = getattr(part, "__name__", "") or getattr(getattr(part, "func", None), "__name__", "") or type(part).__name__
    return name if name.isidentifier() else otherwise or "Haiku"


@functools.lru_cache(maxsize=1 << 10)
def _methods(cls: type) -> tuple[tuple[str, ...], bool]:
    """Returns a module class's public methods and properties, and whether its call is its only method."""
    public = [m for m in dir(cls) if m not in _BASE_METHODS and not m.startswith("_") and _is_method(cls, m)]
    return tuple(public), not any(callable(inspect.getattr_static(cls, m)) for m in public)


def _is_method(cls: Any, name: str) -> bool:
    found = inspect.getattr_static(cls, name)
    return isinstance(found, (types.FunctionType, property, functools.cached_property, staticmethod, classmethod))


def _original(pair: Any) -> Callable[..., Any] | None:
    """Returns the function that Haiku's own transform was given, or None if someone replaced the pair's functions."""
    init, apply = (getattr(f, "_original_fn", None) for f in pair)
    own = all(
        isinstance(f, types.FunctionType)
        and not hasattr(f, "__wrapped__")
        and f.__module__ in ("haiku._src.transform", "haiku._src.multi_transform")
        for f in pair
    )
    return init if own and init is not None and init is apply else None


def _takes_key(apply: Any) -> bool:
    """Whether an apply function has the `rng` argument, which `hk.without_apply_rng` takes away."""
    while isinstance(apply, functools.partial):
        apply = apply.func
    return not getattr(apply, "__qualname__", "").startswith("without_apply_rng.")


def arrays_abstract(args: Args) -> tuple[list[jax.ShapeDtypeStruct], Callable[[list[Any]], Args]]:
    """Returns the arrays of a call's arguments as shapes, and what puts arrays in their place."""
    found, tree = jax.tree.flatten(args)
    is_array = [hasattr(x, "shape") and hasattr(x, "dtype") for x in found]
    # JAX says what its dtype is: an int64 of NumPy is an int32 to it.
    shapes = jax.eval_shape(lambda arrays: arrays, [x for x, array in zip(found, is_array, strict=True) if array])

    def fill(arrays: list[Any]) -> Args:
        given = iter(arrays)
        return jax.tree.unflatten(tree, [next(given) if a else x for x, a in zip(found, is_array, strict=True)])

    return shapes, fill
