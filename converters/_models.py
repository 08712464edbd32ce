"""Model: a model of any framework behind one interface, and how the command line names one.

    Model.of(obj)                      # a Haiku function, class or Transformed; a Linen, NNX or core module
    Model.load('models.py:forward')    # or 'package.module:attr.attr'

The framework is told by what the object is made of. A function without a mark of its own is a Haiku function, unless it
takes `rngs` or no argument at all: then it is a factory, and what it returns says more.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import inspect
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import jax

from bridges.core._errors import BridgeError, UnsupportedError, describe, hint
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
      framework: `'haiku'`, `'linen'`, `'nnx'` or `'core'`.
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
        name = name or getattr(model, "__name__", "") or type(model).__name__
        if found := framework_of(model):
            return cls(found, model, name)
        if not callable(model):
            raise ModelError(
                f"{name} is a {type(model).__name__} and no model. Give a Haiku function, class or Transformed, a Linen"
                " module instance, an NNX module or a function that makes one, or a bridges.Module."
            )
        if _takes(model, "rngs"):
            cls("nnx", model, name).spec()  # explains what is wrong with it
            return cls("nnx", model, name)
        if _takes(model):
            with cls("nnx", model, name)._told((), {}):
                made = model()
            if found := framework_of(made):
                return cls(found, model if found == "nnx" else made, name)
        return cls("haiku", model, name)

    @classmethod
    def load(cls, reference: str) -> Model:
        """Returns the model that `file.py:attr` or `package.module:attr` names, relative to the working directory.

        Raises:
          ModelError: The file, the module or the attribute is not there, or is no model. What running the file raises is
            passed on as its cause.
        """
        place, colon, attribute = reference.rpartition(":")
        if not colon or not place or not attribute:
            raise ModelError(f"{reference!r} names no model. Write file.py:name or package.module:name.")
        found = referred(reference)
        if inspect.isclass(found) and framework_of(found) == "linen":
            raise ModelError(f"{reference!r} is a Linen class. Name an instance: model = {attribute}(…) in {place}.")
        return cls.of(found, reference)

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
        adapter = None if self.framework == "core" else self.adapter()
        with self._told(args, kwargs):
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
                "\nBoth models get the same inputs, in order (--input 'float32[1,8]', inputs=) or by name (--input"
                " is_training=false, kwargs=); a model that takes others is named by a function around it."
            ) from err


def shown(x: Any) -> str:
    """Returns what an error says of an input: shape and dtype of an array, the beginning of any other value."""
    return describe(x) if hasattr(x, "dtype") else repr(x)[:40]


def referred(reference: str) -> Any:
    """Returns what `file.py:attr` or `package.module:attr` names, relative to the working directory.

    Raises:
      ModelError: The file, the module or the attribute is not there. What running the file raises is its cause.
    """
    place, _, attribute = reference.rpartition(":")
    found: Any = _module(place)
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [n for n in vars(found) if not n.startswith("_")] if hasattr(found, "__dict__") else []
            raise ModelError(f"{reference!r}: {place} has no attribute {part!r}.{hint(part, names)}")
        found = getattr(found, part)
    return found


def framework_of(model: Any) -> str | None:
    """Returns the framework of an object or class that bears a mark of one; nothing is imported to find out."""
    model = model.func if isinstance(model, functools.partial) else model
    haiku, linen, nnx = (sys.modules.get(name) for name in ("haiku", "flax.linen", "flax.nnx"))

    def is_a(*bases: type) -> bool:
        return issubclass(model, bases) if inspect.isclass(model) else isinstance(model, bases)

    if is_a(Module):
        return "core"
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


def _module(place: str) -> ModuleType:
    file = pathlib.Path(place)
    try:
        if place.endswith(".py"):
            if not file.is_file():
                raise ModelError(f"{place} does not exist.")
            name = file.stem
            spec = importlib.util.spec_from_file_location(name, file)
            if spec is None or spec.loader is None:
                raise ModelError(f"{place} is no Python file.")
            module = importlib.util.module_from_spec(spec)
            sys.modules.setdefault(name, module)
            sys.path.insert(0, str(file.resolve().parent))
            try:
                spec.loader.exec_module(module)
            finally:
                sys.path.remove(str(file.resolve().parent))
            return module
        if (here := str(pathlib.Path.cwd())) not in sys.path:
            sys.path.insert(0, here)
        return importlib.import_module(place)
    except BridgeError:
        raise
    except ModuleNotFoundError as err:
        raise ModelError(f"{place} cannot be imported: there is no module {err.name!r}.") from err
    except (Exception, SystemExit) as err:
        raise ModelError(f"{place} cannot be imported: {type(err).__name__}: {err}") from err
