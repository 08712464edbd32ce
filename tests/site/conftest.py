"""The site in a real browser. These tests run where `make site-test` built it and Chromium is installed, or say why not.

`BRIDGES_SITE` is the folder of the built site, `CHROMIUM` the browser where it is not on PATH. With `BRIDGES_NEED_BROWSER=1`
a missing browser is a failure, for machines that must have one.
"""

from __future__ import annotations

import os
import pathlib
import shutil

import pytest

ARGS = (
    "--no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update --disable-sync"
).split()
WIDE, NARROW = {"width": 1440, "height": 900}, {"width": 390, "height": 844}


def lacking(reason: str) -> None:
    """Skips, or fails where a browser must be there."""
    if os.environ.get("BRIDGES_NEED_BROWSER"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def site() -> pathlib.Path:
    """The built site."""
    folder = os.environ.get("BRIDGES_SITE")
    if not folder:
        pytest.skip("THE SITE WAS NOT TESTED: it is tested by `make site-test`, which builds it")
    assert (pathlib.Path(folder) / "index.html").exists(), f"no site in {folder}: make docs"
    return pathlib.Path(folder).resolve()


@pytest.fixture(scope="session")
def browser(site, tmp_path_factory):
    """A headless Chromium with a profile of its own and no way to any network."""
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="THE SITE WAS NOT TESTED: the extra `docs` is not installed"
    )
    names = [os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome"]
    path = next((found for name in names if name and (found := shutil.which(name))), None)
    if path is None:
        lacking("THE SITE WAS NOT TESTED IN A BROWSER: no Chromium on PATH, and CHROMIUM names none")
    with sync_api.sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"),
            executable_path=path,
            headless=True,
            args=ARGS,
            viewport=WIDE,
            offline=True,
        )
        context.set_default_timeout(10_000)
        yield context
        context.close()


def new_page(browser):
    """A fresh page, wide; `page.problems` lists what went wrong in it: errors of scripts, of the console, of requests."""
    page = browser.new_page()
    page.problems = []
    page.on("console", lambda said: page.problems.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda err: page.problems.append(str(err)))
    page.on("requestfailed", lambda request: page.problems.append(f"not loaded: {request.url}"))
    page.on(
        "request",
        lambda request: None if request.url.startswith(("file:", "data:")) else page.problems.append(request.url),
    )
    return page


@pytest.fixture
def page(browser):
    page = new_page(browser)
    yield page
    page.close()
