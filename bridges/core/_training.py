"""Which arguments tell a layer of another framework whether it trains, and what the flags of a call say for them.

Frameworks have no common word for it: a call takes `is_training`, `train`, `training`, `deterministic` or
`use_running_average`. The flag of an argument's own name decides, else `train`, unless one of these arguments was passed: it
then speaks for the call. Arguments that were passed stay, and nothing but these is ever set.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

# Argument that says whether a call trains -> what it is when it does.
TRAINING = {"is_training": True, "train": True, "training": True, "deterministic": False, "use_running_average": False}
FLAGS = ("train", "deterministic", "use_running_average")


def training_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those of the flags that say something of training, less what is None."""
    return {name: flags[name] for name in FLAGS if flags.get(name) is not None} if flags else {}


def told(
    method: Callable[..., Any] | inspect.Signature,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    flags: Mapping[str, Any],
    *,
    fixed: Callable[[str], bool] = lambda name: False,
    undecided: bool = False,
) -> dict[str, Any]:
    """Returns the arguments by keyword that the flags give to a call.

    Args:
      method: What is called, or its signature; without `self`.
      args: Its arguments.
      kwargs: Its arguments by keyword.
      flags: What `training_flags` gives.
      fixed: Whether an argument of this name was decided elsewhere (a field of a Linen module).
      undecided: Only arguments without a default, or with None for one: of a layer deep inside, which the layer around it
        may have left to its default on purpose.

    >>> def layer(x, deterministic=None, train=False): ...
    >>> told(layer, (1,), {}, {'train': True}), told(layer, (1,), {}, {'train': True}, undecided=True)
    ({'train': True, 'deterministic': False}, {'deterministic': False})
    """
    if not flags:
        return {}
    try:
        signature = method if isinstance(method, inspect.Signature) else inspect.signature(method)
        given = signature.bind_partial(*args, **kwargs).arguments
    except (TypeError, ValueError):
        return {}  # There is no signature; or the call itself will say what is wrong with its arguments.
    spoken = any(given.get(name) is not None for name in TRAINING)
    found = {}
    for name, training in TRAINING.items():
        parameter = signature.parameters.get(name)
        if parameter is None or parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            continue
        if undecided and parameter.default is not parameter.empty and parameter.default is not None:
            continue
        if fixed(name) or (name in given and (given[name] is not None or name not in kwargs)):
            continue
        if name in flags:
            found[name] = flags[name]
        elif "train" in flags and not spoken:
            found[name] = flags["train"] if training else not flags["train"]
    return found
