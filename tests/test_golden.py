"""Golden specs: names, shapes, dtypes, kinds and layer types of every row of the table, as `tests/golden/*.json` has them.

A release of a framework that names its variables otherwise shows here as a difference, before it shows as a checkpoint that
does not load. After such a release, or for a new row: BRIDGES_WRITE_GOLDEN=1 pytest tests/test_golden.py
"""

import json
import os
import pathlib
import re

import pytest

from bridges.core._errors import describe
from bridges.core._kind import kind_type
from tests.cases import CASES
from tests.test_cases import spec_of

FOLDER = pathlib.Path(__file__).parent / "golden"
WRITE = "BRIDGES_WRITE_GOLDEN"


def file_of(name):
    return FOLDER / f"{re.sub('[^a-z0-9]+', '_', name.lower()).strip('_')}.json"


def golden(name):
    return {
        framework: {
            "entries": {
                path: f"{describe(value)} {kind_type(spec.entries.declared[path]).__name__}"
                for path, value in sorted(spec.entries.items())
            },
            "layers": {path: layer.type for path, layer in sorted(spec.layers.items())},
        }
        for framework in CASES[name].frameworks
        for spec in [spec_of(name, framework)]
    }


@pytest.mark.parametrize("name", CASES)
def test_the_spec_is_the_golden_one(name):
    made, file = golden(name), file_of(name)
    if os.environ.get(WRITE):
        FOLDER.mkdir(exist_ok=True)
        file.write_text(json.dumps(made, indent=1) + "\n", "utf-8")
    remedy = f"If that is meant to be, write it anew and read the diff: {WRITE}=1 pytest tests/test_golden.py"
    assert file.exists(), f"{file.name} is missing. {remedy}"
    assert made == json.loads(file.read_text("utf-8")), (
        f"The spec of {name!r} is no longer that of {file.name}. {remedy}"
    )


def test_every_golden_file_has_its_row():
    assert len({file_of(name) for name in CASES}) == len(CASES)
    assert {file.name for file in FOLDER.iterdir()} == {file_of(name).name for name in CASES}
