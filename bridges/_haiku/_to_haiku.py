"""ToHaiku: a Linen, NNX, Haiku or core part as a real Haiku module.

The entries of the part are Haiku's parameters and state under the module's own name (`_places`). A call runs the part in
a context of these entries and sets the state that it modifies, so that everything Haiku does with its variables works,
and everything the core checks (missing, misshapen and unknown entries) is checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import haiku as hk

from bridges._haiku._part import part_of
from bridges._haiku._visit import Visit, visit
from bridges._host._framework import framework_of, innermost
from bridges._host._host import Host
from bridges._host._reached import reached
from bridges.core import Module
from bridges.core._errors import ContextError
from bridges.core._naming import snake_case


class ToHaiku(hk.Module):
    """A part of any framework as a Haiku module.

    The entries of the part stand below the module's name, `net` here: a Linen or NNX entry `params/Dense_0/kernel` is
    `params['net/Dense_0']['kernel']`, and `batch_stats/BatchNorm_0/mean` is
    `state['net/batch_stats/BatchNorm_0']['mean']`. Those of a `bridges.Module` have their paths below that module, and
    are parameters where their kind is `Param`. They are read with `hk.get_parameter` and `hk.get_state`, so that creators,
    getters and setters, `hk.vmap`, `hk.scan`, `hk.remat`, `hk.layer_stack`, `hk.lift` do to them what they do to Haiku's.

    Where the part has no state and sows nothing, `hk.transform` is enough; otherwise `hk.transform_with_state` is needed.
    What is sown is state of one shape, anew at each call. Metadata beside the arrays (`nn.with_partitioning`) has no place
    in Haiku and is not kept.

    A call takes one key, the next one of `hk.next_rng_key()`, if it draws anything, and else none. At `init`, initial values
    are the native ones for that key: `part.init(key, x)` of Linen, `cls(rngs=nnx.Rngs(key))`, `bridges.init(part)({}, x,
    seed=key)`. Streams that an NNX part keeps (dropout) are no state here: each call that draws begins them anew, as
    `nnx.reseed(module, default=key)` does.

    Calls take the arguments of the part. Words for training (`is_training=`, `train=`, `training=`, `deterministic=`,
    `use_running_average=`) that the call does not take become the one that it does, or the mode of an NNX or core part.

    Args:
      part: A Linen module or class; an NNX class or instance; a `bridges.Module`, or a class of such; a Haiku function,
        an `hk.Module` class or what Haiku's transforms gave. `functools.partial` of these classes.
      *args: Arguments of a class.
      name: The name of the Haiku module; the part's class in snake case if not given. (A name for the part itself goes
        into a `functools.partial`.)
      **kwargs: Arguments of a class.

    Methods and submodules of the part are attributes, `net.encode(x)`; where a name is one of Haiku's own,
    `net(x, method='params_dict')`.

    Raises:
      UnsupportedError: The part cannot be hosted.
      FieldError: There were arguments, and the part is no class.

    >>> import bridges as br, jax, jax.numpy as jnp
    >>> from flax import linen as nn
    >>> net = hk.without_apply_rng(hk.transform(lambda x: br.ToHaiku(nn.Dense, 2)(x)))
    >>> params = net.init(jax.random.key(0), jnp.ones((1, 3)))
    >>> jax.tree.map(jnp.shape, params)
    {'dense': {'bias': (2,), 'kernel': (3, 2)}}
    >>> net.apply(params, jnp.ones((1, 3))).shape
    (1, 2)
    """

    def __init__(self, part: Any, /, *args: Any, name: str | None = None, **kwargs: Any):
        super().__init__(name=_name_of(part, args, kwargs) if name is None else name)
        self.host = Host(part, args, kwargs, root=self.name, bridge="ToHaiku")
        if self.host.framework == "flax.nnx":
            self.host.module._memory = self.host.module._memory.pure()  # As in Linen: calls stand for themselves.

    @property
    def part(self) -> Any:
        """What is wrapped."""
        return self.host.part

    def __call__(self, *args: Any, method: Any = None, **kwargs: Any) -> Any:
        """Returns the output of the part; what it modifies is set in Haiku's state.

        Args:
          *args: The arguments of the call.
          method: Which method: a name, or what the part's wrapper takes; `__call__` if not given.
          **kwargs: The arguments of the call.

        Raises:
          MissingEntryError: An entry is missing; all that are are listed. Nothing is ever made up.
          EntryShapeError: An entry has another shape than the part gives it.
          StructureError: There are entries below this module's name that the part has no use for.
          SeedError: The part draws, and there is no key.
          UnsupportedError: The part modifies a parameter.
          FieldError: There is no such method.
        """
        return visit(self, self.host, method, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        # Reached only for what the module itself does not have, so that no layer's name can hide one of Haiku's.
        host = vars(self).get("host")
        if host is None or name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        try:
            return reached(self, host, name)
        except ContextError:  # A property that runs the part.
            return Visit(self, host, {}, lambda: host.reached(name))()


def _name_of(part: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    inner = innermost(part)
    if isinstance(inner, Module):
        return inner.name
    if framework_of(part) == "haiku":
        given = part_of(part, args, kwargs).name
    else:
        given = getattr(inner, "__name__", None) or type(inner).__name__
    name = snake_case(given)
    return name if name.isidentifier() else "to_haiku"
