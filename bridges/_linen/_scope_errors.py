"""What a part may not do in a Linen scope, said in our words, with Linen's own classes too.

Hosts that ask a call what it modifies and draws (`FlaxModule`, `nn.Module`s that try) catch Linen's classes and read its
words (bridges._linen._observe).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from flax import errors as flax_errors

from bridges.core._errors import BridgeError, PermissionsError, SeedError, listing


class Immutable(PermissionsError, flax_errors.ModifyScopeVariableError):
    """A part modifies a collection that is not mutable; what Linen raises, in our words."""

    def __init__(self, frozen: Mapping[str, list[str]], where: str):
        # Linen's own words are those that adapters look for (bridges._linen._observe.modified_collection).
        collection = next(iter(frozen))
        paths = [path for paths in frozen.values() for path in paths]
        text = (
            f'Cannot update the variables of {where} because collection "{collection}" is immutable:\n'
            + listing(map(repr, paths))
            + f"\nPass mutable={sorted(frozen)} to apply, and take the new values from its second result; or call the part"
            " so that it modifies nothing (train=False, deterministic=True)."
        )
        BridgeError.__init__(self, text)


class NoStream(SeedError, flax_errors.InvalidRngError):
    """A part draws from a stream that `init` or `apply` was given no key for; what Linen raises, in our words."""

    def __init__(self, stream: str, given: Iterable[str], where: str, creating: bool = False):
        remedy = (
            "Pass a key, model.init(key, x), or keys by stream: model.init({'params': key, 'dropout': other}, x)."
            if creating
            else f"Pass it: model.apply(variables, x, rngs={{{stream!r}: key}}), or one key for all streams."
        )
        # Linen's own words are those that adapters look for (bridges._linen._observe.missing_stream).
        text = f'{where} needs PRNG for "{stream}"; rngs= gives {", ".join(sorted(given)) or "none"}. {remedy}'
        BridgeError.__init__(self, text)


def stream_of(err: SeedError) -> str:
    """Returns the random stream that the core's error is about, `'default'` if it does not say."""
    found = re.search(r"random stream '(.*?)'", str(err))
    return found[1] if found is not None else "default"
