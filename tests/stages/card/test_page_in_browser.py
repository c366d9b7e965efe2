"""The card in a real Chromium: quiet, complete, readable on a phone, in the dark and on paper."""

from __future__ import annotations

import pytest

from stages.card.page import write_card
from tests.browser import browser, executable
from tests.registry.synthetic import make_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(executable() is None, reason="needs Chromium (apt-get install chromium)"),
]

# Of every element with text of its own: contrast of its colour on what lies behind it (WCAG 2.2).
CONTRAST = """
(() => {
  const parse = c => { const m = c.match(/[\\d.]+/g).map(Number);
    return c.startsWith('color(') ? [m[0]*255, m[1]*255, m[2]*255, m[3] ?? 1] : [m[0], m[1], m[2], m[3] ?? 1] };
  const lum = c => { const [r, g, b] = c.slice(0, 3).map(v => { v /= 255;
    return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4 }); return 0.2126*r + 0.7152*g + 0.0722*b };
  const behind = e => { for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor); if (c[3] > 0.5) return c } return [255, 255, 255, 1] };
  const found = [];
  for (const e of document.querySelectorAll('body *')) {
    if (['STYLE', 'TITLE', 'DESC', 'title', 'desc'].includes(e.tagName)) continue;
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    const s = getComputedStyle(e), svg = e instanceof SVGElement;
    const [a, b] = [lum(parse(svg ? s.fill : s.color)), lum(behind(svg ? e.closest('svg').parentElement : e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push([e.textContent.trim().slice(0, 30), Math.round(ratio * 10) / 10]);
  }
  return found;
})()
"""


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("card") / "run")
    write_card(folder)
    return (folder / "reports/card.html").as_uri()


@pytest.fixture(scope="module")
def page():
    with browser() as page:
        yield page


def test_no_error_and_no_request_but_the_page_itself(page, card):
    page.show(card, 1180, 900)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.named("Runtime.exceptionThrown") == []
    assert page.named("Runtime.consoleAPICalled") == []
    assert page.named("Log.entryAdded") == []
    asked = [e["request"]["url"] for e in page.named("Network.requestWillBeSent")]
    assert [url for url in asked if not url.startswith("data:")] == [card]


def test_links_work_and_pictures_are_there(page, card):
    page.show(card, 1180, 900)
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0 && i.alt)")
    count = page.evaluate("document.querySelectorAll('nav a').length")
    assert count >= 12
    for i in range(count):
        page.evaluate(f"document.querySelectorAll('nav a')[{i}].click()")
        assert page.evaluate("document.querySelector(':target') !== null"), i


@pytest.mark.parametrize("width", [320, 390, 768, 1180])
def test_nothing_is_wider_than_the_screen_and_letters_are_large_enough(page, card, width):
    page.show(card, width, 800)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    smallest = page.evaluate(
        "Math.min(...[...document.querySelectorAll('svg text')].map(t => "
        "parseFloat(getComputedStyle(t).fontSize) * t.getScreenCTM().a))"
    )
    assert smallest >= 8.5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(page, card, scheme):
    page.show(card, 1180, 900, scheme)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(15, 20, 24)") == (scheme == "dark")
    assert page.evaluate(CONTRAST) == []


def test_contrast_would_be_noticed(page, card):
    page.show(card, 1180, 900)
    page.evaluate("document.querySelector('.lead').style.color = '#999'")
    assert any("Of 200" in text for text, _ in page.evaluate(CONTRAST))


def test_it_prints(page, card):
    page.show(card, 1180, 900, "dark", media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert page.evaluate(CONTRAST) == []
    assert page.pdf().startswith(b"%PDF")
