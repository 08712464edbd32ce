"""What makes columns of code comparable: rows that begin at one height, and for each word the columns that lack it.

Rows begin at classes, functions and methods that all columns have, in one order. Within a row, the lines of two columns are
paired so that they have the most words in common; what differs within a pair is marked word by word, a line without a
partner is marked as a whole. Nothing here knows what code means.
"""

from __future__ import annotations

import ast
import collections
import difflib
import functools
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

Piece = tuple[str, frozenset[str]]  # some text of a line, and the columns that lack it
PAIRED = 0.5  # the least share of common words for two lines to be one line, changed


def rows(columns: Mapping[str, str]) -> dict[str, list[list[str]]]:
    """Returns column -> rows of lines, as many rows in each; some may be empty.

    >>> rows({"a": "import a\\ndef f():\\n    pass\\n", "b": "x = 1\\n\\n@jit\\ndef f():\\n    pass\\n"})["b"]
    [['x = 1', ''], ['@jit', 'def f():', '    pass']]
    """
    starts = {column: dict(_definitions(text)) for column, text in columns.items()}
    shared = functools.reduce(_common, map(list, starts.values()))
    made = {}
    for column, text in columns.items():
        lines = text.splitlines()
        cuts = [0, *(starts[column][name] for name in shared), len(lines)]
        made[column] = [lines[a:b] for a, b in itertools.pairwise(cuts)]
    used = [n for n in range(len(shared) + 1) if any(made[column][n] for column in made)]
    return {column: [parts[n] for n in used] for column, parts in made.items()}


def _definitions(text: str) -> Iterator[tuple[str, int]]:
    """Yields the qualified name of each class, function and method where it is first defined, and its first line.

    That is a decorator's, or a comment's above.
    """
    lines, seen = text.splitlines(), set()
    try:
        body = ast.parse(text).body
    except SyntaxError:  # part of a program: one row
        return
    for node in body:
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            continue
        methods = [child for child in node.body if isinstance(child, ast.FunctionDef)]
        for child in (node, *methods) if isinstance(node, ast.ClassDef) else (node,):
            name = child.name if child is node else f"{node.name}.{child.name}"
            start = min(each.lineno for each in (child, *child.decorator_list)) - 1
            while start and lines[start - 1].lstrip().startswith("#"):
                start -= 1
            if name not in seen:
                yield name, start
            seen.add(name)


def _common(mine: Sequence[str], theirs: Sequence[str]) -> list[str]:
    """Returns a longest sequence of names that both have in this order."""
    best: dict[tuple[int, int], list[str]] = collections.defaultdict(list)
    for i, name in enumerate(mine, 1):
        for j, other in enumerate(theirs, 1):
            longest = max(best[i - 1, j], best[i, j - 1], key=len)
            best[i, j] = [*best[i - 1, j - 1], name] if name == other else longest
    return best[len(mine), len(theirs)]


def differing(columns: Mapping[str, Sequence[str]]) -> dict[str, list[list[Piece]]]:
    """Returns column -> for each line its pieces, with the columns that do not have them at a corresponding place.

    >>> differing({"a": ["x = 1", "y = f(2)"], "b": ["x = 1", "y = f(3)"]})["a"][1] == [
    ...     ("y = f(", frozenset()), ("2", frozenset("b")), (")", frozenset())]
    True
    """
    lacking = {name: [[set[str]() for _ in words(line)] for line in lines] for name, lines in columns.items()}
    names = list(columns)
    for n, one in enumerate(names):
        for two in names[n + 1 :]:
            pairs = _paired(columns[one], columns[two])
            for name, other, there in ((one, two, dict(pairs)), (two, one, {b: a for a, b in pairs})):
                for number, line in enumerate(columns[name]):
                    partner = columns[other][there[number]] if number in there else ""
                    for word in _unmatched(words(line), words(partner)):
                        lacking[name][number][word].add(other)
    return {
        name: [_pieces(words(line), found) for line, found in zip(columns[name], lacking[name], strict=True)]
        for name in names
    }


def words(line: str) -> list[str]:
    """Returns a line as words, single signs and runs of space; joined they are the line."""
    return re.findall(r"\w+|\s+|[^\w\s]", line)


def _pieces(parts: Sequence[str], lacking: Sequence[set[str]]) -> list[Piece]:
    made: list[Piece] = []
    for part, found in zip(parts, map(frozenset, lacking), strict=True):
        if made and made[-1][1] == found:
            made[-1] = (made[-1][0] + part, found)
        else:
            made.append((part, found))
    return made


def _paired(mine: Sequence[str], theirs: Sequence[str]) -> list[tuple[int, int]]:
    """Returns pairs of line numbers, rising in both, with the most words in common."""
    counts = [
        [collections.Counter(w for w in words(line) if not w.isspace()) for line in each] for each in (mine, theirs)
    ]
    best: dict[tuple[int, int], tuple[float, tuple]] = collections.defaultdict(lambda: (0.0, ()))
    for i, a in enumerate(counts[0], 1):
        for j, b in enumerate(counts[1], 1):
            found = max(best[i - 1, j], best[i, j - 1], key=lambda each: each[0])
            alike = 2 * (a & b).total() / max(a.total() + b.total(), 1)
            before = best[i - 1, j - 1]
            if alike >= PAIRED and before[0] + alike > found[0]:
                found = (before[0] + alike, (before[1], (i - 1, j - 1)))
            best[i, j] = found
    pairs: list[tuple[int, int]] = []
    chain = best[len(mine), len(theirs)][1]
    while chain:
        chain, pair = chain
        pairs.append(pair)
    return pairs[::-1]


def _unmatched(mine: Sequence[str], theirs: Sequence[str]) -> set[int]:
    """Returns the places of what the other line lacks; signs and spaces between two such words belong to them.

    >>> sorted(_unmatched(words("x = hk.Linear(n)(x)"), words("x = self.linear(x)")))
    [4, 5, 6, 7, 8, 9]
    """
    first = bool(mine and mine[0].isspace())  # indentation is no difference
    there = theirs[bool(theirs and theirs[0].isspace()) :]
    blocks = difflib.SequenceMatcher(None, mine[first:], there, autojunk=False).get_matching_blocks()
    kept = {first + n for block in blocks for n in range(block.a, block.a + block.size)}
    lost = sorted(set(range(first, len(mine))) - kept)
    for a, b in itertools.pairwise(tuple(lost)):
        if not any(re.match(r"\w", word) for word in mine[a + 1 : b]):
            lost += range(a + 1, b)
    return set(lost)
