"""ToNNX: a Haiku, Linen, NNX or core part as a real NNX module.

The entries of the part are NNX Variables of their kinds, in a namespace of their own, `model.variables`. A call runs the
part in a context of these entries and puts back what it modifies, so that everything NNX does with Variables (split,
merge, transforms, optimizers, checkpoints) works, and everything the core checks (missing, misshapen and unknown
entries) is checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bridges._host._drawing import may_draw
from bridges._host._fit import check_fit, misfit
from bridges._host._host import Host
from bridges._host._training import settings
from bridges._nnx._growing import Growing, collections_named
from bridges._nnx._kinds import kind_of, made
from bridges._nnx._lean import Lean
from bridges._nnx._leaves import collection_of
from bridges._nnx._maker import as_rngs
from bridges._nnx._namespace import Namespace, place, remove, variables_in
from bridges._nnx._streams import NextKeys
from bridges.core import BatchStat, Module, Param, State
from bridges.core._context import context
from bridges.core._errors import ContextError, CreateError, MissingEntryError, SeedError, describe, listing
from bridges.core._frame import Frame, enter
from bridges.core._kind import Kind, is_transient, kind_type
from bridges.core._pure import init
from bridges.core._spec import abstract


class ToNNX(Lean):
    """A part of any framework as an NNX module.

    `lazy_init(*inputs)` makes the Variables. They stand at `model.variables['<collection>']['<native>']['<path>']`: for
    Haiku under `params` and `state`, for Linen and NNX under the collections' names, for a `bridges.Module` under its own
    path. Types follow the kinds: `nnx.Param`, `nnx.BatchStat`, `nnx.Cache`, `nnx.Intermediate`; a collection of another
    name has the type that `nnx.variable_type_from_name` gives. Names in `variables` and the attributes of this class
    never meet.

    Initial values are those of the part's own initialisation with the first keys of the streams: with
    `key = nnx.Rngs(0).fork()()`, `ToNNX(part, rngs=nnx.Rngs(0)).lazy_init(x)` has the values of `part.init(key, x)`, as
    has `flax.nnx.bridge.ToNNX`; with several streams those of `part.init({'params': …, 'dropout': …}, x)`, where each is
    `rngs.fork()[name]()`. An integer or key for `rngs` is not forked: `key = nnx.Rngs(0)()`.

    A call reads the Variables, runs the part, and sets those that the part modified: no `mutable` is needed. An NNX part
    may make Variables in any call, as everywhere in NNX (`init_cache`); others make them in `lazy_init`. Where a caller
    passes `mutable` to a Linen part it decides, and a collection that it names and that is not there yet is made, as a
    cache is in Linen. What is sown is held in `nnx.Intermediate` Variables of one shape, anew at each call. `train()` and
    `eval()` (and `set_attributes`, `nnx.view`) decide about `is_training`, `train`, `training`, `deterministic` or
    `use_running_average`, whichever the call takes, unless it is passed.

    Args:
      part: A Haiku function, an `hk.Module` class or what Haiku's transforms gave; a Linen module or class; an NNX class;
        a `bridges.Module`, or a class of such. `functools.partial` of these classes. Models made of equal parts have one
        tree structure; instances of `bridges.Module` are equal to themselves only, a class with its arguments to others.
      *args: Arguments of a class.
      rngs: Random streams: `nnx.Rngs`, which are forked; an integer, a key, or a dictionary of these by stream. A stream
        advances when a call draws from it. Where no call of the part draws, as far as `lazy_init` can see by calls with
        its flags up and down, they are not kept, as a native layer keeps none.
      **kwargs: Arguments of a class.

    Attributes:
      variables: The Variables, by name; for NNX and JAX nested dictionaries.
      rngs: The random streams, or None. Another `nnx.Rngs` may be assigned.
      part: What is wrapped.
      deterministic, use_running_average: What `train()` and `eval()` set; None at first, and nothing is passed.

    Methods of the part are attributes, `model.encode(x)`; where a name is one of NNX's own, `model(x, method='train')`.

    Raises:
      UnsupportedError: The part cannot be hosted.
      FieldError: There were arguments, and the part is no class.

    >>> import bridges as br, haiku as hk, jax
    >>> model = br.ToNNX(lambda x: hk.nets.MLP([4, 2])(x), rngs=nnx.Rngs(0)).lazy_init(jnp.ones((1, 3)))
    >>> model(jnp.ones((1, 3))).shape
    (1, 2)
    >>> model.variables['params']['mlp']['~']['linear_0']['w'].shape
    (3, 4)
    >>> len(jax.tree.leaves(nnx.state(model, nnx.Param)))
    4
    """

    _pytree__nodes: Any = {
        "variables": True,
        "rngs": True,
        "host": False,
        "deterministic": False,
        "use_running_average": False,
    }
    rngs: Any = None

    def __init__(self, part: Any, /, *args: Any, rngs: Any = None, **kwargs: Any):
        self.host = Host(part, args, kwargs, root="variables", bridge="ToNNX")
        self.variables = {}
        self.rngs = rngs.fork() if isinstance(rngs, nnx.Rngs) else None if rngs is None else as_rngs(rngs)
        self.deterministic: bool | None = None
        self.use_running_average: bool | None = None

    @property
    def part(self) -> Any:
        """What is wrapped."""
        return self.host.part

    @property
    def variables(self) -> Namespace:
        """The Variables, by name; they are kept in nested dictionaries."""
        return Namespace(vars(self)["variables"])

    @variables.setter
    def variables(self, tree: Mapping[str, Any]) -> None:
        vars(self)["variables"] = tree.tree if isinstance(tree, Namespace) else tree

    def lazy_init(self, *args: Any, method: Any = None, **kwargs: Any) -> ToNNX:
        """Returns this module, with the Variables that a call needs and that were not there.

        Those that are there stay as they are. Nothing of the model's computation runs, and nothing is drawn, where
        nothing is missing; an input of which only the shape matters may be a `jax.ShapeDtypeStruct`.

        Args:
          *args: The call's arguments.
          method: The method, as for a call.
          **kwargs: The call's arguments.

        Raises:
          SeedError: Random numbers are needed, and there are no `rngs`.
          EntryShapeError, StructureError: What is there does not fit.
        """
        self._check()
        state = self._entries()
        streams = NextKeys.begun(self._streams(method, kwargs))

        def call(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            self.host.call(method, args, kwargs)
            running = context()
            for path, value in running.created.items():
                if is_transient(running.declared(path)):  # Blank until a call records it, so that nothing is computed.
                    running.created[path] = jnp.zeros(value.shape, value.dtype)

        call.__self__ = self.host.module  # type: ignore[attr-defined]  # The whole model, for the initial values.
        kwargs |= settings(self.host, method, args, kwargs, self._modes())
        new: State | None = None
        if state or streams is None:
            try:
                new = init(call)(state, args, kwargs, flags=self._flags())
            except SeedError as err:
                if streams is None:
                    _noted(err)
                    raise
        if new is None:
            assert streams is not None
            new = init(call)(state, args, kwargs, seed=streams.seed(), flags=self._flags())
            streams.advance_all()
        for path in [path for path in new if path not in state]:
            self._place(path, new[path], new.kind(path))
        self._learn(new)
        if streams is not None and method is None and not may_draw(self.host, self._entries(), args, kwargs):
            self.rngs = None
        return self

    def __call__(self, *args: Any, method: Any = None, **kwargs: Any) -> Any:
        """Returns the output of the part; what it modifies is set in the Variables.

        Args:
          *args: The arguments of the call.
          method: Which method: a name, or what the part's wrapper takes; `__call__` if not given.
          **kwargs: The arguments of the call. `rngs`, where it is none of the part's own, stands in for the module's.

        Raises:
          MissingEntryError: A Variable is missing; all that are are listed. Nothing is ever made up.
          EntryShapeError: A Variable has another shape than the part gives it.
          StructureError: There are Variables that the part has no use for.
          SeedError: The part draws, and there is no such stream.
          FieldError: There is no such method.
        """
        if _initialising(self):  # `nnx.bridge.lazy_init` of a model that this is a part of.
            self.lazy_init(*args, method=method, **kwargs)
        self._check()
        rngs = self._streams(method, kwargs)
        kwargs |= settings(self.host, method, args, kwargs, self._modes())
        if self.host.core and not self.host.known:  # Filled without `lazy_init`.
            expected = check_fit(
                self.host, self._entries(), lambda: self.host.call(method, args, kwargs), self._flags()
            )
            if expected is not None:
                self._learn(expected)
        return self._run(lambda: self.host.call(method, args, kwargs), rngs, kwargs.get("mutable"))

    def set_view(self, deterministic: bool | None = None, use_running_average: bool | None = None) -> None:
        """Sets what `nnx.view(model, …)` is to change.

        Args:
          deterministic: What the argument of that name is, and the contrary of `train` and `is_training`.
          use_running_average: What the argument of that name is.
        """
        if deterministic is not None:
            self.deterministic = deterministic
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def __getattr__(self, name: str) -> Any:
        # Reached only for what the module itself does not have, so that no layer's name can hide one of NNX's.
        host = vars(self).get("host")
        if host is None or name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return _reached(self, name)

    def __nnx_repr__(self) -> Iterator[Any]:
        for item in super().__nnx_repr__():
            if getattr(item, "key", None) == "variables":
                item.value = nnx.State(item.value)  # A name a line, as NNX shows its own.
            yield item

    # The part in a context of the Variables --------------------------------------------------------------------------

    def _entries(self) -> State:
        entries, kinds = {}, {}
        for path, variable in variables_in(vars(self)["variables"]).items():
            inner = self.host.inner(path)
            entries[inner], kinds[inner] = variable.get_value(), kind_of(variable)
        return State(entries, kinds)

    def _streams(self, method: Any, kwargs: dict[str, Any]) -> nnx.Rngs | None:
        """Returns the streams of a call: its own `rngs`, taken out of the arguments, unless that is one of the part's."""
        if "rngs" not in kwargs or self.host.framework == "flax.nnx":
            return self.rngs
        signature = self.host.signature(method)
        if signature is None or any(p.name == "rngs" or p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
            return self.rngs
        rngs = kwargs.pop("rngs")
        if rngs is None:
            return self.rngs
        return rngs if isinstance(rngs, nnx.Rngs) else as_rngs(rngs)  # `as_rngs` copies.

    def _run(self, fn: Any, rngs: nnx.Rngs | None, mutable: Any = None) -> Any:
        state = self._entries()
        if blank := [path for path, value in state.items() if isinstance(value, jax.ShapeDtypeStruct)]:
            raise MissingEntryError(
                f"These variables of {self.host!r} have shapes and no values, as nnx.eval_shape makes them:\n"
                + listing(f"{self.host.outer(path)!r} ({describe(state[path])})" for path in blank)
                + "\nLoad them: nnx.update(model, bridges.nnx_adapter.restore(tree, model))."
            )
        streams = NextKeys.begun(rngs)
        new = []
        if mutable is not None and self.host.framework == "flax.linen":
            new = [self.host.inner(name) for name in collections_named(mutable, vars(self)["variables"])]
        elif self.host.framework == "flax.nnx":
            new = [""]  # Any call of an NNX module may make Variables (`init_cache`).
        ctx = Growing(state, new, streams=streams, flags=self._flags(), root=self.host.module)
        try:
            with enter(Frame(ctx, None)):
                out = fn()
        except SeedError as err:
            if streams is None:
                _noted(err)
            raise
        except CreateError as err:
            err.add_note(
                "This happened in ToNNX, where lazy_init with the same method and arguments makes what a call creates:"
                " model.lazy_init(*args, method=…)."
            )
            raise
        for path in ctx.modified:
            if path in state and ctx.entries[path] is not state[path]:
                self.variables[self.host.outer(path)].set_value(ctx.entries[path])
        for path in ctx.created:
            kind = ctx.kind(path)
            assert kind is not None
            self._place(path, ctx.entries[path], kind)
        for path in ctx.removed:
            self._check_valid_context(lambda: f"Cannot remove entries of {self.host!r} at another trace level")
            remove(vars(self)["variables"], self.host.outer(path))
        if streams is not None:
            streams.advance()
        return out

    def _place(self, path: str, value: Any, kind: Kind) -> None:
        self._check_valid_context(lambda: f"Cannot make {path!r} of {self.host!r} at another trace level")
        place(vars(self)["variables"], self.host.outer(path), made(value, kind, self._types()))

    def _types(self) -> dict[str, type]:
        """The Variable types that an NNX part uses itself, by collection; empty for all others."""
        if self.host.framework != "flax.nnx":
            return {}
        leaves = self.host.module._memory.base()[0].leaves
        return {collection_of(leaf.type): leaf.type for leaf in leaves if leaf.type is not None}

    def _modes(self) -> dict[str, bool | None]:
        return {"deterministic": self.deterministic, "use_running_average": self.use_running_average}

    def _flags(self) -> dict[str, bool]:
        flags = {name: value for name, value in self._modes().items() if value is not None}
        return {**flags, "train": not next(iter(flags.values()))} if flags else {}

    # What a core part was seen to need -------------------------------------------------------------------------------

    def _learn(self, state: State) -> None:
        if self.host.core:
            lasting = {p: abstract(v) for p, v in state.items() if not is_transient(state.kind(p))}
            self.host.known = {**self.host.known, **lasting}

    def _check(self) -> None:
        """Compares the Variables of a core part with those that its calls have made; wrappers check themselves."""
        known = self.host.known
        if not known:
            return
        found = variables_in(vars(self)["variables"])
        missing = {p: want for p, want in known.items() if p not in found}
        unknown = [p for p, v in found.items() if p not in known and not is_transient(kind_of(v))]
        wrong = {
            p: (v.get_value(), known[p])
            for p, v in found.items()
            if p in known and _fixed(v) and tuple(v.get_value().shape) != known[p].shape
        }
        if missing or wrong or unknown:
            what = f"The variables of this {self.host!r} are not those that it was initialised with"
            raise misfit(what, missing, wrong, unknown)


def _fixed(variable: nnx.Variable) -> bool:
    return issubclass(kind_type(kind_of(variable)), (Param, BatchStat))


def _noted(err: SeedError) -> None:
    err.add_note(
        "This module has no random streams: make it with ToNNX(part, rngs=nnx.Rngs(0)). lazy_init keeps them where it sees"
        " that a call may draw; where it could not see it, give the module new ones: model.rngs = nnx.Rngs(0)."
    )


def _initialising(module: nnx.Module) -> bool:
    """Whether `nnx.bridge.lazy_init` runs; NNX says so nowhere else (flax 0.12)."""
    state = vars(module).get("_pytree__state")
    return bool(getattr(state, "initializing", False))


class Reached:
    """A method or submodule of a wrapped part: called, it calls the module with that method.

    Args:
      model: The NNX module.
      path: Dotted path of the method.
    """

    __slots__ = ("__self__", "_path")

    def __init__(self, model: ToNNX, path: str):
        self.__self__, self._path = model, path

    @property
    def __name__(self) -> str:
        return self._path.rpartition(".")[2]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__self__(*args, method=self._path, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return _reached(self.__self__, f"{self._path}.{name}")

    def __getitem__(self, key: int | str) -> Any:
        return _reached(self.__self__, f"{self._path}.{key}")

    def __repr__(self) -> str:
        return f"<{self._path} of {self.__self__.host!r}>"


def _reached(model: ToNNX, path: str) -> Any:
    try:
        found = model.host.reached(path)
    except ContextError:  # A property that runs the part.
        return model._run(lambda: model.host.reached(path), model.rngs)
    return Reached(model, path) if callable(found) or isinstance(found, (Module, list, tuple)) else found
