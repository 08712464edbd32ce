"""How the flat names of an archive spell a tree.

    haiku    module//name, as AlphaFold and others store Haiku's two levels: {module: {name: array}}
    colon    module:name, the same with a colon
    nested   segments joined by `/`, each percent-escaped as in every path of this project: dictionaries in dictionaries
    flat     names as they are: {name: array}

An archive of our own says which one it is. A foreign one is recognised only where every name fits one of them and the
names do not contradict it; where they do, the names stay as they are, and the layout's text says why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bridges.core import _flat
from bridges.core._errors import CollisionError
from converters.formats._entries import DEEP

_MARKS = {"haiku": "//", "colon": ":"}


def tree(flat: Mapping[str, Any], said: str | None = None, modules: bool = True) -> tuple[dict[str, Any], str]:
    """Returns the tree that the names spell, and the layout that was decided for.

    Args:
      flat: `{name: leaf}`.
      said: The layout that the file names, if it does.
      modules: Whether the two layouts of modules are to be looked for.
    """
    layout = said if said in (*_MARKS, "nested", "flat") and _fits(flat, said) else recognised(flat, modules)
    if layout in _MARKS:
        found: dict[str, Any] = {}
        for key, leaf in flat.items():
            module, name = key.split(_MARKS[layout])
            found.setdefault(module, {})[name] = leaf
        return found, layout
    if layout == "nested":
        return _flat.nest(flat), layout
    return dict(flat), layout


def recognised(flat: Mapping[str, Any], modules: bool = True) -> str:
    """Returns the layout that the names follow, or `flat` with the reason why it is none of the others."""
    for layout, mark in _MARKS.items() if modules else ():
        if flat and _fits(flat, layout):
            return layout
        if any(mark in key for key in flat):
            return f"flat: not every name is module{mark}name, and the names were left as they are"
    if any("/" in key or "%" in key for key in flat):
        if _fits(flat, "nested"):
            return "nested"
        return "flat: the names hold '/' or '%' and do not spell a tree (an empty part, an array above another, 500 levels)"
    if any("." in key for key in flat):
        return "flat: '.' may separate or belong to a name, and the names were left as they are"
    return "flat"


def keys(entries: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns the layout that a tree is written in, and `{name: leaf}`; `tree` is the inverse.

    Args:
      entries: `{path: leaf}`, paths escaped.
    """
    split = {path: _flat.split(path) for path in entries}
    haiku = any("/" in parts[0] for parts in split.values())
    if haiku and all(len(parts) == 2 for parts in split.values()):
        named = {"//".join(split[path]): leaf for path, leaf in entries.items()}
        alike = all(tuple(name.split("//")) == parts for name, parts in zip(named, split.values(), strict=False))
        if len(named) == len(entries) and alike and _fits(named, "haiku"):
            return "haiku", named
    return "nested", dict(entries)


def _fits(names: Iterable[str], layout: str) -> bool:
    if layout in _MARKS:
        return all(_two(name, _MARKS[layout]) for name in names)
    if layout == "nested":
        if not all(name and name.count("/") < DEEP and _flat.join(_flat.split(name)) == name for name in names):
            return False
        try:
            _flat.nest(dict.fromkeys(names))
        except CollisionError:
            return False
        return True
    return True


def _two(key: str, mark: str) -> bool:
    """Whether a name is a module and a name with the mark between, in one way only."""
    module, _, name = key.partition(mark)
    if mark == ":" and name.isdigit():  # TensorFlow's `kernel:0` is a name and the number of an output
        return False
    return bool(module and name) and mark not in name and "/" not in name and not module.endswith("/")
