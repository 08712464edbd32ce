from __future__ import annotations

import pytest

from converters.formats import npz
from tests.converters.formats.arrays import ARRAYS, EXTENDED, STRIDED, assert_same


@pytest.mark.parametrize("table", [ARRAYS, EXTENDED, STRIDED], ids=["arrays", "extended", "strided"])
def test_every_array_that_it_holds_comes_back(table, tmp_path):
    refused = [name for name in table if npz.problems({"x": table[name]})]
    tree = {"group": {name: array for name, array in table.items() if name not in refused}}
    npz.write(tmp_path / "file", tree, {})
    assert npz.recognises(tmp_path / "file")
    assert_same(npz.read(tmp_path / "file").load(), tree)
