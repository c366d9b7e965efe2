"""reports/data.html, and Great Expectations' report beside it: what was found is shown, and names stay text."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from stages.common.runner import StageError
from stages.validate import validate
from tests.stages.dataset.pictures import encoded, fill, picture

HOSTILE = "<img src=x onerror=alert(1)>.png"  # a file of that name
CLASS = "<b onclick=alert(2)>"


class Tags(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.found, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def page(workspace):
    return (workspace.folder / "reports/data.html").read_text(encoding="utf-8")


def split_in_two(workspace):
    """Given parts, so that the pair below is in two of them."""
    for split, first in (("train", 0), ("val", 30), ("test", 60)):
        fill(workspace.raw / split, images=12, first=first)


@pytest.fixture
def judged(workspace):
    split_in_two(workspace)
    picture(999).save(workspace.raw / "train/dog" / HOSTILE)
    near = picture(999)
    near.putpixel((0, 0), (0, 0, 0))
    near.save(workspace.raw / "test/dog/near.png")
    workspace.prepare()
    validate()
    return workspace


def test_a_near_duplicate_is_shown_beside_what_it_looks_like(judged):
    tags = Tags(page(judged))
    pictures = [a for tag, a in tags.found if tag == "img" and a["src"].startswith("data:image/png")]
    assert [a["alt"] for a in pictures] == ["test/dog/near.png", f"train/dog/{HOSTILE} (train)"]
    text = " ".join(tags.text.split())
    assert "1 of 49 images of val and test look like one nearer to training" in text
    assert f"near.png beside train/dog/{HOSTILE} (train)" in text
    assert "data/manifest.csv (sha256" in text


def test_it_asks_no_other_host(judged):
    for tag, attributes in Tags(page(judged)).found:
        for name in ("src", "href"):
            assert not re.match(r"(https?:)?//", attributes.get(name, "")), (tag, attributes)
        assert tag != "script"


def test_a_hostile_name_stays_text_in_both_reports(judged):
    assert HOSTILE in Tags(page(judged)).text
    reports = [judged.folder / "reports/data.html", *judged.folder.glob("reports/data_docs/**/*.html")]
    assert len(reports) > 5
    assert any("onerror=alert(1)" in report.read_text(encoding="utf-8") for report in reports[1:])  # it is told there
    for report in reports:
        for tag, attributes in Tags(report.read_text(encoding="utf-8")).found:
            assert not {"onerror", "onclick"} & {name for name in attributes if "alert" in (attributes[name] or "")}, (
                report,
                tag,
            )


def test_a_hostile_class_is_compared_as_it_is_called(workspace):
    fill(workspace.raw, classes=("cat", CLASS))
    workspace.prepare()
    validate()
    assert 'declared classes</th><td><span class="badge pass">' in page(workspace)


def test_the_other_report_says_what_it_fetches_and_its_run_has_a_name(judged):
    reports = list(judged.folder.glob("reports/data_docs/**/*.html"))
    assert all("fetches its scripts and looks from other hosts" in r.read_text(encoding="utf-8") for r in reports)
    assert {p.parts[-3] for p in judged.folder.glob("reports/data_docs/validations/*/*/*/*.html")} == {"validate"}


def test_what_stops_is_on_the_page_too(workspace):
    fill(workspace.raw)
    (workspace.raw / "cat/broken.png").write_bytes(encoded(picture(1))[:200])
    workspace.prepare()
    with pytest.raises(StageError, match=r"reports/data\.html"):
        validate()
    text = " ".join(Tags(page(workspace)).text.split())
    assert "Unfit" in text
    assert "cat/broken.png" in text
    assert "The pipeline stops here" in text
