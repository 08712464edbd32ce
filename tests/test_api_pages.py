"""docs/api/ has every public name; `BRIDGES_WRITE_DOCS=1` writes it."""

from __future__ import annotations

import os
import pathlib

import pytest

import bridges
from tests import api_pages

FOLDER = pathlib.Path(__file__).parents[1] / "docs" / "api"
WRITE = "BRIDGES_WRITE_DOCS"


@pytest.mark.parametrize("key", api_pages.PAGES)
def test_a_page_has_every_public_name(key):
    file, made = FOLDER / f"{key}.md", api_pages.page(key)
    if os.environ.get(WRITE):
        file.write_text(made, "utf-8")
    assert file.read_text("utf-8") == made, f"{file.name} is not what the packages have: {WRITE}=1 pytest {__file__}"


def test_no_name_of_bridges_is_missing():
    text = "".join(api_pages.page(key) for key in api_pages.PAGES) + (FOLDER.parent / "errors.md").read_text("utf-8")
    missing = [n for n in bridges.__all__ if f".{n}\n" not in text and f"## {n}\n" not in text and n not in text]
    assert missing == []
