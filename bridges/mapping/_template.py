"""Template: a path pattern that reads and writes the same paths, and an index that finds the templates of a path.

Invariant: `template.match(template.format(values)) == values`, and `template.format(template.match(path)) == path` for
every path that matches. A template always stands for the whole path, and one that could read a path in two ways is an
error when it is written, not when it is used.

What it does not do: regular expressions, partial matches, or anything with the arrays at the paths.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from bridges.core._errors import MappingError

_FIELD = re.compile(r"\{\{|\}\}|\{([A-Za-z_]\w*)([+-][0-9]+)?(?::([a-z]+))?\}|[{}]", re.ASCII)
_PATTERN = {"text": "(.+)", "int": "(0|[1-9][0-9]*)", "auto": "((?:_[1-9][0-9]*)?)"}
_WIDE = {"path": 1, "module": 0}  # kind -> the fewest segments it stands for
_DIGITS = frozenset("0123456789")
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Field:
    """One variable of a template: its name, its kind, and what is added to its number when written."""

    name: str
    kind: str = "text"
    offset: int = 0

    @functools.cached_property
    def domain(self) -> str:
        """What the values are: `text`, `number` (`int` and `auto` write it differently), `path` or `module`."""
        return "number" if self.kind in ("int", "auto") else self.kind

    def read(self, text: str) -> str | int | None:
        """Returns the value that the text stands for, or None where it stands for none (below the offset)."""
        if self.kind == "text":
            return text
        number = int(text.removeprefix("_") or 0) - self.offset
        return number if number >= 0 else None

    def write(self, value: Any) -> str:
        """Returns the text of a value; the inverse of `read`."""
        if self.kind in ("int", "auto"):
            if not isinstance(value, int) or isinstance(value, bool) or value < 0 or value + self.offset < 0:
                raise MappingError(
                    f"{value!r} cannot stand for the number {{{self.name}}}: it must be an int from 0 on."
                )
            number = value + self.offset
            return str(number) if self.kind == "int" else f"_{number}" if number else ""
        parts = value.split("/") if isinstance(value, str) else ["", ""]
        if not (all(parts) or (value == "" and self.kind == "module")) or (self.kind == "text" and len(parts) > 1):
            raise MappingError(f"{value!r} cannot stand for {{{self.name}:{self.kind}}}.")
        return value


@dataclasses.dataclass(frozen=True)
class Segment:
    """One segment of a template: literal text between fields."""

    texts: tuple[str, ...]  # one more than fields
    fields: tuple[Field, ...]

    @functools.cached_property
    def wide(self) -> bool:
        """Whether it stands for a run of segments."""
        return bool(self.fields) and self.fields[0].kind in _WIDE

    @functools.cached_property
    def regex(self) -> re.Pattern[str]:
        body = "".join(
            re.escape(text) + _PATTERN[field.kind] for text, field in zip(self.texts, self.fields, strict=False)
        )
        return re.compile(body + re.escape(self.texts[-1]), re.DOTALL)

    def read(self, segment: str) -> tuple[tuple[str, Any], ...] | None:
        """Returns (name, value) of each field, or None."""
        found = self.regex.fullmatch(segment)
        if found is None:
            return None
        pairs = tuple((f.name, f.read(text)) for f, text in zip(self.fields, found.groups(), strict=True))
        return None if any(value is None for _, value in pairs) else pairs


def _parse(text: str) -> tuple[Segment, ...]:
    segments: list[Segment] = []
    texts, at = [""], 0
    fields: list[Field] = []

    def literal(part: str) -> None:
        first, *rest = part.split("/")
        texts[-1] += first
        for segment in rest:
            segments.append(Segment(tuple(texts), tuple(fields)))
            texts[:] = [segment]
            fields.clear()

    for found in _FIELD.finditer(text):
        literal(text[at : found.start()])
        at = found.end()
        if found[0] in ("{{", "}}"):
            texts[-1] += found[0][0]
            continue
        name, offset, kind = found.groups()
        if name is None or (kind or "text") not in (*_PATTERN, *_WIDE):
            raise MappingError(
                f"Template {text!r}: {text[found.start() :]!r} does not begin a variable. Write {{m}} (within a segment),"
                " {i:int}, {i:auto} ('', '_1', '_2', …), {m:path} (one or more segments) or {m:module} (none or more);"
                " {{ and }} for the braces themselves."
            )
        field = Field(name, kind or "text", int(offset or 0))
        if field.offset and field.domain != "number":
            raise MappingError(f"Template {text!r}: only a number can be shifted: write {{{name}{offset}:int}}.")
        fields.append(field)
        texts.append("")
    literal(text[at:])
    segments.append(Segment(tuple(texts), tuple(fields)))
    return tuple(segments)


def _check(text: str, segments: tuple[Segment, ...]) -> None:
    """Raises unless every path can be read in at most one way."""

    def fail(reason: str) -> None:
        raise MappingError(f"Template {text!r} is ambiguous or malformed: {reason}")

    domains: dict[str, str] = {}
    for segment in segments:
        if not any(segment.texts) and not segment.fields:
            fail("it has an empty segment (an empty name is written %).")
        for field in segment.fields:
            if domains.setdefault(field.name, field.domain) != field.domain:
                fail(f"{{{field.name}}} is a {domains[field.name]} in one place and a {field.domain} in another.")
        if any(f.kind in _WIDE for f in segment.fields) and (len(segment.fields) > 1 or any(segment.texts)):
            fail("{m:path} and {m:module} stand for whole segments: put '/' around them.")
        if sum(f.kind == "text" for f in segment.fields) > 1:
            fail("two text variables in one segment can share its letters in several ways.")
        for between in segment.texts[1:-1]:
            if not between or between[0] in _DIGITS or between[-1] in _DIGITS:
                fail("two variables in one segment need text between them that neither begins nor ends with a digit.")
        if any(f.kind == "auto" for f in segment.fields[:-1]) or (
            segment.fields and segment.fields[-1].kind == "auto" and segment.texts[-1]
        ):
            fail("{i:auto} must end its segment.")
    if sum(segment.wide for segment in segments) > 1:
        fail("two variables for runs of segments can share them in several ways.")


@dataclasses.dataclass(frozen=True, order=True)
class Template:
    """A path pattern; see docs/mapping.md for the grammar.

    Args:
      text: The pattern. `{m}` is text within one segment, `{i:int}` a number in plain digits, `{i+1:int}` the number
        written one higher, `{i:auto}` the suffix of automatic names (nothing for 0, then `_1`, `_2`, …), `{m:path}` one
        or more segments and `{m:module}` none or more. `{{` and `}}` are braces.

    Raises:
      MappingError: The text is malformed, or could read some path in two ways.

    >>> old, new = Template('params/net/linear{i:auto}/w'), Template('params/Dense_{i:int}/kernel')
    >>> old.match('params/net/linear_3/w')
    {'i': 3}
    >>> new.format({'i': 3}), old.format({'i': 0})
    ('params/Dense_3/kernel', 'params/net/linear/w')
    """

    text: str

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise MappingError(f"A template is a string, not {self.text!r}.")
        _check(self.text, self.segments)

    @functools.cached_property
    def segments(self) -> tuple[Segment, ...]:
        """The parsed segments; none for the empty template (the root module)."""
        return _parse(self.text) if self.text else ()

    @functools.cached_property
    def domains(self) -> dict[str, str]:
        """The variables, in order, each with what its values are."""
        return {field.name: field.domain for segment in self.segments for field in segment.fields}

    @functools.cached_property
    def _index(self) -> Index[None]:
        index: Index[None] = Index()
        index.add(self, None)
        return index

    def match(self, path: str) -> dict[str, Any] | None:
        """Returns the variables' values if the whole path matches, None otherwise."""
        found = self._index.match(path)
        return found[0][1] if found else None

    def format(self, values: Mapping[str, Any]) -> str:
        """Returns the path for the values; the inverse of `match`.

        Raises:
          MappingError: A variable has no value, or one that it cannot stand for.
        """
        written = []
        try:
            for segment in self.segments:
                text = segment.texts[0]
                for field, after in zip(segment.fields, segment.texts[1:], strict=True):
                    text += field.write(values[field.name]) + after
                if text or not segment.wide:
                    written.append(text)
        except KeyError as err:
            raise MappingError(f"Template {self.text!r} needs a value for {err}.") from err
        return "/".join(written)

    def __str__(self) -> str:
        return self.text


class _Node(Generic[T]):
    """One place in the index: what may come next, and the items of the templates that end here."""

    __slots__ = ("literal", "patterns", "wide", "items")

    def __init__(self) -> None:
        self.literal: dict[str, _Node[T]] = {}
        # (length of the text before, after) -> (text before, after) -> segment -> node
        self.patterns: dict[tuple[int, int], dict[tuple[str, str], dict[Segment, _Node[T]]]] = {}
        self.wide: dict[Field, _Node[T]] = {}
        self.items: list[T] = []


class Index(Generic[T]):
    """Items by template; `match` finds those of a path without trying each template."""

    def __init__(self) -> None:
        self._root: _Node[T] = _Node()

    def add(self, template: Template, item: T) -> None:
        """Files the item under the template."""
        node = self._root
        for segment in template.segments:
            if not segment.fields:
                node = node.literal.setdefault(segment.texts[0], _Node())
            elif segment.wide:
                node = node.wide.setdefault(segment.fields[0], _Node())
            else:
                ends = segment.texts[0], segment.texts[-1]
                group = node.patterns.setdefault((len(ends[0]), len(ends[1])), {})
                node = group.setdefault(ends, {}).setdefault(segment, _Node())
        node.items.append(item)

    def match(self, path: str) -> list[tuple[T, dict[str, Any]]]:
        """Returns every item whose template matches the whole path, with the variables' values."""
        out: list[tuple[T, dict[str, Any]]] = []
        segments = path.split("/") if path else []
        self._walk(self._root, segments, 0, (), out)
        return out

    def _walk(self, node: _Node[T], segments: list[str], at: int, got: tuple[Any, ...], out: list[Any]) -> None:
        if at == len(segments):
            if node.items:
                values: dict[str, Any] = {}
                if all(values.setdefault(name, value) == value for name, value in got):
                    out.extend((item, values) for item in node.items)
        else:
            segment = segments[at]
            child = node.literal.get(segment)
            if child is not None:
                self._walk(child, segments, at + 1, got, out)
            for (before, after), group in node.patterns.items():
                if before + after <= len(segment):
                    ends = segment[:before], segment[len(segment) - after :]
                    for pattern, child in group.get(ends, {}).items():
                        pairs = pattern.read(segment)
                        if pairs is not None:
                            self._walk(child, segments, at + 1, got + pairs, out)
        for field, child in node.wide.items():
            for end in range(at + _WIDE[field.kind], len(segments) + 1):
                if end == len(segments) or segments[end] in child.literal or child.patterns:
                    value = "/".join(segments[at:end])
                    self._walk(child, segments, end, (*got, (field.name, value)), out)
