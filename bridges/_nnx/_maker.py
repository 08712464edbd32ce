"""What makes an NNX module: a class or function with its arguments, or an instance that is there already.

A `Maker` runs the constructor with the random streams that it is given; under `jax.eval_shape` that allocates nothing. An
instance stands for the values that it held when the maker was made; it is never changed.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from flax import nnx

from bridges.core._errors import FieldError, SeedError, describe


class Maker:
    """Makes modules, all alike.

    Args:
      ctor: An NNX class, a function that returns a module, a `functools.partial` of either, or an instance.
      args, kwargs: Arguments of `ctor`; none with an instance.

    Attributes:
      takes_rngs: Whether `ctor` has a parameter `rngs` that the arguments leave open.
      places: Whether Variables with axis names are placed on the mesh when they are made, as NNX does by default; a host
        that keeps the names for later turns it off, and needs no mesh then.
      passing: Attributes that a call may set for itself alone, as far as the host is concerned.

    Raises:
      FieldError: `ctor` cannot be called, or arguments come with an instance.
    """

    def __init__(self, ctor: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None):
        kwargs = dict(kwargs or {})
        while isinstance(ctor, functools.partial):  # Whose arguments may hold modules and streams, as ours may.
            ctor, args, kwargs = ctor.func, (*ctor.args, *args), {**ctor.keywords, **kwargs}
        self.ctor, self.args, self.kwargs = ctor, args, kwargs
        self.places = True
        self.passing: frozenset[str] = frozenset()
        self.instance = isinstance(ctor, nnx.Pytree)
        if self.instance:
            if args or kwargs:
                raise FieldError(
                    f"Arguments {(*args, *kwargs)} came with an instance of {type(ctor).__name__}, which is made already."
                    f" Pass the class and its arguments, NNXModule({type(ctor).__name__}, …), or the instance alone."
                )
            self.ctor = nnx.clone(ctor, graph=True)
        elif not callable(ctor):
            raise FieldError(
                f"An NNX model is a module class, an instance, or a function that returns one; got {describe(ctor)}."
            )
        self.takes_rngs = not self.instance and _takes_rngs(ctor, args, kwargs)

    @property
    def name(self) -> str:
        """The name of the class or function."""
        ctor = innermost(self.ctor)
        return str(getattr(ctor, "__name__", type(ctor).__name__))

    def make(self, rngs: nnx.Rngs | None = None) -> Any:
        """Returns a new module.

        Args:
          rngs: The random streams, where `takes_rngs`.

        Raises:
          FieldError: `ctor` returned something else.
          SeedError: It draws from a stream that `rngs` does not have.
        """
        if self.instance:
            return nnx.clone(self.ctor, graph=True)
        # Modules and streams among the arguments are the caller's own: each module gets a copy, of this trace.
        own = [nnx.clone(a, graph=True) if isinstance(a, nnx.Pytree) else a for a in self.args]
        named = {k: nnx.clone(a, graph=True) if isinstance(a, nnx.Pytree) else a for k, a in self.kwargs.items()}
        if self.takes_rngs:
            named["rngs"] = rngs
        with missing_stream_explained(rngs), contextlib.nullcontext() if self.places else nnx.use_eager_sharding(False):
            module = self.ctor(*own, **named)
        if not isinstance(module, nnx.Pytree):
            raise FieldError(
                f"An NNX model is a module class, an instance, or a function that returns one. {self.name} gave"
                f" {describe(module)}."
            )
        settle(module)
        return module

    def watched(self, streams: tuple[str, ...] = ()) -> tuple[Any, bool]:
        """Returns a new module made with some key, and whether its values depend on the key.

        Args:
          streams: Names of the random streams; one for all (`default`) if there are none.
        """
        if not self.takes_rngs:
            return self.make(), False
        rngs = nnx.Rngs(**dict.fromkeys(streams, 0)) if streams else nnx.Rngs(0)
        before = {name: stream.count.get_raw_value() for name, stream in rngs.items()}
        module = self.make(rngs)
        drawn = any(stream.count.get_raw_value() is not before[name] for name, stream in rngs.items())
        return module, drawn or any(isinstance(leaf, nnx.RngKey) for leaf in nnx.flatten(module, graph=True)[1].leaves)


def settle(module: Any) -> None:
    """Makes data of the arrays that are attributes, where a JAX trace runs.

    NNX (flax 0.12.8) tells by its exact type whether an attribute is data, and takes a traced array for a static one.
    """
    for _, node in list(nnx.iter_graph(module, graph=True)):
        for name, value in list(vars(node).items()) if isinstance(node, nnx.Pytree) else ():
            if isinstance(value, jax.Array) and not nnx.is_data(value):
                setattr(node, name, nnx.data(value))


def innermost(ctor: Any) -> Any:
    """Returns what a `functools.partial`, perhaps of a partial, calls."""
    while isinstance(ctor, functools.partial):
        ctor = ctor.func
    return ctor


def _takes_rngs(ctor: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    while isinstance(ctor, functools.partial):
        args, kwargs, ctor = (*ctor.args, *args), {**ctor.keywords, **kwargs}, ctor.func
    if "rngs" in kwargs:
        return False
    is_class = isinstance(ctor, type)
    signature = signature_of(ctor.__init__ if is_class else ctor)
    if signature is None:
        return False
    parameters = signature.parameters
    if "rngs" not in parameters:
        # A class whose constructor hands its keywords on to that of another NNX class.
        return is_class and any(p.kind is p.VAR_KEYWORD for p in parameters.values()) and _base_takes_rngs(ctor)
    with contextlib.suppress(TypeError):
        return "rngs" not in signature.bind_partial(*((None,) if is_class else ()), *args, **kwargs).arguments
    return True


def _base_takes_rngs(cls: type) -> bool:
    found = (signature_of(vars(base)["__init__"]) for base in cls.__mro__[1:] if "__init__" in vars(base))
    return any(signature is not None and "rngs" in signature.parameters for signature in found)


def signature_of(fn: Callable[..., Any]) -> inspect.Signature | None:
    """Returns the signature of a function, None where Python cannot tell."""
    try:
        return inspect.signature(fn)
    except (TypeError, ValueError):
        return None


def as_rngs(rngs: Any) -> nnx.Rngs:
    """Returns new `nnx.Rngs` of an integer, a key, a dictionary of these by stream, or other `nnx.Rngs` (a copy)."""
    if isinstance(rngs, nnx.Rngs):
        return nnx.clone(rngs, graph=True)
    return nnx.Rngs(**rngs) if isinstance(rngs, Mapping) else nnx.Rngs(rngs)


@contextlib.contextmanager
def missing_stream_explained(rngs: nnx.Rngs | None) -> Iterator[None]:
    """Raises a `SeedError` in place of NNX's error about a stream that is not there (flax 0.12.8 says it in the text)."""
    try:
        yield
    except (AttributeError, KeyError) as err:
        if "No RngStream named" not in str(err) or rngs is None:
            raise
        raise SeedError(
            f"The constructor draws from a random stream that is not there: {err.args[0]}. The streams given are"
            f" {sorted(rngs)}. Add it, or give a 'default' stream that stands in for any other."
        ) from err
