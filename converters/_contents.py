"""Contents: what the native tree of a checkpoint holds, and of which framework it is.

A tree is *bare* variables (Haiku's parameters, Linen's collections, an NNX pure dictionary), a tuple of them with an
optimizer's state (`(params, state, opt_state)`), or has them in fields (`TrainState`, any NamedTuple, a dictionary with a
key `params`); or it is flat, path -> array. The framework is found by evidence in the tree, which is kept in words. Where
the evidence speaks for none, or for several, the error says so and how to decide.

Invariant: every leaf of the tree is in exactly one of `variables`, `optimizers`, `twins` and `rest`; no array is read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from bridges.core import _flat
from bridges.core._errors import hint
from bridges.core._spec import Spec
from bridges.core._state import State
from converters import _native
from converters._errors import CheckpointError
from converters._evidence import COLLECTIONS, evidence_of
from converters._frameworks import FRAMEWORKS
from converters.formats import LazyLeaf

# What a field holds, by its name in public training code.
_ROLES: dict[str, str] = {
    "params": "params",
    "parameters": "params",
    **dict.fromkeys(
        ("state", "net_state", "network_state", "model_state", "haiku_state", "hk_state", "bn_state"), "state"
    ),
    **dict.fromkeys(("opt_state", "optimizer_state", "optim_state", "opt", "optimizer"), "optimizer"),
    **dict.fromkeys(("model", "variables"), "variables"),
    **dict.fromkeys(("ema_params", "avg_params", "target_params", "polyak_params", "params_ema", "ema"), "twin"),
}
_WRAPPERS = ("default", "state", "train_state", "checkpoint", "items")  # a single key around the whole


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a checkpoint holds.

    Attributes:
      tree: The whole native tree.
      framework: `'haiku'`, `'linen'`, `'nnx'` or `'flat'`.
      why: What speaks for it, in words.
      form: `'bare'`, `'tuple'`, `'fields'` or `'flat'`.
      fields: Pairs of a key in the tree and the role of what is there: `params`, `state`, `variables`, `collection`,
        `optimizer`, `twin` (parameters once more, such as a running average) or `rest`. None for bare and flat trees.
      variables: The entries, path -> leaf, with kinds.
      params: The native parameters, as the optimizer knows them.
      optimizers: Native optax states by field.
      twins: Native parameter trees by field.
      rest: What is passed on as it is (a step, a random key), by field.
      values: Whether each leaf of an NNX tree lies in a dictionary of its own, `{'value': leaf}`, as Orbax saves
        Variables.
    """

    tree: Any
    framework: str
    why: str
    form: str
    fields: tuple[tuple[Any, str], ...]
    variables: State
    params: Any
    optimizers: Mapping[Any, Any]
    twins: Mapping[Any, Any]
    rest: Mapping[Any, Any]
    values: bool = False

    def __str__(self) -> str:
        parts = [f"{len(self.variables)} variables"]
        for what, found in (("the state of an optimizer", self.optimizers), ("more parameters", self.twins)):
            parts += [f"{what} ({', '.join(map(str, found))})"] if found else []
        parts += [f"also {', '.join(map(str, self.rest))}"] if self.rest else []
        return f"{FRAMEWORKS[self.framework]}: {', '.join(parts)} ({self.why})"


def contents(tree: Any, framework: str | None = None, part: str | None = None, spec: Spec | None = None) -> Contents:
    """Returns what a native tree holds.

    Args:
      tree: As a format reads it; leaves may be lazy.
      framework: Of which framework it is, where the tree does not say.
      part: The path of the variables in the tree (`'0/params'`), where it is not found; all else is then left aside.
      spec: The spec of the model that it is of: it decides the framework, and which NNX Variables the arrays belong to.

    Raises:
      CheckpointError: It holds no variables that are known here, or could be of several frameworks.
    """
    if framework is None and spec is not None and spec.framework != "flat":
        framework = spec.framework
    if framework is not None and framework not in FRAMEWORKS:
        raise CheckpointError(
            f"{framework!r} is no framework.{hint(framework, FRAMEWORKS)} There are {list(FRAMEWORKS)}."
        )
    if part is not None:
        tree = _part(tree, part)
    while isinstance(tree, Mapping) and len(tree) == 1 and next(iter(tree)) in _WRAPPERS:
        inner = next(iter(tree.values()))
        if not _is_container(inner) or not any(role != "rest" for _, role, _ in _fields(inner) or ()):
            break
        tree = inner
    if _is_flat(tree) and (framework not in ("linen", "nnx") or any("/" in key for key in tree)):
        return _flat_contents(tree, framework)
    if framework in (None, "haiku") and isinstance(tree, Mapping) and isinstance(tree.get("params"), Mapping):
        # Haiku's modules taken apart at their slashes, as formats that name arrays by paths give them back.
        paths = _flat.flatten(tree)
        if any(path.count("/") != 2 for path in paths if path.startswith("params/")):
            flat = _flat_contents(paths, framework)
            if flat.framework in ("haiku", framework):
                return dataclasses.replace(flat, tree=tree)
    if framework == "flat":
        return dataclasses.replace(_flat_contents(_flat.flatten(tree), framework), tree=tree)
    fields = _fields(tree)
    if fields is None:
        fields = [(None, "variables", tree)]
    return _sorted(tree, fields, framework, spec)


def _is_container(node: Any) -> bool:
    return isinstance(node, (Mapping, list, tuple))


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (LazyLeaf, np.ndarray, jax.Array))


def _part(tree: Any, path: str) -> Any:
    node = tree
    for n, name in enumerate(segments := _flat.split(path)):
        below = {str(key): child for key, child in _children(node)}
        if name not in below:
            where = _flat.join(segments[:n]) or "the top"
            raise CheckpointError(f"There is no part {path!r}: {where} holds {sorted(below)}.{hint(name, below)}")
        node = below[name]
    return node


def _children(node: Any) -> list[tuple[Any, Any]]:
    """Returns the keys and children of a container, one level deep."""
    if isinstance(node, Mapping):
        return list(node.items())
    if hasattr(node, "_fields"):
        return list(zip(node._fields, node, strict=True))
    return list(enumerate(node)) if isinstance(node, (list, tuple)) else []


def _is_flat(tree: Any) -> bool:
    if not isinstance(tree, Mapping) or not tree or isinstance(tree, State):
        return isinstance(tree, State)
    return all(isinstance(k, str) for k in tree) and not any(map(_is_container, tree.values()))


def _fields(tree: Any) -> list[tuple[Any, str, Any]] | None:
    """Returns (key, role, value) of a tree that has its variables in fields or places; None for a bare one."""
    children = _children(tree)
    if not isinstance(tree, Mapping) and not hasattr(tree, "_fields"):
        if not isinstance(tree, (list, tuple)) or not children or not isinstance(children[0][1], Mapping):
            return None
        found = [(0, "variables" if _has_params(children[0][1]) else "params", children[0][1])]
        for key, value in children[1:]:
            bundle = isinstance(value, Mapping) and not any(role == "state" for _, role, _ in found)
            state = bundle and key == 1 and all(isinstance(v, Mapping) for v in value.values())
            optimizer = isinstance(value, (list, tuple)) or (isinstance(value, Mapping) and not state)
            found.append((key, "state" if state else "optimizer" if optimizer else "rest", value))
        return found
    roles = {key: _ROLES.get(key, "rest") if isinstance(key, str) else "rest" for key, _ in children}
    own = [key for key, value in children if roles[key] in ("params", "variables") and isinstance(value, Mapping)]
    if isinstance(tree, Mapping):
        # A module may be called `model`: alone, the key says nothing.
        others = [k for k, value in children if roles[k] in ("optimizer", "twin") or k == "step"]
        if not own or (roles[own[0]] == "variables" and not others and own[0] != "variables"):
            return None
    elif not own:
        raise CheckpointError(
            f"A {type(tree).__name__} with the fields {list(tree._fields)} has none that is known to hold parameters:"
            " give the part that does (--part)."
        )
    out = []
    for key, value in children:
        role = roles[key]
        if role in ("params", "variables") and key != own[0]:
            role = "twin"
        if role == "params" and _has_params(value):
            role = "variables"
        if key in COLLECTIONS:
            role = "collection"
        if role not in ("rest", "optimizer") and not _is_container(value):
            role = "rest"
        if role == "rest" and isinstance(value, Mapping) and any(map(_is_array, jax.tree.leaves(value))):
            role = "collection"  # numbers and texts alone are settings, or the state of NumPy's generator
        out.append((key, role, value))
    return out


def _has_params(node: Mapping[Any, Any]) -> bool:
    """Whether a dictionary is Linen's variables rather than parameters."""
    return isinstance(node.get("params"), Mapping)


def _sorted(tree: Any, fields: list[tuple[Any, str, Any]], framework: str | None, spec: Spec | None) -> Contents:
    by_role: dict[str, dict[Any, Any]] = {}
    for key, role, value in fields:
        by_role.setdefault(role, {})[key] = value
    variables = next(iter(by_role.get("variables", {}).values()), None)
    params = next(iter(by_role.get("params", {}).values()), None)
    collections = by_role.get("collection", {})
    rest, optimizers = dict(by_role.get("rest", {})), dict(by_role.get("optimizer", {}))
    state = next(iter(by_role.get("state", {}).values()), None)
    if variables is not None and _has_params(variables):
        params, collections = (
            variables["params"],
            {**{k: v for k, v in variables.items() if k != "params"}, **collections},
        )
        evidence = evidence_of(params, {"params", *collections})
    else:
        params = _native.plain(variables if params is None else params)
        bare = (
            fields[0][0] is None
            or not isinstance(fields[0][0], str)
            or "params" not in dict.fromkeys(key for key, _, _ in fields)
        )
        evidence = evidence_of(params, set(collections) if bare else {"params", *collections})
    if framework is None:
        framework, why = evidence.decided([key for key, _ in _children(tree)])
    else:
        why = "as said"
    values = framework == "nnx" and _native.has_values(params)
    try:
        entries = _native.entries(framework, params, state, collections, spec)
    except (ValueError, KeyError) as err:
        raise CheckpointError(f"These are no {FRAMEWORKS[framework]} variables ({why}): {err}") from err
    for key, value in list(optimizers.items()):
        if isinstance(value, Mapping) and set(map(str, value)) == {"opt_state", "step"}:  # nnx.Optimizer
            optimizers[key] = value["opt_state"]
            rest.setdefault("step", _native.unwrapped(value["step"]))
    twins = dict(by_role.get("twin", {}))
    if values:
        params = _native.unwrapped(params)
        optimizers = {key: _native.unwrapped(value) for key, value in optimizers.items()}
        twins = {key: _native.unwrapped(value) for key, value in twins.items()}
    if framework == "haiku" and collections:
        raise CheckpointError(
            f"Beside Haiku's variables there are trees that are not known: {', '.join(map(str, collections))}. Give the"
            " part that is to be converted (--part), or leave these out of the file."
        )
    keys = tuple((key, role) for key, role, _ in fields) if fields[0][0] is not None else ()
    form = "bare" if not keys else "fields" if isinstance(keys[0][0], str) else "tuple"
    return Contents(tree, framework, why, form, keys, entries, params, optimizers, twins, rest, values)


def _flat_contents(tree: Mapping[str, Any], framework: str | None) -> Contents:
    """Returns the contents of a flat tree: paths are taken as they are, collections included."""
    known = [p for p in tree if p.partition("/")[0] in ("params", "state", *COLLECTIONS)]
    optimizers: dict[str, Any] = {}
    rest: dict[Any, Any] = {}
    entries = {}
    for path, leaf in tree.items():
        role = _ROLES.get(path.partition("/")[0], "rest")
        if known and path not in known and role == "optimizer":
            optimizers.setdefault(path.partition("/")[0], {})[path.partition("/")[2]] = leaf
        elif known and path not in known and "/" not in path:
            rest[path] = leaf
        else:
            entries[path] = leaf
    why = "path -> array"
    if framework is None:
        framework = "flat"
        if known:
            params = {p.partition("/")[2]: x for p, x in entries.items() if p.startswith("params/")}
            heads = {p.partition("/")[0] for p in known}
            evidence = evidence_of(_flat.nest(params), heads)
            evidence.contra["haiku"][:] = [t for t in evidence.contra["haiku"] if "not one module" not in t]
            if "state" in heads:
                evidence.contra["linen"].append("there is a collection state")
            left = [name for name in evidence.pro if not evidence.contra[name] and evidence.pro[name]]
            if len(left) == 1:
                framework, why = left[0], "; ".join(["path -> array", *evidence.pro[left[0]][:2]])
    else:
        why = "as said"
    state = _native.with_kinds(framework, entries)
    native = _native.parameters(framework, state) if optimizers else None
    nested = {key: _flat.nest(value) for key, value in optimizers.items()}
    return Contents(tree, framework, why, "flat", (), state, native, nested, {}, rest)
