"""Which argument tells a call whether it trains, and what it is when `train()` or `eval()` has been called.

Frameworks have no common word for it: a call takes `is_training`, `train`, `training`, `deterministic` or
`use_running_average`. It is set where the call takes it and the caller has not passed it; nothing else is ever guessed.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

import jax

from bridges._host._framework import innermost
from bridges._host._host import Host
from bridges.core._training import TRAINING

_BASES = ("haiku._src.module", "flax.linen.module", "bridges.")  # Where frameworks have their base classes.
_MODES = ("deterministic", "use_running_average")


def settings(
    host: Host, method: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], modes: Mapping[str, bool | None]
) -> dict[str, bool]:
    """Returns the arguments that tell a call whether it trains, as `train()` and `eval()` have set it.

    Args:
      host: The part.
      method, args, kwargs: The call.
      modes: `deterministic` and `use_running_average`, None where they are not set.
    """
    given = [mode for mode in modes.values() if mode is not None]
    signature = host.signature(method) if given and host.framework != "flax.nnx" else None
    if signature is None:
        return {}
    try:
        bound = signature.bind_partial(*args, **kwargs).arguments
    except TypeError:  # The call itself will say what is wrong with its arguments.
        return {}
    found = {}
    for name, training in TRAINING.items():
        parameter = signature.parameters.get(name)
        if parameter is None or parameter.kind is parameter.POSITIONAL_ONLY or name in bound or _fixed(host, name):
            continue
        own = modes.get(name)
        found[name] = own if own is not None else given[0] is not training
    return found


def moded(host: Host, method: Any, kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, bool]]:
    """Returns the arguments to pass to a call, and the flags that others of them are for the call.

    The calls of NNX and core parts have no argument that tells whether they train: attributes and flags do. `is_training`,
    `train`, `training`, `deterministic` and `use_running_average` become such flags where the call does not take them.

    Args:
      host: The part.
      method, kwargs: The call.
    """
    passed = dict(kwargs)
    flags: dict[str, bool] = {}
    signature = host.signature(method) if host.framework in (None, "flax.nnx") and TRAINING.keys() & passed else None
    parameters = {} if signature is None else signature.parameters
    if signature is None or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return passed, flags
    for name, training in TRAINING.items():
        if name in passed and name not in parameters:
            value = bool(passed.pop(name))
            flags["train" if training else name] = value
    return passed, flags


def told(
    host: Host, method: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, bool]]:
    """Returns the arguments to pass to a call, and flags to set for it, where the caller has said whether it trains.

    An argument that the call takes is passed on. One of the other words for it becomes the word that the call takes, or a
    flag where `moded` makes one. What nothing takes stays where it is, and the call itself refuses it.

    Args:
      host: The part.
      method, args, kwargs: The call.
    """
    passed, flags = moded(host, method, kwargs)
    signature = host.signature(method) if host.framework in ("haiku", "flax.linen") else None
    if signature is None or any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        return passed, flags
    words = [n for n in TRAINING if isinstance(passed.get(n), bool) and n not in signature.parameters]
    rest = {name: value for name, value in passed.items() if name not in words}
    modes: dict[str, bool | None] = {name: passed[name] for name in words if name in _MODES}
    if spoken := [passed[name] is TRAINING[name] for name in words if name not in _MODES]:
        modes = {**dict.fromkeys(_MODES, not spoken[0]), **modes}
    found = settings(host, method, args, rest, {name: modes.get(name) for name in _MODES})
    return ({**rest, **found}, flags) if found else (passed, flags)


def variants(host: Host, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[inspect.BoundArguments] | None:
    """Returns calls that between them draw random numbers if any call does, None if that cannot be told.

    It can for a function, or a class whose call is its only method, if all that is passed to it, or might be, are
    arrays and flags: as it is called here, with every flag up, and with every flag down. What a core part asks of
    `bridges.flag` is no argument.
    """
    signature = host.signature(None)
    if signature is None or _other_methods(host):
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
        if name in TRAINING or isinstance(bound.arguments[name], bool):
            flags += [] if _fixed(host, name) else [name]
        elif leaves:
            return None
    calls = [bound]
    for up in (True, False) if flags else ():
        calls.append(signature.bind(*args, **kwargs))
        calls[-1].apply_defaults()
        calls[-1].arguments.update(dict.fromkeys(flags, up))
    return calls


def _other_methods(host: Host) -> bool:
    if host.core:
        return has_other_methods(type(host.module))
    part: Any = type(host.module._linen) if host.framework == "flax.linen" else innermost(host.part)
    if not isinstance(part, type):
        return hasattr(part, "apply") and not hasattr(part.apply, "_original_fn")
    return has_other_methods(part, {"setup", *getattr(part, "__dataclass_fields__", ())})


def has_other_methods(cls: type, known: Collection[str] = ()) -> bool:
    """Whether a module class has methods of its own beside `__call__`.

    Args:
      cls: A class of Haiku, Linen or the core.
      known: Names that are no such methods.
    """
    theirs = {name for base in cls.__mro__ if base.__module__.startswith(_BASES) for name in dir(base)}
    names = (name for name in dir(cls) if not name.startswith("_") and name not in theirs and name not in known)
    return any(callable(getattr(cls, name)) for name in names)


def _fixed(host: Host, name: str) -> bool:
    """Whether a Linen module has this as a field that is set: it refuses to be told twice."""
    linen = getattr(host.module, "_linen", None) if host.framework == "flax.linen" else None
    return getattr(linen, name, None) is not None
