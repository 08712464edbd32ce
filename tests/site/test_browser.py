"""What a reader does: pages load, columns line up or stack, code is copied, search finds, links lead on, dark is legible."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import os
import pathlib
import re
import urllib.parse

import pytest

import bridges
from tests.site.conftest import NARROW, WIDE, new_page

FOLDER = pathlib.Path(os.environ.get("BRIDGES_SITE") or "unbuilt")
PAGES = sorted(
    file.relative_to(FOLDER).as_posix()
    for file in FOLDER.rglob("*.html")
    if not file.relative_to(FOLDER).parts[0].startswith("_")
)
PROGRAMS = pathlib.Path(__file__).parents[2] / "examples" / "migration"
GUIDES = [f"guides/{file.stem}.html" for file in sorted(PROGRAMS.glob("[!_]*.py"))]

LINKS = """() => [...document.querySelectorAll('a[href]')].map(a => [a.getAttribute('href'), a.href])
    .filter(([raw, full]) => full.startsWith('file:')).map(([raw, full]) => full)"""

# Text whose contrast with what lies behind it is too small, by the formula of WCAG 2.
CONTRAST = """() => {
  const parse = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return {c: n.slice(0, 3), a: n[3] ?? 1}; };
  const light = (c) => { const [r, g, b] = c.map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const mix = (top, c) => top.c.map((v, i) => v * top.a + c[i] * (1 - top.a));
  const behind = (element) => { const layers = [];
    for (let e = element; e; e = e.parentElement) { const b = parse(getComputedStyle(e).backgroundColor); layers.push(b);
      if (b.a === 1) break; }
    return layers.reverse().reduce((c, layer) => mix(layer, c), [255, 255, 255]); };
  const found = new Map();
  const walker = document.createTreeWalker(document.querySelector('.bd-article') ?? document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) { const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !element.getClientRects().length
      || element.closest('.search-button__kbd-shortcut')) continue;
    const style = getComputedStyle(element); if (style.visibility === 'hidden' || style.opacity === '0') continue;
    const back = behind(element), front = mix(parse(style.color), back);
    const [high, low] = [light(front), light(back)].sort((a, b) => b - a);
    const ratio = (high + 0.05) / (low + 0.05);
    const text = walker.currentNode.textContent.trim().slice(0, 40);
    if (ratio < 4.5) found.set(style.color + ' on ' + back.map(Math.round), ratio.toFixed(2) + ' ' + text);
  }
  return [...found].map(String); }"""


# Text that lies beyond the edge of the page, and in nothing that scrolls.
CUT = """() => {
  const scrolls = (e) => e.tagName !== 'MAIN' && e.scrollWidth > e.clientWidth
    && ['auto', 'scroll'].includes(getComputedStyle(e).overflowX);
  const reachable = (e) => { for (let p = e.parentElement; p; p = p.parentElement) if (scrolls(p)) return true;
    return false; };
  return [...document.querySelectorAll('.bd-article :is(p, li, td, th, dt, h1, h2, h3, h4, code, .line)')]
    .filter(e => { const box = e.getBoundingClientRect(); return box.width && box.right > innerWidth + 1 && !reachable(e); })
    .map(e => e.textContent.slice(0, 60)); }"""

# Tables of which one sees the last column by scrolling only.
WIDE_TABLES = """() => [...document.querySelectorAll('.pst-scrollable-table-container')]
    .filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.textContent.trim().slice(0, 60))"""

# For each row of columns: the box of each column, whether its code is cut off, and the tops of its chunks.
BOXES = """() => [...document.querySelectorAll('.columns')].map(row => [...row.querySelectorAll('.column')].map(column => {
    const {x, y, width, height} = column.getBoundingClientRect(), pre = column.querySelector('pre');
    const tops = [...column.querySelectorAll('.chunk')].map(chunk => chunk.getBoundingClientRect().y);
    return {x, y, width, height, tops, cut: pre.scrollWidth > pre.clientWidth}; }))"""


def open_page(page, site, name, size=WIDE):
    page.set_viewport_size(size)
    page.goto(f"{(site / name).as_uri()}")
    page.wait_for_function("document.readyState === 'complete'")


@pytest.fixture(scope="module", params=PAGES)
def seen(request, browser, site):
    """A page as it looks on a desk and on a phone, in both themes, loaded once."""
    page = new_page(browser)
    page.emulate_media(color_scheme="light")
    open_page(page, site, request.param)
    found = {"name": request.param, "links": page.evaluate(LINKS), "wide": page.evaluate(BOXES)}
    page.add_style_tag(content="* { transition: none !important }")  # colours as they will be
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_function(f"document.documentElement.dataset.theme === '{scheme}'")
        found[scheme] = page.evaluate(CONTRAST)
    found["beside"] = page.evaluate(WIDE_TABLES)
    page.set_viewport_size(NARROW)
    found["narrow"] = page.evaluate(BOXES)
    found["width"] = page.evaluate("document.documentElement.scrollWidth")
    found["cut"] = page.evaluate(CUT)
    found["hidden"] = page.evaluate(WIDE_TABLES)
    found["problems"] = page.problems
    page.close()
    return found


@functools.cache
def anchors(file):
    return set(re.findall(r' id="([^"]*)"', file.read_text("utf-8")))


def test_a_page_loads_and_its_links_lead_somewhere(seen):
    assert seen["problems"] == []
    for link in seen["links"]:
        target, _, anchor = link.removeprefix("file://").partition("#")
        file = pathlib.Path(urllib.parse.unquote(target.partition("?")[0]))
        assert file.exists(), f"{seen['name']} links to {target}"
        if anchor and file.suffix == ".html":
            assert urllib.parse.unquote(anchor) in anchors(file), f"{seen['name']} links to #{anchor} of {file.name}"


def test_a_page_fits_a_phone(seen):
    assert seen["width"] <= NARROW["width"], "the page scrolls sideways"
    assert seen["cut"] == [], "text beyond the edge"
    assert seen["hidden"] == [], "columns of a table beyond the edge"


def test_tables_fit_a_desk(seen):
    assert seen["beside"] == [], "columns of a table beyond the edge"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible(seen, scheme):
    assert seen[scheme] == []


@pytest.mark.parametrize("seen", GUIDES, indirect=True)
def test_columns_line_up_and_stack(seen):
    assert seen["wide"]
    for boxes in seen["wide"]:
        assert len({box["y"] for box in boxes}) == 1, "columns begin at one height"
        assert len({round(box["height"]) for box in boxes}) == 1, "and end at one"
        assert max(box["width"] for box in boxes) - min(box["width"] for box in boxes) < 1
        assert all(a["x"] + a["width"] <= b["x"] for a, b in itertools.pairwise(boxes)), "side by side"
        assert len({tuple(map(round, box["tops"])) for box in boxes}) == 1, "what corresponds is at one height"
        assert not any(box["cut"] for box in boxes), "and all of it can be seen"
    for boxes in seen["narrow"]:
        assert all(a["y"] + a["height"] <= b["y"] for a, b in itertools.pairwise(boxes)), "one below another"
        assert all(box["x"] + box["width"] <= NARROW["width"] and not box["cut"] for box in boxes)


@pytest.mark.parametrize("name", GUIDES)
def test_the_check_is_on_the_page(site, name):
    text = re.sub("<.*?>", "", (site / name).read_text("utf-8"))
    assert text.count("def prove(proof") == 1


MARKED = """column => [...document.querySelectorAll(`.column-${column}:not([hidden]) .differs`)]
    .map(e => e.textContent.trim())"""


def test_differences_are_marked_and_columns_chosen(page, site):
    open_page(page, site, "guides/basic.html")
    marked = {name: page.evaluate(MARKED, name) for name in ("haiku", "linen", "nnx", "core")}
    assert {"hk", "import haiku as hk", "super().__init__(name=name)"} <= {*marked["haiku"]}, "what no other has"
    assert {"nn", "@nn.compact", "features: int"} <= {*marked["linen"]}, "what Haiku has not"
    assert not any("return jax.nn.relu(x)" in text for found in marked.values() for text in found)
    word = page.locator(".column-linen .word.differs").first
    assert word.evaluate("element => getComputedStyle(element).backgroundColor") != "rgba(0, 0, 0, 0)"

    for name in ("haiku", "core"):
        page.locator(f".choose-columns input[value={name}]").uncheck()
    visible = page.locator(".columns").first.locator(".column:visible")
    assert [column.get_attribute("data-column") for column in visible.all()] == ["linen", "nnx"]
    now = {name: page.evaluate(MARKED, name) for name in ("linen", "nnx")}
    assert "features: int" in now["linen"], "against NNX"
    assert "import jax.numpy as jnp" in now["linen"] and "import jax.numpy as jnp" not in marked["linen"]
    tops = page.evaluate(BOXES)[0]
    assert len({tuple(map(round, box["tops"])) for box in tops if box["width"]}) == 1, "lined up anew"
    page.reload()
    assert page.locator(".columns").first.locator(".column:visible").count() == 2, "the choice is kept"
    for name in ("haiku", "core"):
        page.locator(f".choose-columns input[value={name}]").check()
    assert page.evaluate(MARKED, "linen") == marked["linen"]


def test_the_same_weights_have_one_number(page, site):
    open_page(page, site, "guides/batch_norm.html")
    assert len({tuple(map(round, box["tops"])) for box in page.evaluate(BOXES)[-1]}) == 1
    numbers = "e => getComputedStyle(e, '::before').content"
    lines = page.locator(".structures .column-linen .line")
    assert lines.nth(6).evaluate(numbers).startswith("counter") and lines.nth(7).evaluate(numbers) == "none"
    assert lines.nth(7).text_content().strip() == "", "Linen has no counter"


@pytest.mark.parametrize("name", ["guides/basic.html", "start.html", "mapping.html"])
def test_code_is_copied(browser, page, site, name):
    browser.grant_permissions(["clipboard-read", "clipboard-write"])
    open_page(page, site, name)
    block = page.locator("div.highlight:has(button.copybtn)").first
    block.hover()
    block.locator("button.copybtn").click()
    copied = page.evaluate("navigator.clipboard.readText()")
    wanted = block.locator("pre").evaluate("pre => pre.textContent")
    assert copied.strip() == wanted.strip() and copied.strip()


def search(page, site, words):
    page.goto(f"{(site / 'search.html').as_uri()}?q={urllib.parse.quote(words)}")
    return results(page)


def results(page):
    """Returns the pages found, best first, with their anchors; they come one by one."""
    page.wait_for_function("document.querySelector('#search-results h2')?.textContent === 'Search Results'")
    assert page.problems == []
    links = "[...document.querySelectorAll('#search-results li a')].map(a => a.href)"
    folder = page.url.partition("search.html")[0]
    return [link.removeprefix(folder) for link in page.evaluate(links)]


def test_search_finds(page, site):
    open_page(page, site, "index.html")
    page.locator(".search-button__button:visible").first.click()
    page.locator("dialog input[type=search]:visible, .search-button__wrapper input[type=search]:visible").first.fill(
        "plan"
    )
    page.keyboard.press("Enter")
    found = results(page)
    assert len(found) > 5
    assert all("plan" in (site / name.partition("#")[0]).read_text("utf-8").lower() for name in found)


@pytest.mark.parametrize("layer", ["hk.GRU", "nn.ConvLSTMCell", "nnx.MultiHeadAttention", "hk.nets.VectorQuantizerEMA"])
def test_search_finds_a_layer_by_the_name_that_code_has(page, site, layer):
    assert "layers.html" in search(page, site, layer)


def test_an_error_s_text_finds_what_it_means(page, site):
    with pytest.raises(bridges.BridgeError) as err:
        bridges.pure(lambda: bridges.get("net/encoder/w"))({})
    assert search(page, site, str(err.value))[0] == f"errors.html#{type(err.value).__name__.lower()}", "of this case"
    assert search(page, site, "outside of a running context")[0] == "errors.html#contexterror", "a part of it"


def test_every_public_name_has_an_entry(site):
    entries = "".join(file.read_text("utf-8") for file in (site / "api").glob("*.html"))
    explained = (site / "errors.html").read_text("utf-8")
    homes = ("", "haiku_adapter.", "linen_adapter.", "nnx_adapter.", "optax_adapter.", "param_mapping.", "infer.")

    def has(name):
        return any(f'id="bridges.{home}{name}"' in entries for home in homes) or f'id="{name.lower()}"' in explained

    modules = {name for name in bridges.__all__ if importlib.util.find_spec(f"bridges.{name}")}
    names = {*bridges.__all__} - modules - {"Kind"}  # the type of an annotation, which has no text
    assert len(names) > 50 and [name for name in names if not has(name)] == []


def test_the_theme_can_be_switched(page, site):
    open_page(page, site, "index.html")
    seen = set()
    for _ in range(4):
        seen.add(page.evaluate("document.documentElement.dataset.theme"))
        page.locator("button.theme-switch-button:visible").first.click()
        if page.locator("[data-mode=dark]:visible, [data-mode=light]:visible").count():
            page.locator("[data-mode=dark]:visible").first.click()
    assert "dark" in seen
