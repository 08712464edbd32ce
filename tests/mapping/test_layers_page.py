"""docs/layers.md has every module of Haiku, as the conventions say; `BRIDGES_WRITE_DOCS=1` writes it."""

from __future__ import annotations

import importlib
import inspect
import os
import pathlib
import re

import haiku as hk
import pytest

from tests.mapping import layers_page

FILE = pathlib.Path(__file__).parents[2] / "docs" / "layers.md"
WRITE = "BRIDGES_WRITE_DOCS"


def test_the_page_is_what_the_conventions_say():
    before, marker, rest = re.split(r"(<!-- layers.*?-->\n)", FILE.read_text("utf-8"))
    written, end, after = re.split(r"(<!-- end of layers -->)", rest)
    made = f"\n{layers_page.tables()}\n"
    if os.environ.get(WRITE):
        FILE.write_text(before + marker + made + end + after, "utf-8")
        written = made
    assert written == made, f"docs/layers.md is not what the conventions say: {WRITE}=1 pytest {__file__}"


ROWS = re.findall(r"^\| `([\w.]+)` \| (.*) \|$", FILE.read_text("utf-8"), re.MULTILINE)
VERDICTS = {*layers_page.SHORT.values(), layers_page.NOTHING, "theirs"}


def test_every_module_of_haiku_has_a_verdict_for_both():
    found = {name: cells.split(" | ") for name, cells in ROWS if cells.count("|") == 3}
    assert sorted(found) == layers_page.modules()
    for name, (linen, said, nnx, told) in found.items():
        assert linen and nnx, name
        for cell in (said, told):
            assert {re.sub(r" \(.*?\)", "", each) for each in cell.split("; ")} <= VERDICTS, name


def test_haiku_has_modules_nowhere_else():
    for space in layers_page.namespaces() - {"haiku.nets", "haiku.experimental"}:
        for name, value in vars(importlib.import_module(space)).items():
            public = inspect.isclass(value) and issubclass(value, hk.Module) and not name.startswith("_")
            assert not public or name in layers_page.modules(), f"{space}.{name}"


@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_every_module_of_flax_is_on_the_page(framework):
    shown = {name for name, _ in ROWS} | {
        name for _, cells in ROWS for cell in cells.split(" | ") for name in re.findall(r"`(\w+)`", cell)
    }
    assert set(layers_page.modules(framework)) - shown == set()


def test_what_is_not_exact_has_a_reason():
    reasons = FILE.read_text("utf-8").partition("## Why\n")[2]
    for name, cells in ROWS:
        haiku = cells.count("|") == 3
        for verdict in ("refused", "evaluation only"):
            if haiku and verdict in cells and "made of" not in cells:
                assert re.search(
                    rf"^\| Haiku: .*`{name.rpartition('.')[2]}`.*\| {verdict} \| \S", reasons, re.MULTILINE
                ), name
