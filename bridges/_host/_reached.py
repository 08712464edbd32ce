"""Methods and submodules of a hosted part as attributes of the module that runs it."""

from __future__ import annotations

from typing import Any

from bridges._host._host import Host
from bridges.core import Module


class Reached:
    """A method or submodule of a hosted part: called, it calls the module with that method.

    Args:
      owner: The module of the other framework; called with `method=`.
      host: The part.
      path: Dotted path of the method.
    """

    __slots__ = ("_owner", "_host", "_path")

    def __init__(self, owner: Any, host: Host, path: str):
        self._owner, self._host, self._path = owner, host, path

    @property
    def __name__(self) -> str:
        return self._path.rpartition(".")[2]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._owner(*args, method=self._path, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return reached(self._owner, self._host, f"{self._path}.{name}")

    def __getitem__(self, key: int | str) -> Any:
        return reached(self._owner, self._host, f"{self._path}.{key}")

    def __repr__(self) -> str:
        return f"<{self._path} of {self._host!r}>"


def reached(owner: Any, host: Host, path: str) -> Any:
    """Returns what a dotted path of attributes of a part leads to: a `Reached` for what can be called, else the value.

    Raises:
      FieldError, AttributeError: There is no such attribute.
    """
    found = host.reached(path)
    return Reached(owner, host, path) if callable(found) or isinstance(found, (Module, list, tuple)) else found
