"""What a reader does: pages load, columns line up or stack, code is copied, search finds, links lead on, dark is legible."""

from __future__ import annotations

import itertools
import os
import pathlib

import pytest

import bridges
from tests.site.conftest import NARROW, WIDE

FOLDER = pathlib.Path(os.environ.get("BRIDGES_SITE") or "unbuilt")
PAGES = sorted(
    file.relative_to(FOLDER).as_posix()
    for file in FOLDER.rglob("*.html")
    if not file.relative_to(FOLDER).parts[0].startswith("_")
)
GUIDES = [name for name in PAGES if name.startswith("guides/") and not name.endswith("index.html")]

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


def open_page(page, site, name, size=WIDE):
    page.set_viewport_size(size)
    page.goto(f"{(site / name).as_uri()}")
    page.wait_for_function("document.readyState === 'complete'")


@pytest.mark.parametrize("name", PAGES)
def test_a_page_loads_and_its_links_lead_somewhere(page, site, name):
    open_page(page, site, name)
    assert page.problems == []
    ids = {}
    for link in page.evaluate(LINKS):
        target, _, anchor = link.removeprefix("file://").partition("#")
        file = pathlib.Path(target.partition("?")[0])
        assert file.exists(), f"{name} links to {target}"
        if anchor and file.suffix == ".html":
            text = ids.setdefault(file, file.read_text("utf-8"))
            assert f'id="{anchor}"' in text, f"{name} links to #{anchor} of {file.name}"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_a_phone(page, site, name):
    open_page(page, site, name, NARROW)
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"], "the page scrolls sideways"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_text_is_legible(page, site, name, scheme):
    page.emulate_media(color_scheme=scheme)
    open_page(page, site, name)
    page.add_style_tag(content="* { transition: none !important }")  # colours as they will be
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    assert page.evaluate(CONTRAST) == []


@pytest.mark.parametrize("name", GUIDES)
def test_columns_line_up_and_stack(page, site, name):
    open_page(page, site, name)
    rows = page.locator(".columns")
    assert rows.count() > 0
    assert page.locator("div.highlight", has_text="def prove(proof").count() == 1, "and the check is on the page"
    for number in range(rows.count()):
        boxes = [column.bounding_box() for column in rows.nth(number).locator(".column").all()]
        assert len({box["y"] for box in boxes}) == 1, "columns begin at one height"
        assert len({round(box["height"]) for box in boxes}) == 1, "and end at one"
        assert max(box["width"] for box in boxes) - min(box["width"] for box in boxes) < 1
        assert all(a["x"] + a["width"] <= b["x"] for a, b in itertools.pairwise(boxes)), "side by side"
    page.set_viewport_size(NARROW)
    for number in range(rows.count()):
        boxes = [column.bounding_box() for column in rows.nth(number).locator(".column").all()]
        assert all(a["y"] + a["height"] <= b["y"] for a, b in itertools.pairwise(boxes)), "one below another"
        assert all(box["x"] + box["width"] <= NARROW["width"] for box in boxes)


def test_differences_are_marked_and_columns_chosen(page, site):
    open_page(page, site, "guides/basic.html")
    line = page.locator(".column-haiku .line", has_text="return jax.nn.relu(x)").first
    other = page.locator(".column-haiku .line", has_text="class Block(hk.Module)").first
    background = "element => getComputedStyle(element).backgroundColor"
    assert line.evaluate(background) == "rgba(0, 0, 0, 0)" != other.evaluate(background)
    for name in ("linen", "core"):
        page.locator(f".choose-columns input[value={name}]").uncheck()
    visible = page.locator(".columns").first.locator(".column:visible")
    assert [column.get_attribute("data-column") for column in visible.all()] == ["haiku", "nnx"]
    page.reload()
    assert page.locator(".columns").first.locator(".column:visible").count() == 2, "the choice is kept"
    for name in ("linen", "core"):
        page.locator(f".choose-columns input[value={name}]").check()


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
    open_page(page, site, "index.html")
    page.locator(".search-button__button:visible").first.click()
    page.locator("dialog input[type=search]:visible, .search-button__wrapper input[type=search]:visible").first.fill(
        words
    )
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-results li a")
    assert page.problems == []
    return [pathlib.Path(link.evaluate("a => a.pathname")) for link in page.locator("#search-results li a").all()]


@pytest.mark.parametrize("word", ["BatchNorm", "plan"])
def test_search_finds(page, site, word):
    assert all(word.lower() in file.read_text("utf-8").lower() for file in search(page, site, word))


def test_the_words_of_an_error_find_what_it_means(page, site):
    assert "errors.html" in [file.name for file in search(page, site, "outside of a running context")]


def test_every_public_name_has_an_entry(site):
    entries = "".join(file.read_text("utf-8") for file in (site / "api").glob("*.html"))
    explained = (site / "errors.html").read_text("utf-8")
    homes = ("", "haiku_adapter.", "linen_adapter.", "nnx_adapter.", "optax_adapter.", "param_mapping.", "infer.")

    def has(name):
        return any(f'id="bridges.{home}{name}"' in entries for home in homes) or f'id="{name.lower()}"' in explained

    names = [n for n in bridges.__all__ if callable(getattr(bridges, n))]
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
