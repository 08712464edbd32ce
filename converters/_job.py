"""Job: one conversion of a file, planned to the last leaf and not begun.

    job = Job.of('params.pkl', 'model.msgpack', dst_model=model, inputs=(x,))
    print(job)              # what is in the source, the plan, what goes along, what the target holds
    job.tree                # the target's native tree, of lazy leaves

Invariant: making a job reads structure only, and creates nothing; every problem that can be known beforehand is raised by
`Job.of`, in this order: the two places, the source's content, the mapping, the optimizer's state, the target's format.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from bridges.core import _flat
from bridges.core._errors import (
    BridgeError,
    MappingError,
    StructureError,
    UnsupportedError,
    describe,
    hint,
    listing,
)
from bridges.core._spec import Spec, abstract
from bridges.core._state import State
from bridges.mapping._mapping import Mapping as Rules
from bridges.mapping._mapping import Part
from bridges.mapping._plan import Plan
from bridges.mapping._project import project
from converters import _native, formats
from converters._atomic import refuse_special
from converters._carried import Move, moved, optimizers, twins
from converters._contents import Contents, contents
from converters._errors import CheckpointError
from converters._frameworks import FRAMEWORKS
from converters._layout import laid_out
from converters._models import Model
from converters._stream import Stream
from converters._structure import mapped
from converters._tracked import plain, tracked
from converters.formats import Checkpoint, Format, LazyLeaf, read_leaf

_WITHOUT_MODEL = (
    "This was planned without the model that the source is of. It tells which modules are stacks, in which order they are"
    " called, and their hyperparameters: name it (--from-model, src_model=)."
)
_NO_TARGET = (
    "Only the format changes: nothing says what the variables are to become. Name the target's model (--into, dst_model=),"
    " or its framework (--to)."
)
_READERS = ("layout", "dtypes", "unlisted")  # texts by which formats tell what they found
_NAMING = ("npz", "safetensors")  # formats whose arrays are named by paths: a flat tree is a nested one there


@dataclasses.dataclass(frozen=True)
class Job:
    """A conversion that is planned.

    Attributes:
      source: The opened source.
      path: Where the target is to be.
      format: The target's format.
      framework: The target's framework; empty where only the format changes.
      contents: What the source holds; None where only the format changes.
      mapping: The mapping; None where the entries stay what they are.
      plan: The plan of the variables; None likewise.
      tree: The target's native tree, of lazy leaves.
      moves: How leaves of the source become leaves of the target; those that are one object stay as they are.
      notes: What a person should know.
    """

    source: Checkpoint
    path: pathlib.Path
    format: Format
    framework: str
    contents: Contents | None
    mapping: Rules | None
    plan: Plan | None
    tree: Any
    moves: tuple[Move, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        src: str | os.PathLike[str],
        dst: str | os.PathLike[str],
        *,
        mapping: Rules | Mapping[str, Any] | str | os.PathLike[str] | None = None,
        src_model: Any = None,
        dst_model: Any = None,
        inputs: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        to: str | None = None,
        framework: str | None = None,
        part: str | None = None,
        src_format: str | None = None,
        format: str | None = None,
        options: Mapping[str, Any] | None = None,
        tx: Any = None,
        overwrite: bool = False,
    ) -> Job:
        """Returns the job; the arguments are those of `converters.convert`."""
        source, path = pathlib.Path(src), pathlib.Path(dst)
        mapping = None if mapping is None else Rules.of(mapping)
        check_places(source, path, overwrite)
        row = formats.target_format(path, format)
        if to is not None and to not in FRAMEWORKS:
            raise UnsupportedError(f"to={to!r} is no framework.{hint(to, FRAMEWORKS)} There are {list(FRAMEWORKS)}.")
        checkpoint = formats.read(source, src_format, **(options or {}))
        checkpoint = dataclasses.replace(checkpoint, tree=tracked(checkpoint.tree))
        given = dict(kwargs or {})
        dst_spec, dst_framework, model = _spec(dst_model, inputs, given)
        src_spec, src_framework, _ = _spec(src_model, inputs, given)
        framework = framework or src_framework
        if to and dst_framework and to != dst_framework:
            raise UnsupportedError(
                f"to={to!r}, and the target's model is of {dst_framework}: leave one of the two out."
            )
        to = to or dst_framework
        if to is None and mapping is None and part is None:
            tree, found, plan = checkpoint.tree, None, None
            notes = () if src_model is None else (_NO_TARGET,)
            job = cls(checkpoint, path, row, "", None, None, None, tree, notes=notes)
        else:
            try:
                found = contents(checkpoint.tree, framework, part, src_spec)
            except CheckpointError:
                if to != "flat" or framework is not None or mapping is not None:
                    raise
                found = contents(checkpoint.tree, "flat", part)  # a path is a path, whatever it is of
            if to is None and mapping is not None:
                raise UnsupportedError(
                    "A mapping does not say of which framework its target is: name the target's model (--into), or the"
                    f" framework (--to {', '.join(FRAMEWORKS)})."
                )
            to = to or found.framework
            rules = rules_for(mapping, found, to, dst_spec)
            if rules is None:
                job = _kept(checkpoint, path, row, found, to)
            else:
                src_spec = source_spec(found, src_spec)
                if dst_spec is None:
                    made = project(rules, src_spec, to)
                    dst_spec = Spec(_native.with_kinds(to, made), to)
                try:
                    plan = rules.plan(src_spec, dst_spec)
                except MappingError as err:
                    if src_model is not None or found.framework == "flat":
                        raise
                    raise MappingError(f"{err}\n{_WITHOUT_MODEL}") from err
                job = _planned(Job(checkpoint, path, row, to, found, rules, plan, None), src_spec, dst_spec, model, tx)
        if problems := row.module().problems(mapped(lambda _, leaf: plain(leaf), job.tree)):
            raise UnsupportedError(f"The format {row.name} cannot hold everything:\n" + listing(problems))
        return job

    @property
    def metadata(self) -> dict[str, str]:
        """Texts of the source that go along where only the format changes; those that a reader made up stay behind."""
        return {} if self.framework else {k: v for k, v in self.source.metadata.items() if k not in _READERS}

    @property
    def nbytes(self) -> int:
        """The size of the target's arrays in bytes."""
        return sum(int(getattr(leaf, "nbytes", 0)) for leaf in jax.tree.leaves(self.tree))

    @property
    def verdict(self) -> str:
        """How exact the conversion is; see `Plan.verdict`."""
        return self.plan.verdict if self.plan is not None else "exact"

    def lines(self) -> Iterator[str]:
        """Yields what a person reads before it is run."""
        yield f"{self.source.path} ({self.source.format}) -> {self.path} ({self.format.name})"
        if self.contents is not None:
            yield str(self.contents)
        if self.plan is not None:
            yield str(self.plan)
        else:
            yield "The entries stay as they are: exact"
        yield from self.notes

    def __str__(self) -> str:
        return "\n".join(self.lines())


def check_places(source: pathlib.Path, path: pathlib.Path, overwrite: bool) -> None:
    """Raises a `CheckpointError` unless a file can be written at `path` without touching the source."""
    if not source.exists():
        formats.detect(source)  # says so
    real, there = source.resolve(), path.parent.resolve() / path.name
    if path.is_symlink() and not path.exists():
        raise CheckpointError(f"{path} is a link that leads nowhere: remove it, or choose another name.")
    if real == path.resolve():
        raise CheckpointError(f"{source} and {path} are the same: a conversion never writes over its source.")
    if real in there.parents:
        raise CheckpointError(f"{path} lies inside the source {source}: choose a place outside of it.")
    if path.resolve() in real.parents:
        raise CheckpointError(f"The source {source} lies inside {path}, which would be replaced: choose another name.")
    if os.path.lexists(path) and not overwrite:
        raise CheckpointError(f"{path} exists. Choose another name, or say that it may be overwritten (--overwrite).")
    if not path.parent.is_dir():
        raise CheckpointError(f"{path} cannot be written: the directory {path.parent} does not exist. Make it first.")
    refuse_special(path)
    if path.is_dir() and not path.is_symlink() and os.listdir(path) and not _is_checkpoint(path):
        raise CheckpointError(
            f"{path} is a directory that holds other things than a checkpoint, and all of it would be lost: choose another"
            " name, or a name inside of it."
        )


def _is_checkpoint(directory: pathlib.Path) -> bool:
    try:
        formats.read(directory)
    except BridgeError:
        return False
    return True


def _spec(model: Any, inputs: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Spec | None, str | None, Model | None]:
    """Returns a model's spec, its framework and the model; a spec is taken as it is."""
    if model is None:
        return None, None, None
    if isinstance(model, Spec):
        return model, model.framework, None
    found = Model.of(model)
    return found.spec(*inputs, **kwargs), found.family, found


def rules_for(mapping: Rules | None, found: Contents, to: str, dst_spec: Spec | None) -> Rules | None:
    """Returns the mapping: the given one, or the conventions; None where the entries stay what they are."""
    from bridges.mapping._conventions import conventions, frameworks

    if mapping is not None:
        # One that only says where modules went needs to know how layers are stored.
        bare = not any(part.layers for part in mapping.parts) and {found.framework, to} <= set(frameworks())
        return mapping | conventions(found.framework, to) if bare else mapping
    if dst_spec is None and to in (found.framework, "flat"):
        return None
    for name in (found.framework, to):
        if name not in frameworks():
            raise UnsupportedError(
                f"There are no conventions between {found.framework} and {to}: give a mapping (--mapping), or say of which"
                " framework the source is (--framework)."
            )
    shipped = conventions(found.framework, to)
    if dst_spec is not None:
        return shipped
    if {found.framework, to} == {"linen", "nnx"}:
        # NNX modules that were ported, or are bridged, have Linen's names and hyperparameters; what is stored otherwise,
        # the rows say. Those between a layer and one with other hyperparameters (`transpose_kernel`) are out of question.
        return Rules.of(modules={"{m:module}": "{m:module}"}) | Rules(tuple(map(_of_equal_layers, shipped.parts)))
    raise UnsupportedError(
        f"From {found.framework} to {to} modules have other names, which only the target's model tells: name it (--into),"
        " or give a mapping (--mapping)."
    )


def _of_equal_layers(part: Part) -> Part:
    """Returns the part without rows that are for layers whose hyperparameters differ between the ends."""
    kept = (row for row in part.layers if all(dict(row.dst_when).get(k, v) == v for k, v in row.src_when))
    return dataclasses.replace(part, layers=tuple(kept))


def source_spec(found: Contents, spec: Spec | None) -> Spec:
    """Returns the source's spec: entries of the file, layers of the model.

    Raises:
      StructureError: The file's entries are not the model's.
    """
    have = {path: abstract(leaf) for path, leaf in found.variables.items()}
    if spec is None:
        return Spec(State(have, found.variables.declared), found.framework)
    random = set(_native.random_paths(spec))
    missing = [p for p in spec.entries if p not in have and p not in random]
    extra = [p for p in have if p not in spec.entries]
    lines = [f"the file lacks {p!r} {describe(spec.entries[p])}.{hint(p, extra)}" for p in missing]
    lines += [f"the model has no {p!r} {describe(have[p])}" for p in extra]
    for path in (p for p in spec.entries if p in have and tuple(have[p].shape) != tuple(spec.entries[p].shape)):
        lines.append(f"{path!r} is {describe(have[path])} in the file and {describe(spec.entries[path])} in the model")
    if lines:
        raise StructureError(
            "The file does not hold the variables of the model that it is said to be of:\n"
            + listing(lines)
            + "\nGive the model with the sizes it was trained with, or another part of the file (--part)."
        )
    kinds = {p: kind for p, kind in spec.entries.declared.items() if p in have}
    # All that the model knows stays: which modules are stacks and in which order they are called decide what is placed.
    return dataclasses.replace(spec, entries=State(have, kinds))


def _kept(checkpoint: Checkpoint, path: pathlib.Path, row: Format, found: Contents, to: str) -> Job:
    """Returns the job that changes no entry: the same tree in another form."""
    values = row.name == "orbax"
    if to != "flat" and found.form != "flat" and (to != "nnx" or found.values == values):
        return Job(checkpoint, path, row, to, found, None, None, found.tree)
    native = _native.native(to, found.variables)
    tree = laid_out(to, native, found, found.optimizers, found.twins, found.rest, values)
    return Job(checkpoint, path, row, to, found, None, None, _shaped(tree, to, row))


def _shaped(tree: Any, to: str, row: Format) -> Any:
    return _flat.nest(tree) if to == "flat" and row.name in _NAMING else tree


def _planned(job: Job, src_spec: Spec, spec: Spec, model: Model | None, tx: Any) -> Job:
    """Returns the job with the target's tree, and how its leaves come about."""
    found, plan, to = job.contents, job.plan, job.framework
    assert found is not None and plan is not None
    stream, notes = Stream(), []
    moves, made = moved(stream, plan.items, found.variables)
    if plan.dst_random:
        if job.format.name == "orbax" and model is not None and to == "nnx":
            made.update(own := model.random_state(plan.dst_random))
            notes.append(f"Random state is the target model's own: {', '.join(own)}")
        else:
            notes.append(f"Random state is not written, the target keeps its own: {', '.join(plan.dst_random)}")
    if plan.src_random:
        notes.append(f"The source's random state is not converted: {', '.join(plan.src_random)}")
    kinds = {p: kind for p, kind in spec.entries.declared.items() if p in made}
    native = _native.native(to, State(made, kinds), spec)
    rest = dict(found.rest)
    more, others = twins(stream, plan, found, to, spec, src_spec) if found.twins else ([], {})
    moves += more
    tuples = job.format.name == "pickle"
    more, states, said = optimizers(stream, plan, found, to, spec, tx, tuples) if found.optimizers else ([], {}, [])
    moves += more
    notes += dict.fromkeys(said)
    if to == "nnx" and states and "step" not in rest:
        step = _step(states)
        rest.update({"step": step} if step is not None else {})
        notes.append(
            "nnx.Optimizer keeps a step, which the source lacks; "
            + ("it is the count of the optimizer's state" if step is not None else "set it after loading")
        )
    values = job.format.name == "orbax"
    tree = _shaped(laid_out(to, native, found, states, others, rest, values), to, job.format)
    return dataclasses.replace(job, tree=tree, moves=tuple(moves), notes=tuple(notes))


def _step(states: Mapping[Any, Any]) -> Any:
    """Returns how many updates an optimizer has made, as `nnx.Optimizer` keeps it, where its state counts them once."""
    counts = {path: leaf for path, leaf in _flat.flatten(dict(states)).items() if path.rpartition("/")[2] == "count"}
    if len(counts) != 1:
        return None
    leaf = next(iter(counts.values()))
    return LazyLeaf((), np.uint32, lambda: np.asarray(read_leaf(leaf)).astype(np.uint32))
