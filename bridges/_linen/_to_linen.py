"""ToLinen: a Haiku, NNX, Linen or core part as a real Linen module.

The entries of the part are Linen variables of the module's scope. A call runs the part in a context of these entries and
puts back what it modifies, so that everything Linen does with variables (collections, `mutable`, lifted transforms,
checkpoints) works, and everything the core checks (missing, misshapen and unknown entries) is checked.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable
from typing import Any

from flax import linen as nn

from bridges._host._framework import innermost
from bridges._host._host import Host
from bridges._linen._part_run import Run
from bridges.core._errors import ContextError, FieldError


class ToLinen(nn.Module):
    """A part of any framework as a Linen module.

    `model.init(key, x)` has exactly the initial values of the part's own initialisation with that key:
    `hk.transform_with_state(f).init(key, x)`, `cls(…, rngs=nnx.Rngs(key))`, `bridges.init(net)({}, x, seed=key)`; with
    `{'params': a, 'dropout': b}` those of `nnx.Rngs(params=a, dropout=b)`, and so on. In a larger model the key is folded
    with the module's path, as Linen folds it. `apply(…, rngs={'dropout': key})` draws what
    `hk.transform(f).apply(params, key, x)` draws, and an NNX module after `nnx.reseed(module, dropout=key)`: random streams
    are passed in as everywhere in Linen, and are no variables. (NNX parts inside of a core part keep theirs, as everywhere
    in the core: in `RngKey` and `RngCount`.)

    Variables lie in Linen's collections, under the part's own names: Haiku's in `params` and `state`; those of NNX under the
    names that NNX has for their types (`params`, `batch_stats`, `cache`, `LoRAParam`); those of a `bridges.Module` in
    the collection of their kind, those of a kind `class Calls(bridges.Variable)` in `Calls`. Names of layers never meet
    those of this class. Axis names (`nnx.with_partitioning`) are in `nn.Partitioned` boxes.

    `mutable` is as for every Linen module: what the call modifies in a collection that is not mutable is an error. What it
    records (`sow`, `Intermediate`) comes back when its collection is mutable; each `apply` begins it anew.

    Args:
      part: A Haiku function, an `hk.Module` class or what Haiku's transforms gave; an NNX class or instance; a
        `bridges.Module`, or a class of such; a Linen module or class, which runs as it would by itself.
        `functools.partial` of these classes.
      *args: Arguments of a class.
      name, parent: As for every Linen module.
      **kwargs: Arguments of a class.

    Attributes:
      part: What is wrapped.

    Methods of the part are attributes, `model.encode`, and names for `method=`: `model.apply(variables, x, method='encode')`
    or `'encoder.layers.0'`; where a name is one of Linen's own, `lambda m, x: m(x, method='init')`. Words for training
    (`train=`, `is_training=`, `deterministic=`, `use_running_average=`) that the call does not take become the one that it
    does, or the mode of an NNX or core part. Modes that an NNX part sets in a call, `self.eval()`, last as long as the call.

    Raises:
      UnsupportedError: The part cannot be hosted.
      FieldError: There were arguments, and the part is no class.

    >>> import bridges as br, haiku as hk, jax, jax.numpy as jnp
    >>> model = br.ToLinen(lambda x: hk.nets.MLP([4, 2])(x))
    >>> variables = model.init(jax.random.key(0), jnp.ones((1, 3)))
    >>> variables['params']['mlp']['~']['linear_0']['w'].shape
    (3, 4)
    >>> model.apply(variables, jnp.ones((1, 3))).shape
    (1, 2)
    """

    host: Host

    def __init__(self, /, *args: Any, **kwargs: Any):
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        own = {name: kwargs.pop(name, defaults[name]) for name in ("parent", "name")}
        if not args and isinstance(kwargs.get("host"), Host):  # As Linen makes copies: from the fields.
            own["host"] = kwargs.pop("host")
        elif not args:
            raise FieldError(
                "ToLinen wraps a part: ToLinen(nnx.Linear, 2, 3), ToLinen(haiku_function), ToLinen(module)."
            )
        else:
            own["host"] = Host(args[0], args[1:], kwargs, root="variables", bridge="ToLinen")
            if own["host"].framework == "flax.nnx":
                module = own["host"].module
                module._memory = module._memory.pure()  # Axis names are notes in Linen, for boxes.
        for field, value in own.items():
            object.__setattr__(self, field, value)
        self.__post_init__()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # A lifted class (`nn.scan(ToLinen, …)`) is a subclass, and Linen would give it the constructor of a dataclass.
        if "__init__" not in vars(cls):
            cls.__init__ = ToLinen.__init__  # type: ignore[method-assign]
        super().__init_subclass__(**kwargs)

    @property
    def part(self) -> Any:
        """What is wrapped."""
        return self.host.part

    def __call__(self, /, *args: Any, method: Any = None, **kwargs: Any) -> Any:
        """Returns the output of the part; what it modifies is put into the mutable collections.

        Args:
          *args: The arguments of the call.
          method: Which method: a name, a dotted path, or what the part's wrapper takes; `__call__` if not given.
          **kwargs: The arguments of the call.

        Raises:
          MissingEntryError: A variable is missing; all that are are listed. Nothing is ever made up.
          EntryShapeError: A variable has another shape than the part gives it.
          StructureError: There are variables that the part has no use for.
          SeedError: The part draws, and there is no such stream (`flax.errors.InvalidRngError` too).
          PermissionsError: The part modifies a collection that is not mutable (`flax.errors.ModifyScopeVariableError` too).
          FieldError: There is no such method.
          ContextError: The module is bound to no variables.
        """
        return Run(self)(method, args, kwargs)

    @nn.nowrap
    def apply(self, variables: Any, *args: Any, method: Any = None, **kwargs: Any) -> Any:
        """Returns what `nn.Module.apply` returns; `method` may be a function of the part's class too."""
        return super().apply(variables, *args, method=self._name_of(method), **kwargs)

    @nn.nowrap
    def init_with_output(self, rngs: Any, *args: Any, method: Any = None, **kwargs: Any) -> Any:
        """Returns what `nn.Module.init_with_output` returns; `method` may be a function of the part's class too."""
        return super().init_with_output(rngs, *args, method=self._name_of(method), **kwargs)

    @nn.nowrap
    def _name_of(self, method: Any) -> Any:
        part = innermost(self.host.part)
        cls = part if isinstance(part, type) else type(part)
        if not isinstance(method, types.FunctionType):
            return method
        return next((name for name in dir(cls) if getattr(cls, name, None) is method), method)

    @nn.nowrap
    def __getattr__(self, name: str) -> Any:
        # Reached only for what the module itself does not have, so that no layer's name can hide one of Linen's.
        host = vars(self).get("host")
        if host is None or name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        try:
            found = host.reached(name)
        except ContextError as err:  # A property that runs the part.
            if self.scope is None:
                raise AttributeError(f"{name!r} of {host!r} can be read in init and apply only.") from err
            return Run(self)(lambda: host.reached(name), (), {})
        return types.MethodType(_method(name), self) if callable(found) else found


def _method(path: str) -> Callable[..., Any]:
    def call(self: ToLinen, /, *args: Any, **kwargs: Any) -> Any:
        return self(*args, method=path, **kwargs)

    call.__name__ = call.__qualname__ = path.rpartition(".")[2]
    return call
