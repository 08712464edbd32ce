"""Model: a model of any framework behind one interface.

    Model.of(obj)    # a Haiku function, class or Transformed; a Linen, NNX or core module; a `Function`

The framework is told by what the object is made of. A function without a mark of its own is a Haiku function, unless it
takes `rngs` or no argument at all: then it is a factory, and what it returns says more.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import jax

from bridges._infer._function import Function
from bridges.core._errors import BridgeError, UnsupportedError, describe
from bridges.core._module import Module
from bridges.core._pure import init, pure
from bridges.core._spec import Spec
from bridges.core._state import State

_ADAPTERS = {"haiku": "bridges.haiku_adapter", "linen": "bridges.linen_adapter", "nnx": "bridges.nnx_adapter"}


class ModelError(BridgeError, ValueError):
    """A model reference leads nowhere, or to something that is no model."""


@dataclasses.dataclass(frozen=True)
class Model:
    """A model of any framework.

    Attributes:
      framework: `'haiku'`, `'linen'`, `'nnx'`, `'core'` or `'function'`.
      model: The framework's own object.
      name: What it is called in messages.
    """

    framework: str
    model: Any
    name: str = "the model"

    @classmethod
    def of(cls, model: Any, name: str = "") -> Model:
        """Returns the model of a framework's object; a `Model` as it is.

        Raises:
          ModelError: It is none of these.
        """
        if isinstance(model, Model):
            return model
        if isinstance(model, tuple) and len(model) == 2 and callable(model[0]) and framework_of(model) is None:
            model = Function(*model)  # (apply, params)
        name = name or getattr(model, "__name__", "") or type(model).__name__
        if found := framework_of(model):
            return cls(found, model, name)
        if not callable(model):
            raise ModelError(
                f"{name} is a {type(model).__name__} and no model. Give a Haiku function, class or Transformed, a Linen"
                " module instance, an NNX module or a function that makes one, a bridges.Module, or a"
                " bridges.Function(apply, params)."
            )
        if _takes(model, "rngs"):
            cls("nnx", model, name).spec()  # explains what is wrong with it
            return cls("nnx", model, name)
        if _takes(model):
            with cls("nnx", model, name)._told((), {}):
                if _kind_made(model) == "nnx":
                    return cls("nnx", model, name)
                made = model()
            if found := framework_of(made):
                return cls(found, made, name)
        return cls("haiku", model, name)

    @property
    def family(self) -> str:
        """The framework whose conventions and checkpoints its variables follow; 'flat' for none."""
        return "flat" if self.framework in ("core", "function") else self.framework

    def adapter(self) -> ModuleType:
        """Returns the adapter module of the framework; its package must be installed."""
        try:
            return importlib.import_module(_ADAPTERS[self.framework])
        except ImportError as err:
            extra = "haiku" if self.framework == "haiku" else "flax"
            raise UnsupportedError(
                f"{self.name} is a {self.framework} model, and {err.name} is not installed: pip install"
                f" 'jax-bridges[{extra}]'."
            ) from err

    def spec(self, *args: Any, **kwargs: Any) -> Spec:
        """Returns the spec for these inputs; arrays may be `jax.ShapeDtypeStruct`. Nothing is allocated.

        Raises:
          ModelError: The model cannot be called with them; its own error is the cause.
        """
        if self.framework == "function":
            return self.model.spec()
        if self.framework == "core":
            kinds: dict[str, Any] = {}

            def created() -> dict[str, Any]:
                state = init(self.model)({}, *args, seed=0, **kwargs)
                kinds.update(state.declared)
                return dict(state)

            with self._told(args, kwargs):
                return Spec(State(jax.eval_shape(created), kinds))
        adapter = self.adapter()
        with self._told(args, kwargs):
            return adapter.spec(self.model, *args, **kwargs)

    def init(self, rngs: Any, *args: Any, **kwargs: Any) -> State:
        """Returns the native initial values as a flat state."""
        if self.framework == "function":
            return self.model.flatten()
        adapter = None if self.framework == "core" else self.adapter()
        with self._told(args, kwargs):
            if adapter is None:
                return init(self.model)({}, *args, seed=rngs, **kwargs)
            return adapter.init(self.model, rngs, *args, **kwargs)

    def random_state(self, paths: Iterable[str]) -> dict[str, Any]:
        """Returns these entries (random keys and their counts) as a new model has them, or an instance does.

        What is not returned is not computed: XLA leaves the initialisers of the weights out.
        """
        wanted = list(paths)
        if not wanted:
            return {}

        def made() -> dict[str, Any]:
            state = self.init(0)
            return {path: state[path] for path in wanted}

        return dict(jax.jit(made)())

    def apply(self, state: Mapping[str, Any], *args: Any, rngs: Any = None, **kwargs: Any) -> tuple[Any, State]:
        """Returns the output and the state after a call, in this order, whatever the framework."""
        adapter = None if self.framework in ("core", "function") else self.adapter()
        with self._told(args, kwargs):
            if self.framework == "function":
                return self.model.apply(self.model.unflatten(state), *args, **kwargs), State(state)
            if adapter is None:
                new, out = pure(self.model)(state, *args, seed=rngs, **kwargs)
                return out, new
            return adapter.apply(self.model, state, *args, rngs=rngs, **kwargs)

    @contextlib.contextmanager
    def _told(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[None]:
        """What the model's own code raises is the model's error: it names the model and its inputs."""
        try:
            yield
        except BridgeError:
            raise
        except (Exception, SystemExit) as err:
            given = [shown(x) for x in args] + [f"{name}={shown(x)}" for name, x in kwargs.items()]
            raise ModelError(
                f"{self.name} ({self.framework}) raises, with the inputs ({', '.join(given)}):\n{type(err).__name__}: {err}"
                "\nBoth models get the same inputs, in order (--input 'float32[1,8]' --input false, inputs=) or by name"
                " (--input is_training=false, kwargs=); a model that takes others is named by a function around it."
            ) from err


def _kind_made(factory: Callable[[], Any]) -> str | None:
    """Returns the framework of what a function makes; its weights are not initialised for that."""
    found: list[str | None] = []
    jax.eval_shape(lambda: found.append(framework_of(factory())))
    return found[-1]


def shown(x: Any) -> str:
    """Returns what an error says of an input: shape and dtype of an array, the beginning of any other value."""
    return describe(x) if hasattr(x, "dtype") else repr(x)[:40]


def framework_of(model: Any) -> str | None:
    """Returns the framework of an object or class that bears a mark of one; nothing is imported to find out."""
    model = model.func if isinstance(model, functools.partial) else model
    haiku, linen, nnx = (sys.modules.get(name) for name in ("haiku", "flax.linen", "flax.nnx"))

    def is_a(*bases: type) -> bool:
        return issubclass(model, bases) if inspect.isclass(model) else isinstance(model, bases)

    if is_a(Module):
        return "core"
    if is_a(Function):
        return "function"
    transformed = ("Transformed", "TransformedWithState", "MultiTransformed", "MultiTransformedWithState")
    if haiku and is_a(haiku.Module, *(getattr(haiku, name) for name in transformed)):
        return "haiku"
    if linen and is_a(linen.Module):
        return "linen"
    return "nnx" if nnx and is_a(nnx.Pytree) else None


def _takes(function: Callable[..., Any], *names: str) -> bool:
    """Whether these are the parameters that a call must fill."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in variadic] == list(names)
