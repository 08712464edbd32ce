"""Where the trees lie in an Orbax directory: steps, items, and what a name may be. Paths and small JSON files only.

An *item* is a directory with `_METADATA`: one tree. A checkpoint is an item itself (`StandardCheckpointer`,
`PyTreeCheckpointer`), or a directory of items by name (`CheckpointManager`'s `default`, Orbax v1's `state`, composites). A
root holds checkpoints by step. While Orbax writes, a directory's name has `.orbax-checkpoint-tmp` in it; it is renamed
when all is there.

What it does not do: it opens no array, and follows no name out of the directory.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bridges.core._errors import listing
from converters._errors import CheckpointError

STRUCTURE = "_METADATA"
STEP = "_CHECKPOINT_METADATA"
UNFINISHED = ".orbax-checkpoint-tmp"
OLD = "checkpoint"  # what Orbax wrote before it had _METADATA
# What a tree holds where it holds nothing; an empty NamedTuple is None to Orbax.
EMPTY: dict[str, Callable[[], Any]] = {
    "Dict": dict,
    "List": list,
    "Tuple": tuple,
    "None": lambda: None,
    "NamedTuple": lambda: None,
}
_ALONE = ("default", "state", "pytree")  # the item of a checkpoint that has one unnamed item
_NUMBER = re.compile(r"(?:.*_)?(\d+)")


def looks_like(path: pathlib.Path) -> bool:
    """Whether a directory is Orbax's: a finished or unfinished checkpoint, or a root of steps; or is empty."""
    if not path.is_dir():
        return False
    inside = {child.name: child for child in path.iterdir()}
    if not inside or UNFINISHED in path.name or {STRUCTURE, STEP, "manifest.ocdbt", "orbax.checkpoint"} & inside.keys():
        return True
    return any(
        UNFINISHED in name or (child / STRUCTURE).is_file() or (child / STEP).is_file()
        for name, child in inside.items()
    )


def items(path: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns the items of a checkpoint by name; of a root, those of the latest step. The one unnamed item is `''`.

    Args:
      path: An item, a checkpoint, or a root of steps.

    Raises:
      CheckpointError: It is unfinished, empty, or holds no item.
    """
    if UNFINISHED in path.name:
        raise CheckpointError(
            f"{path} is unfinished: Orbax was stopped before it had written everything. Take an earlier step, or write"
            " the checkpoint again."
        )
    if (path / STRUCTURE).is_file():
        return {"": path}
    children = sorted(child for child in path.iterdir() if child.is_dir())
    found = {child.name: child for child in children if UNFINISHED not in child.name and (child / STRUCTURE).is_file()}
    if (path / STEP).is_file() or (found and not any(_NUMBER.fullmatch(name) for name in found)):
        if not found:
            raise CheckpointError(f"{path} has no {STRUCTURE}, in itself or in an item: {_without(path, children)}")
        if len(found) == 1 and next(iter(found)) in _ALONE:
            return {"": next(iter(found.values()))}
        return found
    steps = {
        int(match[1]): child
        for child in children
        if (match := _NUMBER.fullmatch(child.name)) and ((child / STEP).is_file() or _has_item(child))
    }
    if steps:
        return items(steps[max(steps)])
    raise CheckpointError(f"{path} holds no finished Orbax checkpoint: {_without(path, children)}")


def _has_item(path: pathlib.Path) -> bool:
    return (path / STRUCTURE).is_file() or any((child / STRUCTURE).is_file() for child in path.iterdir())


def _without(path: pathlib.Path, children: list[pathlib.Path]) -> str:
    inside = sorted(child.name for child in path.iterdir())
    if not inside:
        return "it is empty."
    unfinished = [child.name for child in children if UNFINISHED in child.name]
    if unfinished:
        return f"{', '.join(unfinished)} was never finished. Write the checkpoint again."
    if (path / OLD).is_file():
        return (
            "it is of an Orbax that did not write it yet. Restore it with orbax.checkpoint.PyTreeCheckpointer and save it"
            " again."
        )
    return f"there are {', '.join(inside[:8])}. Part of it may not have been copied; or pass the directory of one item."


def texts(path: pathlib.Path) -> dict[str, str]:
    """Returns the JSON items beside the trees of a checkpoint (metrics, an iterator's state), each as its text."""
    out = {}
    step = path if (path / STEP).is_file() else path.parent
    if (step / STEP).is_file() and step != path:
        for child in sorted(step.iterdir()):
            for name in ("metadata", "metrics"):
                file = child / name
                if child.is_dir() and file.is_file() and not (child / STRUCTURE).is_file():
                    out[child.name] = file.read_text()
    return out


@dataclasses.dataclass(frozen=True)
class Row:
    """An entry of a tree.

    Attributes:
      keys: From the root; an index of a list is an integer.
      typestr: What it is: a name of `EMPTY`, 'scalar', 'string', or a kind of array.
    """

    keys: tuple[str | int, ...]
    typestr: str

    @property
    def name(self) -> str:
        """The name under which it is stored."""
        return ".".join(map(str, self.keys))


def structure(item: pathlib.Path) -> dict[str, Any]:
    """Returns the content of an item's `_METADATA`.

    Raises:
      CheckpointError: It is no JSON, or has a key twice.
    """
    content = _json(item / STRUCTURE)
    if not isinstance(content, dict) or not isinstance(content.get("tree_metadata"), dict):
        raise CheckpointError(f"{item / STRUCTURE} is damaged: it has no tree_metadata. Copy the checkpoint again.")
    return content


def rows(item: pathlib.Path, content: Mapping[str, Any]) -> list[Row]:
    """Returns the entries that a `_METADATA` names, checked for what Orbax would take without a word.

    Raises:
      CheckpointError: An entry is malformed, two have one name, or a name leads out of the directory; all are listed.
    """
    found: dict[str, Row] = {}
    wrong = []
    for path, entry in content["tree_metadata"].items():
        try:
            keys = [int(key["key"]) if key["key_type"] == 1 else key["key"] for key in entry["key_metadata"]]
            row = Row(tuple(keys), entry["value_metadata"]["value_type"])
            if not all(isinstance(text, str) for text in [row.typestr, *(k for k in keys if not isinstance(k, int))]):
                raise TypeError("a key is no text")
        except (TypeError, KeyError, ValueError) as err:
            wrong.append(f"{path}: its entry is malformed ({type(err).__name__}: {err})")
            continue
        if not content.get("use_ocdbt") and (row.name[:1] == "/" or ".." in row.name.split("/") or "\0" in row.name):
            wrong.append(f"{path}: the name {row.name!r} leads out of the checkpoint")
        if row.name in found:
            wrong.append(f"{path} and {found[row.name].keys} are stored under the one name {row.name!r}")
        found[row.name] = row
    if wrong:
        raise CheckpointError(f"{item / STRUCTURE} is not what Orbax writes:\n{listing(wrong)}\nNothing was read.")
    return list(found.values())


def nested(item: pathlib.Path, rows: Sequence[Row], values: Mapping[str, Any]) -> Any:
    """Returns the tree of the rows, with the values by name: dictionaries and lists.

    Raises:
      CheckpointError: The indices of a list have gaps, or an entry is both a value and the parent of others.
    """
    top: dict[Any, Any] = {}
    branches: list[tuple[dict[Any, Any], Any]] = []
    ids: set[int] = set()
    for row in rows:
        node: dict[Any, Any] = top
        key: Any = None
        for following in row.keys:
            child: Any = node.get(key)
            if id(child) not in ids:
                if key in node and not _is_empty(child):
                    raise CheckpointError(f"{item / STRUCTURE} is damaged: {row.name!r} lies below a value.")
                child = node[key] = {}  # what was empty at first a partial save may have filled since
                ids.add(id(child))
                branches.append((node, key))
            node, key = child, following
        if key not in node:
            node[key] = values[row.name]
        elif row.typestr not in EMPTY:
            raise CheckpointError(f"{item / STRUCTURE} is damaged: {row.name!r} is a value and holds others.")
    for node, key in reversed(branches):
        children = node[key]
        indices = [k for k in children if isinstance(k, int)]
        if indices:
            if sorted(indices) != [*range(len(children))]:
                raise CheckpointError(f"{item / STRUCTURE} is damaged: a list has the indices {sorted(indices)[:8]}.")
            node[key] = [children[i] for i in range(len(children))]
    return top.get(None, {})


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, (dict, list, tuple)) and not value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return out


def _json(file: pathlib.Path) -> Any:
    try:
        return json.loads(file.read_text(), object_pairs_hook=_unique)
    except (ValueError, RecursionError, OSError) as err:
        raise CheckpointError(
            f"{file} is damaged: {str(err) or type(err).__name__}. Copy the checkpoint again, or take another step."
        ) from err


def strings(item: pathlib.Path) -> dict[str, str]:
    """Returns the strings of an item by name; Orbax keeps them in one JSON file.

    Raises:
      CheckpointError: The file is damaged.
    """
    file = item / "_strings.json"
    found = _json(file) if file.is_file() else {}
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise CheckpointError(f"{file} is damaged: it is not a table of strings. Copy the checkpoint again.")
    return found


def key_impls(item: pathlib.Path) -> dict[str, str]:
    """Returns the implementation of each typed random key of an item, by the name of its entry.

    Orbax keeps it in `array_metadatas/process_<n>`, as JSON (orbax-checkpoint 0.12.8), and says it nowhere else.

    Raises:
      CheckpointError: A file of these is damaged.
    """
    out: dict[str, str] = {}
    folder = item / "array_metadatas"
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        content = _json(file)
        try:
            for row in content["array_metadatas"]:
                entry: Mapping[str, Any] = row["array_metadata"]
                if impl := (entry.get("ext_metadata") or {}).get("random_key_impl"):
                    out[str(entry["param_name"])] = str(impl)
        except (TypeError, KeyError, AttributeError) as err:
            raise CheckpointError(f"{file} is damaged: {err}. Copy the checkpoint again.") from err
    return out
