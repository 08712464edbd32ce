"""What a call does beside computing its output: the collections it modifies, what it sows, the streams it draws from.

Linen asks the caller to say all of this beforehand. Here the call itself is asked: it runs with nothing mutable but the
intermediates, and a collection that it then tries to modify becomes mutable for it. A model that decides by
`is_mutable_collection('batch_stats')` whether it is training is therefore never told that it is, and one that always
updates its statistics is always allowed to. A `Spy` watches the call through `nn.intercept_methods`, by shadowing a few
methods on the temporary clones that Linen makes for a call; the user's instances are not touched.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Iterable
from typing import Any

from flax import linen as nn
from flax.errors import InvalidRngError, ModifyScopeVariableError

from bridges.core import _flat

RECORDED = "intermediates"  # The collection that Linen's sow and capture_intermediates are for.


@dataclasses.dataclass(frozen=True)
class Traits:
    """What calls of one signature do beside computing their output.

    Attributes:
      mutable: Collections that must be mutable: those modified, and those sown into.
      sown: Paths of the variables that are sown.
      streams: Random streams that are drawn from or asked for.
    """

    mutable: frozenset[str] = frozenset((RECORDED,))
    sown: frozenset[str] = frozenset()
    streams: frozenset[str] = frozenset()

    def sows(self, path: str) -> bool:
        """Whether the entry at a path (from the collection on) is sown rather than kept from call to call."""
        return (
            path.startswith(RECORDED + _flat.SEPARATOR)
            or path in self.sown
            or any(_flat.under(path, variable) for variable in self.sown)
        )


class Spy:
    """Records what the modules of a call do; an interceptor for `nn.intercept_methods`.

    Attributes:
      sown: Paths of variables sown, whether or not their collection was mutable.
      touched: Paths of variables that were asked for by name.
      streams: Names of random streams drawn from or asked for.
      stock: Whether all modules seen are flax's own. Of others the spy may miss something: a module under `nn.jit` runs
        once and then never again, for all instances of it.
    """

    def __init__(self) -> None:
        self.stock = True
        self.sown: set[str] = set()
        self.touched: set[str] = set()
        self.streams: set[str] = set()
        self._notes: dict[str, Callable[..., None]] = {
            "sow": lambda path, col, name, *_, **__: self.sown.add(_flat.join((col, *path, name))),
            "param": lambda path, name, *_, **__: self.touched.add(_flat.join(("params", *path, name))),
            **dict.fromkeys(
                ("variable", "get_variable", "put_variable"),
                lambda path, col, name, *_, **__: self.touched.add(_flat.join((col, *path, name))),
            ),
            "perturb": lambda path, name, value, collection="perturbations": self.touched.add(
                _flat.join((collection, *path, name))
            ),
            "make_rng": lambda path, name="params": self.streams.add(name),
            "has_rng": lambda path, name: self.streams.add(name),
        }

    def __call__(self, method: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        self.watch(context.module)
        return method(*args, **kwargs)

    def watch(self, module: nn.Module) -> None:
        """Shadows the methods to be noted on a bound module, unless the module has attributes of these names."""
        self.stock = self.stock and getattr(nn, type(module).__name__, None) is type(module)
        for name, note in self._notes.items():
            if name not in module.__dict__ and callable(getattr(type(module), name, None)):
                object.__setattr__(module, name, functools.partial(_noted, note, module, getattr(module, name)))


def _noted(note: Callable[..., None], module: Any, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with contextlib.suppress(TypeError):  # An override with another signature: nothing is learned from it.
        note(module.scope.path, *args, **kwargs)
    return method(*args, **kwargs)


def settle(attempt: Callable[[Traits], Any], known: Traits, entries: Iterable[str], fixed: bool) -> Settled:
    """Runs a call, again if need be, until it is given all that it needs.

    Args:
      attempt: Runs the call with the given traits, leaving out entries that these say are sown.
      known: What to begin with.
      entries: Paths of the entries that there are.
      fixed: Whether the caller said what is mutable, so that a modification of anything else is an error.
    """
    spy = Spy()
    while True:
        try:
            with nn.intercept_methods(spy):
                result = attempt(known)
        except ModifyScopeVariableError as err:
            collection = modified_collection(err)
            if fixed or collection in known.mutable:
                raise
            known = dataclasses.replace(known, mutable=known.mutable | {collection})
            continue
        collections = {_flat.unescape(path.partition(_flat.SEPARATOR)[0]) for path in spy.sown}
        found = Traits(known.mutable | collections, known.sown | spy.sown, known.streams | spy.streams)
        grown = found.mutable != known.mutable
        stale = found.sown != known.sown and any(found.sows(path) and not known.sows(path) for path in entries)
        if not grown and not stale:
            return Settled(result, found, frozenset(spy.touched), spy.stock)
        known = found


@dataclasses.dataclass(frozen=True)
class Settled:
    """A call that has been given all that it needs.

    Attributes:
      result: What it returned.
      traits: What it does.
      touched: Paths of the variables that it asked for by name.
      stock: Whether all modules are flax's own.
    """

    result: Any
    traits: Traits
    touched: frozenset[str]
    stock: bool


def modified_collection(err: ModifyScopeVariableError) -> str:
    """Returns the collection that the error is about (flax 0.12.8 says it in the text only)."""
    found = re.search(r'because collection "(.*)" is immutable', str(err), re.DOTALL)
    if found is None:
        raise err
    return found[1]


def missing_stream(err: InvalidRngError) -> str:
    """Returns the random stream that the error asks for (flax 0.12.8 says it in the text only), or `'params'`."""
    found = re.search(r'needs PRNG for "(.*)"', str(err), re.DOTALL)
    return found[1] if found is not None else "params"
