"""reports/data.html: what was found of the data, on one page that asks no network for anything.

    write_text("reports/data.html", data_page(quality, outcomes, manifest, manifest_sha256))

Offenders are shown as pictures, near-duplicates as pairs. Names come from other people's files: all are escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2
import pandas as pd
from markupsafe import Markup

from stages.dataset.thumbnails import Thumbnails

if TYPE_CHECKING:
    from stages.dataset.expectations import Outcome

TEMPLATE = Path(__file__).with_suffix(".html")
CSS = Path(__file__).parents[1] / "card" / "page.css"
SHOWN = 24  # offenders of each check
KINDS = {"fit": "pass", "fit, with warnings": "warn", "unfit": "fail"}


class Offender(NamedTuple):
    name: str
    detail: str
    pictures: list[str]  # of it, and where it is a near-duplicate of the other


class Finding(NamedTuple):
    name: str
    about: str
    kind: str  # the badge's colour
    verdict: str
    failed: int
    of: int
    offenders: list[Offender]


def data_page(
    quality: dict[str, Any], outcomes: Sequence[Outcome], manifest: pd.DataFrame, manifest_sha256: str
) -> str:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    thumbnails = Thumbnails(manifest)
    findings = [_finding(outcome, thumbnails) for outcome in outcomes]
    return template.render(
        style=Markup(CSS.read_text(encoding="utf-8")),
        verdict=quality["verdict"],
        kind=KINDS[quality["verdict"]],
        images=quality["images"],
        classes=quality["classes"],
        findings=sorted(findings, key=lambda f: ("fail", "warn", "pass").index(f.kind)),
        manifest_sha256=manifest_sha256,
        made_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _finding(outcome: Outcome, thumbnails: Thumbnails) -> Finding:
    check = outcome.check
    kind = "pass" if outcome.passed else "fail" if check.critical else "warn"
    verdict = {"pass": "holds", "warn": "warning", "fail": "critical"}[kind]
    offenders = [] if outcome.passed else [_offender(*row, thumbnails) for row in outcome.failed[:SHOWN]]
    return Finding(check.name, check.about, kind, verdict, len(outcome.failed), outcome.of, offenders)


def _offender(name: str, detail: str, thumbnails: Thumbnails) -> Offender:
    other = detail.rpartition(" (")[0]  # of a near-duplicate: "cat/7.png (train)"
    return Offender(name, detail, [seen for path in (name, other) if (seen := thumbnails(path))])
