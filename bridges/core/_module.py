"""Module: the base class of parts that read and write their entries in the running context.

A module instance holds no arrays. It has a path; its methods run in a frame under that path, and `get` and `put` reach
the entries below it. Where a module has no name of its own, it is named after the attribute of its parent that it is
first assigned to (`self.enc = MLP()` -> `…/enc`), else after its class. Names never depend on anything but the program,
so every process gives the same paths.
"""

from __future__ import annotations

import copyreg
import functools
import inspect
import re
import types
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax

from bridges.core._context import Context, context
from bridges.core._entry import get_entry, put_entry
from bridges.core._errors import BridgeError, FieldError, NamingError
from bridges.core._fields import Field, collect, take, unbound, unknown
from bridges.core._filter import Filter, Located
from bridges.core._flat import SEPARATOR, escape, under
from bridges.core._frame import Frame, check_name, current_frame, enter, pop, push
from bridges.core._jaxpr import tracing
from bridges.core._kind import Kind
from bridges.core._naming import automatic, reserve, snake_case, taken
from bridges.core._state import State


def _scoped(method: Callable[..., Any], prefix: str) -> Callable[..., Any]:
    @functools.wraps(method)
    def wrapper(self: Module, *args: Any, **kwargs: Any) -> Any:
        outer = current_frame()
        running = outer.context if outer is not None else None
        if running is not None and self._unnamed is None:
            running.claim(self)
        again = outer is not None and outer.module is self and outer.prefix == prefix
        overridden = again and getattr(type(self), method.__name__, None) is not wrapper
        # A method called with `super()` and the one that overrides it share one set of names.
        names = outer.names if outer is not None and overridden else None
        token = push(Frame(running, self, (), prefix, names))
        try:
            if not tracing():  # Names are for programs.
                return method(self, *args, **kwargs)
            with jax.named_scope(self._name or self._base_name):
                return method(self, *args, **kwargs)
        except Exception as err:
            if not getattr(err, "_bridges_noted", False):
                err._bridges_noted = True  # type: ignore[attr-defined]
                err.add_note(f"This happened in {type(self).__name__}.{method.__name__} of the module {self.path!r}.")
            raise
        finally:
            pop(token)

    wrapper._scoped = True  # type: ignore[attr-defined]
    return wrapper


class ModuleType(type):
    """Collects the typed hyperparameters, lets every method enter its module's scope, and names new instances."""

    _all_fields: dict[str, Field]

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **kwargs: Any) -> ModuleType:
        cls = super().__new__(mcs, name, bases, namespace, **kwargs)
        root = not any(isinstance(base, ModuleType) for base in bases)
        cls._all_fields = {} if root else collect(cls)
        for key, value in () if root else namespace.items():
            if key in cls._all_fields or (key.startswith("__") and key != "__call__"):
                continue
            prefix = "" if key == "__call__" else f"{key.strip('_')}_"
            if inspect.isfunction(value) and not hasattr(value, "_scoped"):
                setattr(cls, key, _scoped(value, prefix))
            elif isinstance(value, property):
                fget, fset, fdel = (f and _scoped(f, prefix) for f in (value.fget, value.fset, value.fdel))
                setattr(cls, key, property(fget, fset, fdel, value.__doc__))
        return cls

    def __call__(cls, *args: Any, name: str | None = None, **kwargs: Any) -> Any:
        self: Module = cls.__new__(cls)  # type: ignore[call-arg, arg-type, assignment]
        fill = object.__setattr__
        fill(self, "_children", {})
        fill(self, "_names", set())
        fill(self, "_structures", {})
        fill(self, "_path", None)
        fill(self, "_fields", take(cls, cls._all_fields, args, kwargs))
        frame = current_frame()
        root = frame is None or (frame.context is None and frame.module is None)
        fill(self, "_numbered", not root)
        fill(self, "_outside", frame is None or frame.context is None)
        # The place, without the context: a module may outlive the trace it was made in.
        fill(self, "_frame", frame and Frame(None, frame.module, frame.scopes, frame.prefix, frame.names))
        fill(self, "_name", None)
        fill(self, "_base_name", type(self)._auto_name(args, kwargs) if name is None else "")
        if name is not None:
            if self._frame is not None and self._numbered:
                reserve(self._frame, check_name(name))
            fill(self, "_name", check_name(name))
        elif frame is not None and frame.module is not None and frame.module._unnamed is not None:
            frame.module._unnamed.append(self)
        fill(self, "_unnamed", [])
        with enter(Frame(frame.context if frame else None, self, names=self._names)):
            try:
                self.__init__(*args, **kwargs)  # type: ignore[misc]
            except TypeError as err:
                if problem := unbound(cls, args, kwargs):
                    raise FieldError(unknown(cls, cls._all_fields, kwargs, problem)) from err
                raise
            for key, value in vars(self).items():  # What was put into a list or dictionary after that was assigned.
                self._name_modules(key, value)
            for child in self._unnamed or ():  # Those that no attribute has named: in the order they were made.
                child.name  # noqa: B018
        fill(self, "_unnamed", None)
        return self


class _Form:
    """A method for which a module's own one, or that of the layer it wraps, is not given up: `getm()` has them all."""

    def __init__(self, method: Callable[..., Any]):
        self.method = method
        self.__doc__ = method.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, obj: Any, cls: type) -> Any:
        if obj is None:
            return self.method
        own = obj._wrapped(self.name)
        return types.MethodType(self.method, obj) if own is None else own


def _reduced(cls: ModuleType) -> str | tuple[Any, ...]:
    """Returns how a class is pickled: by name, or, where a function made it of something, as that function's call."""
    origin = vars(cls).get("_origin")
    return cls.__qualname__ if origin is None else (origin[0], origin[1:])


copyreg.pickle(ModuleType, _reduced)


class Module(Located, metaclass=ModuleType):
    """Base class of stateful modules.

    Annotated class attributes are hyperparameters: given by keyword, checked, read-only. Everything else is ordinary
    Python: `__init__` may take arguments of its own and set attributes.

    Args:
      name: Accepted by every module: one segment of a path. Without it the module is named after the attribute of its
        parent that it is assigned to, else after its class.

    >>> import bridges as br, jax.numpy as jnp
    >>> class Net(br.Module):
    ...   size: int = 3
    ...   def __call__(self, x):
    ...     return x + self.get('bias', jnp.ones, (self.size,))
    >>> net = Net(size=2)
    >>> state = br.init(net)({}, jnp.zeros(2))
    >>> state
    State({'net/bias': Array([1., 1.], dtype=float32)})
    >>> br.pure(net)(state, jnp.zeros(2))[1]
    Array([1., 1.], dtype=float32)
    """

    _children: dict[str, Module]
    _names: set[str]
    _structures: dict[str, Any]
    _fields: dict[str, Any]
    _frame: Frame | None  # Where it was made, until its path is known; without the context.
    _unnamed: list[Module] | None  # While `__init__` runs: the modules made in it that have no name.
    _numbered: bool
    _outside: bool
    _base_name: str
    _name: str | None
    _path: str | None
    _all_fields: ClassVar[dict[str, Field]]

    @classmethod
    def _auto_name(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        """Returns what an instance made with these arguments is called when nothing else names it."""
        return snake_case(cls.__name__)

    def __setattr__(self, key: str, value: Any) -> None:
        if key in _INTERNAL:
            raise NamingError(f"The attribute {key!r} is every module's own: choose another name for yours.")
        self._name_modules(key, value)
        object.__setattr__(self, key, value)

    def _name_modules(self, key: str, value: Any) -> None:
        for name, child in _modules_in(key, value) if key not in _INTERNAL else ():
            frame = child._frame
            if child._name is None and frame is not None and frame.module is self and not taken(frame, name):
                reserve(frame, name)
                object.__setattr__(child, "_name", name)

    def __repr__(self) -> str:
        fields = "".join(f", {k}={v!r}" for k, v in self._fields.items())
        return f"{type(self).__name__}({self.path!r}{fields})"

    @property
    def name(self) -> str:
        """The last segment of the path."""
        if self._name is None:
            named = automatic(self._frame, self._base_name) if self._numbered and self._frame else self._base_name
            object.__setattr__(self, "_name", named)
        return self._name  # type: ignore[return-value]

    @property
    def path(self) -> str:
        """The unique path of this module: its entries lie below it."""
        if self._path is None:
            parent = self._frame.path if self._frame is not None else ""
            object.__setattr__(self, "_path", f"{parent}{SEPARATOR}{self.name}" if parent else self.name)
            object.__setattr__(self, "_frame", None)
        return self._path  # type: ignore[return-value]

    # State -----------------------------------------------------------------------------------------------------------

    def get(self, name: str, ctor: Any = None, /, *args: Any, kind: Kind | None = None, **kwargs: Any) -> Any:
        """Returns a submodule or a state entry of this module, making it at first use.

        Args:
          name: The name below this module's path.
          ctor: A `Module` class (or `functools.partial` of one): makes a submodule of that name. Any other callable:
            makes the value of a state entry, an array or any pytree of arrays, where creating is allowed. A value that
            is not callable is taken as it is.
          *args: Arguments of `ctor`.
          kind: What the entry is for: a `Variable` subclass or instance; floating arrays are `Param` if not given,
            trees and all else `Variable`.
          **kwargs: Arguments of `ctor`.

        Returns:
          The submodule, or the entry's current value; a tree comes back whole.

        Raises:
          MissingEntryError: There is no such entry and `ctor` was not given.
          CreateError: There is no such entry and none may be created here.
        """
        base = self._base()
        path = f"{base}{SEPARATOR}{name}"
        key = path[len(self.path) + 1 :]
        if key in self._children:
            return self._children[key]
        if is_module_class(ctor):
            with enter(self._inside(base)):
                child = ctor(*args, name=name, **kwargs)
            return self._children.setdefault(key, child)
        return get_entry(
            context(), path, ctor, args, kwargs, kind, self._structures, Module, lambda m: self._adopt(key, m)
        )

    def put(self, name: str | Mapping[str, Any], value: Any = None, /, *, kind: Kind | None = None) -> Any:
        """Writes a state entry, or every entry of a mapping, creating what is not there where that is allowed.

        Args:
          name: A name below this module, or a mapping from full paths or such names to values.
          value: An array or a tree of the structure that the entry has.
          kind: What a new entry is for.

        Returns:
          The value as stored, or the mapping.

        Raises:
          EntryShapeError: An entry has another shape or structure.
          CreateError: An entry does not exist and may not be created here.
          LeakError: A JAX transformation runs that the context does not know of.
        """
        ctx = context()
        if not isinstance(name, str):
            for key, item in name.items():
                path = self._resolve(ctx, key)
                put_entry(ctx, path, item, name.kind(key) if isinstance(name, State) else kind, self._structures)
            return name
        return put_entry(ctx, f"{self._base()}{SEPARATOR}{name}", value, kind, self._structures)

    def putm(self, mapping: Mapping[str, Any], /) -> Mapping[str, Any]:
        """Writes every entry of a mapping from full paths, or names below this module, to values; as `put(mapping)`."""
        return self.put(mapping)

    def getm(self, pattern: str = ".*") -> State:
        """Returns the entries below this module whose name below it matches, by full path.

        Args:
          pattern: A regular expression, matched from the name's beginning as `re.match` does.

        Returns:
          A `State`; changing it changes nothing until it is given to `put`. It also answers to names below the module.
        """
        ctx = context()
        regex = re.compile(pattern)
        found = {name: value for name, value in ctx.under(self.path).items() if regex.match(name)}
        prefix = self.path + SEPARATOR
        kinds = {prefix + name: kind for name in found if (kind := ctx.declared(prefix + name)) is not None}
        new = State({prefix + name: value for name, value in found.items()}, kinds)
        return State._make(new._layout, new._values, prefix)

    def _wrapped(self, name: str) -> Any:
        """Returns what a wrapper gives for this name of the layer it wraps; None if the layer has none, or there is none."""
        return None

    @_Form
    def filter(self, *filters: Filter) -> Any:
        """Returns the entries below this module that match, a state for each filter, by full path; see `State.filter`.

        Changing what it returns changes nothing until it is given to `put`.
        """
        return self.getm().filter(*map(self._near, filters))

    @_Form
    def partition(self, *filters: Filter) -> Any:
        """Returns the entries below this module, all of them, a state for each filter; see `State.partition`."""
        return self.getm().partition(*map(self._near, filters))

    @_Form
    def pop(self, *filters: Filter) -> Any:
        """Removes the entries below this module that match from the state, and returns them, a state for each filter.

        Args:
          *filters: As for `State.filter`; mostly `bridges.Intermediate`.

        Raises:
          FilterError: One is no filter, or there is none.
          PermissionsError: Entries may not be modified here.
        """
        ctx = context()
        popped = self.getm().pop(*map(self._near, filters))
        for state in popped if isinstance(popped, tuple) else (popped,):
            for path in state:
                ctx.remove(path)
        return popped

    def _near(self, given: Filter) -> Filter:
        """Returns a filter, a path as one that a name below this module satisfies too."""
        return (given, f"{self.path}{SEPARATOR}{given}") if isinstance(given, str) else given

    def _base(self) -> str:
        frame = current_frame()
        if frame is not None and frame.module is self and frame.scopes:
            return frame.path
        return self.path

    def _inside(self, base: str) -> Frame:
        frame = current_frame()
        scopes = tuple(base[len(self.path) + 1 :].split(SEPARATOR)) if base != self.path else ()
        names = frame.names if frame is not None and frame.module is self else None
        return Frame(frame.context if frame else None, self, scopes, names=names)

    def _adopt(self, key: str, child: Module) -> Module:
        return self._children.setdefault(key, child)

    def _resolve(self, ctx: Context, key: str) -> str:
        full = f"{self.path}{SEPARATOR}{key}"
        if key in ctx or (full not in ctx and (under(key, self.path) or ctx.has_below(key))):
            return key
        return full


_INTERNAL = frozenset(Module.__annotations__)


def _modules_in(key: str, value: Any) -> list[tuple[str, Module]]:
    """Returns the modules in an attribute's value, in nested lists, tuples and dictionaries too, with their names."""
    if isinstance(value, Module):
        return [(key, value)]
    items = value.items() if type(value) is dict else enumerate(value) if type(value) in (list, tuple) else ()
    return [found for k, item in items for found in _modules_in(f"{key}_{escape(str(k))}", item)]


def is_module_class(ctor: Any) -> bool:
    """Whether calling this makes a module: a `Module` class, or a `functools.partial` of one."""
    while isinstance(ctor, functools.partial):
        ctor = ctor.func
    return isinstance(ctor, type) and issubclass(ctor, Module)


def get(name: str, ctor: Any = None, /, *args: Any, kind: Kind | None = None, **kwargs: Any) -> Any:
    """Returns an entry or submodule of the module whose method runs; below the current scope in a plain function."""
    frame = current_frame()
    ctx = context()
    if frame is not None and frame.module is not None:
        return frame.module.get(name, ctor, *args, kind=kind, **kwargs)
    if is_module_class(ctor):
        raise BridgeError(
            f"bridges.get({name!r}, {ctor!r}) makes a submodule and there is no module around it. Make the module"
            " directly, Net(name=…), outside of the function."
        )
    base = frame.path if frame is not None else ""
    path = f"{base}{SEPARATOR}{name}" if base else name
    return get_entry(ctx, path, ctor, args, kwargs, kind, {}, Module)
