"""Typed hyperparameters: annotations of a module class, given by keyword, checked against their type, read-only."""

from __future__ import annotations

import collections.abc
import inspect
import types
import typing
from typing import Any

import numpy as np

from bridges.core._errors import FieldError, NamingError, hint

REQUIRED = object()

_API = ("name", "path", "get", "put", "getm", "putm")


class Field:
    """The descriptor that stands for one hyperparameter of a class.

    Attributes:
      name: The hyperparameter's name.
      default: Its default, `REQUIRED` if it has none.
      annotation: The annotation as written, a string under `from __future__ import annotations`.
      owner: The class that annotates it, in whose module a string annotation is looked up.
    """

    def __init__(self, name: str, default: Any, annotation: Any, owner: type):
        self.name, self.default, self.annotation, self.owner = name, default, annotation, owner

    def __get__(self, obj: Any, cls: type) -> Any:
        if obj is not None:
            return obj._fields[self.name]
        return self if self.default is REQUIRED else self.default

    def __set__(self, obj: Any, value: Any) -> None:
        raise FieldError(
            f"{type(obj).__name__}.{self.name} is a hyperparameter and read-only: pass it when the module is made,"
            f" {type(obj).__name__}({self.name}={value!r})."
        )

    def hint(self) -> Any:
        """Returns the annotation as a type; `Any` for a string that cannot be resolved."""
        if isinstance(self.annotation, str):
            scope = {**vars(inspect.getmodule(self.owner) or types), **vars(typing)}
            module = inspect.getmodule(self.owner)
            try:
                self.annotation = eval(self.annotation, {**scope, **(vars(module) if module else {})})
            except Exception:  # A name that only type checkers see: nothing to check against.
                self.annotation = Any
        return self.annotation


def collect(cls: type) -> dict[str, Field]:
    """Returns the hyperparameters of a class by name, those of its bases first, and puts their descriptors on it."""
    fields: dict[str, Field] = {}
    for base in reversed(cls.__mro__[1:]):
        fields.update(vars(base).get("_own_fields", {}))
    if taken := [name for name in _API if name in vars(cls)]:
        raise NamingError(
            f"{cls.__name__} defines {taken[0]!r}, which is every module's own: what bridges.Module does under that name"
            " would be gone. Choose another name."
        )
    own: dict[str, Field] = {}
    for name, annotation in inspect.get_annotations(cls).items():
        if "ClassVar" in (annotation if isinstance(annotation, str) else repr(annotation)):
            continue
        if name in _API:
            raise FieldError(f"{cls.__name__}: {name!r} is every module's own and cannot be a hyperparameter.")
        own[name] = Field(name, vars(cls).get(name, REQUIRED), annotation, cls)
    for name, value in list(vars(cls).items()):
        if name in fields and name not in own and not isinstance(value, Field):
            own[name] = Field(name, value, fields[name].annotation, fields[name].owner)
    for name, field in own.items():
        setattr(cls, name, field)
    cls._own_fields = own  # type: ignore[attr-defined]
    return {**fields, **own}


def take(cls: type, fields: dict[str, Field], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Removes the hyperparameters from `kwargs` and returns their checked values, defaults filled in.

    Raises:
      FieldError: One is missing or has the wrong type.
    """
    given = {name: kwargs.pop(name) for name in fields if name in kwargs}
    values = {}
    for name, field in fields.items():
        value = given.get(name, field.default)
        if value is REQUIRED:
            if problem := unbound(cls, args, kwargs):
                raise FieldError(unknown(cls, fields, kwargs, problem))
            raise FieldError(f"{cls.__name__} needs the hyperparameter {name!r}: {cls.__name__}({name}=…).")
        if value is not field.default and not matches(value, field.hint()):
            wanted = getattr(field.hint(), "__name__", None) or str(field.hint())
            raise FieldError(
                f"{cls.__name__}.{name} must be of type {wanted}; got {type(value).__name__} {value!r}. Pass a value of"
                " that type, or change the annotation."
            )
        values[name] = value
    return values


def _signature(cls: type) -> inspect.Signature:
    init = cls.__init__  # type: ignore[misc]
    own = inspect.signature(init) if init is not object.__init__ else inspect.signature(lambda self: None)
    return own.replace(parameters=list(own.parameters.values())[1:])


def unbound(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Returns why `__init__` does not take these arguments, an empty string if it does."""
    try:
        _signature(cls).bind(*args, **kwargs)
    except TypeError as err:
        return str(err)
    return ""


def unknown(cls: type, fields: dict[str, Field], kwargs: dict[str, Any], problem: str) -> str:
    """Returns the text for arguments that neither the hyperparameters nor `__init__` take."""
    accepted = list(_signature(cls).parameters)
    return (
        f"{cls.__name__} takes no such arguments: {problem}. Hyperparameters are given by keyword."
        + "".join(hint(name, [*fields, *accepted]) for name in sorted(kwargs) if name not in accepted)
        + f" Hyperparameters: {', '.join(fields) or 'none'}. Arguments of __init__: {', '.join(accepted) or 'none'}."
    )


def matches(value: Any, wanted: Any) -> bool:
    """Whether a value is of an annotated type, as far as the annotation can be checked at run time.

    An int passes for a float and both for a complex (PEP 484); elements of containers are checked one level deep.

    >>> matches(3, float), matches('3', int | None), matches([1, 'a'], list[int]), matches(True, int)
    (True, False, False, True)
    """
    if wanted is Any or wanted is None:
        return wanted is Any or value is None
    if isinstance(wanted, typing.TypeVar):
        return True
    origin, args = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        return any(matches(value, arg) for arg in args)
    if origin is typing.Literal:
        return value in args
    if origin is typing.Annotated:
        return matches(value, args[0])
    if origin is tuple and isinstance(value, tuple):
        if len(args) == 2 and args[1] is ...:
            return all(matches(v, args[0]) for v in value)
        return len(args) == len(value) and all(map(matches, value, args))
    if origin in (list, set, frozenset, collections.abc.Sequence) and isinstance(value, origin) and args:
        return isinstance(value, str) or all(matches(v, args[0]) for v in value)
    if origin is type:
        return isinstance(value, type)
    if origin is not None:
        wanted = origin
    if wanted is float:
        return isinstance(value, (float, int, np.floating, np.integer)) and not isinstance(value, bool)
    if wanted is complex:
        return isinstance(value, (complex, float, int, np.number)) and not isinstance(value, bool)
    if wanted is int:
        return isinstance(value, (int, np.integer))
    if wanted is bool:
        return isinstance(value, (bool, np.bool_))
    try:
        return isinstance(value, wanted)
    except TypeError:
        return True
