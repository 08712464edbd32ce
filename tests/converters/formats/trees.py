"""Trees for round trips: names that hold whatever separates names, and arrays of every dtype."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.converters.formats.arrays import ARRAYS, EXTENDED, STRIDED

_PIECES = st.sampled_from(
    [
        "a",
        "w",
        "/",
        "//",
        ":",
        ".",
        "%",
        "%2F",
        "%25",
        "~",
        "..",
        "0",
        "1",
        " ",
        "é",
        "漢",
        "\u202e",
        ".npy",
        "\\",
        '"',
        "\n",
    ]
)
names = st.lists(_PIECES, max_size=4).map("".join)


def trees(*tables: dict[str, np.ndarray], plain: Any = None, empty: bool = True) -> st.SearchStrategy[dict[str, Any]]:
    """Nested dictionaries; the leaves are arrays of the tables, or what `plain` draws, or empty where `empty` says so."""
    arrays = st.sampled_from([array for table in tables or (ARRAYS, EXTENDED, STRIDED) for array in table.values()])
    leaves = arrays if plain is None else arrays | plain
    if empty:
        leaves |= st.sampled_from([None, {}])
    nested = st.recursive(leaves, lambda below: st.dictionaries(names, below, max_size=4), max_leaves=12)
    haiku = st.dictionaries(names, st.dictionaries(names, leaves, min_size=1, max_size=2), max_size=3)
    return haiku | st.dictionaries(names, nested, max_size=4)
