"""Namespace: nested names with NNX Variables at their ends, and nothing else.

It has no public attribute of its own, so that no name of a wrapped layer (`train`, `items`, `sow`, `~`) can hide one, and
it is no `nnx.Module`, so that `set_attributes` and its like do not reach into it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flax import nnx

from bridges._nnx._lean import OWN, Lean
from bridges.core._errors import CollisionError, MissingEntryError, hint
from bridges.core._flat import SEPARATOR


class Namespace(Lean):
    """A tree of Variables by name: `variables['params']['mlp']['~']['linear_0']['w']`.

    `variables['params/mlp/~/linear_0/w']` is the same. Segments are as they stand in paths of a `State`: `/` and `%` in a
    native name are percent-escaped. The few names that Python or NNX need themselves (`__init__`) have a `%` behind them
    among the attributes, as `nnx.state` shows them.
    """

    def __getitem__(self, path: str) -> Any:
        node: Any = self
        for name in path.split(SEPARATOR):
            try:
                node = vars(node)[_attribute(name)] if isinstance(node, Namespace) else _absent(path, self)
            except KeyError:
                _absent(path, self)
        return node

    def __contains__(self, path: str) -> bool:
        try:
            self[path]
        except MissingEntryError:
            return False
        return True

    def __iter__(self) -> Iterator[str]:
        return (_name(key) for key in vars(self) if not key.startswith(OWN))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def variables_in(space: Namespace, prefix: str = "") -> dict[str, nnx.Variable]:
    """Returns the Variables of a namespace by path, sorted by name."""
    found: dict[str, nnx.Variable] = {}
    for key, value in vars(space).items():
        if key.startswith(OWN):
            continue
        path = prefix + _name(key)
        if isinstance(value, Namespace):
            found.update(variables_in(value, path + SEPARATOR))
        else:
            found[path] = value
    return found


def place(space: Namespace, path: str, variable: nnx.Variable) -> None:
    """Puts a new Variable at a path of a namespace.

    Raises:
      CollisionError: There is one above it, or names below it.
    """
    *parents, last = map(_attribute, path.split(SEPARATOR))
    node = space
    for name in parents:
        if name not in vars(node):
            setattr(node, name, Namespace())
        node = vars(node)[name]
        if not isinstance(node, Namespace):
            raise CollisionError(f"The entry {path!r} would lie below {name!r}, which is a Variable: rename one.")
    if last in vars(node):
        raise CollisionError(f"There are names below {path!r}, which would be a Variable: rename one of the two.")
    setattr(node, last, variable)


def _absent(path: str, space: Namespace) -> Any:
    known = variables_in(space)
    raise MissingEntryError(f"There is no Variable {path!r} among {len(known)}.{hint(path, known)}")


def _attribute(name: str) -> str:
    """Returns the attribute for a name; a trailing `%` can be in no name, where it is escaped."""
    return name + "%" if hasattr(Namespace, name) or name.startswith(OWN) or name == "set_view" else name


def _name(attribute: str) -> str:
    return attribute[:-1] if len(attribute) > 1 and attribute.endswith("%") else attribute
