"""Every page is run by a test, and what it links to is there."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
# Page -> the test that runs its programs, the one that runs what it shows of a terminal.
RUN = {
    "README.md": ("tests/test_readme.py", "tests/converters/test_console.py"),
    "docs/cli.md": (None, "tests/converters/test_console.py"),
    "docs/convert.md": ("tests/converters/test_docs_convert.py", None),
    "docs/cookbook.md": ("tests/mapping/test_cookbook.py", None),
    "docs/errors.md": ("tests/test_errors_page.py", None),
    "docs/files.md": ("tests/converters/test_files_page.py", None),
    "docs/guests.md": ("tests/nnx_side/test_guests_page.py", "tests/examples/test_haiku_resnet_in_nnx.py"),
    "docs/guides/case_study.md": (None, "tests/examples/test_case_study.py"),
    "docs/infer.md": ("tests/infer/test_infer_page.py", None),
    "docs/mapping.md": ("tests/mapping/test_docs.py", None),
    "docs/nnx.md": ("tests/core/test_nnx_page.py", None),
    "docs/start.md": ("tests/converters/test_start_page.py", "tests/converters/test_console.py"),
    "docs/verify.md": ("tests/converters/test_verify_docs.py", None),
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_are_run(page):
    name = page.relative_to(ROOT).as_posix()
    for language, test in zip(("python", "console"), RUN.get(name, (None, None)), strict=True):
        shown = re.search(rf"^```{language}$", page.read_text("utf-8"), re.MULTILINE)
        assert bool(shown) == bool(test), f"{name}: its {language} blocks are run by {test}"
        assert test is None or page.name in (ROOT / test).read_text("utf-8")


def test_decisions_are_numbered_one_by_one():
    numbers = re.findall(r"^## ([0-9]+)\.", (ROOT / "docs" / "decisions.md").read_text("utf-8"), re.MULTILINE)
    assert numbers == [str(n + 1) for n in range(len(numbers))]


def test_every_page_is_in_a_table_of_contents():
    docs = ROOT / "docs"
    listed = {
        (page.parent / entry).relative_to(docs).as_posix()
        for page in docs.rglob("*.md")
        for block in re.findall(r"^```{toctree}\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
        for entry in block.split()
        if not entry.startswith(":")
    }
    pages = {page.relative_to(docs).with_suffix("").as_posix() for page in docs.rglob("*.md")}
    assert pages - listed == {"index"}, "the site does not build with a page that no toctree has"
