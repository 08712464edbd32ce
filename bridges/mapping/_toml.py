"""A TOML writer for mappings: plain dicts, lists, strings, numbers and booleans in; text that `tomllib` reads back out.

The standard library reads TOML and does not write it. This writer knows the two layouts that a mapping needs: sections
for what a person edits, inline tables for the rest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from bridges.core._errors import MappingError

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _string(name)


def inline_value(value: Any, indent: str = "") -> str:
    """Returns the TOML of a value as it stands behind an equals sign."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, Mapping):
        inside = ", ".join(f"{_key(k)} = {inline_value(v, indent)}" for k, v in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    if isinstance(value, (list, tuple)):
        parts = [inline_value(v, indent + "  ") for v in value]
        if any(isinstance(v, Mapping) for v in value) and len(value) > 1:
            return "[\n" + "".join(f"{indent}  {part},\n" for part in parts) + f"{indent}]"
        return f"[{', '.join(parts)}]"
    raise MappingError(f"{type(value).__name__} {value!r} has no place in TOML.")


def dumps(table: Mapping[str, Any], nested: frozenset[str] = frozenset(), _path: str = "") -> str:
    """Returns the TOML text of a table.

    Args:
      table: Plain data. Tables and lists of tables in it become sections; what those hold is written inline.
      nested: Keys whose lists of tables are laid out in sections all the way down.

    >>> print(dumps({'n': 1, 'modules': {'a/b': 'c'}, 'rules': [{'src': 'x', 'ops': [{'op': 'flip'}]}]}), end='')
    n = 1
    <BLANKLINE>
    [modules]
    "a/b" = "c"
    <BLANKLINE>
    [[rules]]
    src = "x"
    ops = [{ op = "flip" }]
    """
    inline, sections = [], []
    inner = bool(_path) and _path.split(".")[-1] not in nested
    for key, value in table.items():
        path = f"{_path}.{_key(key)}" if _path else _key(key)
        if isinstance(value, Mapping) and not inner:
            sections.append(f"\n[{path}]\n" + dumps(value, nested, path))
        elif not inner and isinstance(value, (list, tuple)) and value and all(isinstance(v, Mapping) for v in value):
            sections += [f"\n[[{path}]]\n" + dumps(v, nested, path) for v in value]
        else:
            inline.append(f"{_key(key)} = {inline_value(value)}\n")
    return "".join(inline + sections).lstrip("\n") if not _path else "".join(inline + sections)
