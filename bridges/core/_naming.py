"""Names of modules: taken once in the frame where a module is made, automatic ones the first that are free."""

from __future__ import annotations

import re

from bridges.core._errors import NamingError
from bridges.core._flat import SEPARATOR
from bridges.core._frame import Frame


def snake_case(name: str) -> str:
    """Returns the name as the field writes module names: `MLP` -> `mlp`, `Conv2D` -> `conv2_d`, `ResNet` -> `res_net`.

    The rule is Haiku's (`haiku._src.utils.camel_to_snake`, 0.0.17).
    """
    name = re.sub(r"((?<=[a-z0-9])[A-Z]|(?!^)[A-Z](?=[a-z]))", r"_\1", name)
    return name.lower().strip("_") or "module"


def taken(frame: Frame, name: str) -> bool:
    key = _relative(frame, name)
    return key in frame.names or (frame.module is not None and key in frame.module._names)


def _relative(frame: Frame, name: str) -> str:
    return SEPARATOR.join((*frame.scopes, name))


def reserve(frame: Frame, name: str) -> None:
    """Takes a name in the frame in which a module is made."""
    key = _relative(frame, name)
    if taken(frame, name) or (frame.module is not None and key in frame.module._children):
        raise NamingError(
            f"The name {name!r} is taken already under {frame.path!r}: two modules or entries would share it. Choose"
            " another name; to share a module, pass the same instance to both places."
        )
    frame.names.add(key)
    if frame.module is not None and frame.module._unnamed is not None:
        frame.module._names.add(key)


def automatic(frame: Frame, base: str) -> str:
    """Returns the first free of `base`, `base_1`, `base_2`, … in the frame, and takes it."""
    base = frame.prefix + base
    name, count = base, 0
    while taken(frame, name):
        count += 1
        name = f"{base}_{count}"
    reserve(frame, name)
    return name
