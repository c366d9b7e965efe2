"""The robustness card: one HTML file with all that is known about a model, for people who must decide about it.

    python -m stages.card [FOLDER]        # reports/card.html from the files of a run, without a registry

No script and no request to anywhere. Words are in page.html, looks in page.css; what each section says is in
sections.py, and in plots.py where it has a chart, drawn from the CSV files, so that page and evidence cannot differ.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from autolora.common.command_line import Command
from autolora.common.errors import first_line
from autolora.common.files import write_text
from autolora.common.statistics import wilson
from stages.card.plots import classes, dial, over_eps, plots, training
from stages.card.sections import (
    attacks,
    beyond,
    checks,
    cost,
    data,
    data_kind,
    parity,
    provenance,
    radius,
    threat,
    twin,
)
from stages.card.strips import Strip, data_uri, strips
from stages.card.svg import STYLE, interval, percent, swatch
from stages.card.what_it_is import model
from stages.common.params import check
from stages.common.runner import StageError
from stages.evidence.checks import in_words, sixteen, worst
from stages.evidence.files import CONTACT_SHEET, Evidence
from stages.evidence.provenance import provenance_of

TEMPLATE = Path(__file__).with_suffix(".html")
CSS = Path(__file__).with_suffix(".css")
SECTIONS = {
    "model": "Model",
    "threat": "Threat",
    "attacks": "Attacks",
    "beyond": "Beyond",
    "classes": "Classes",
    "radius": "Radius",
    "dial": "Dial",
    "training": "Training",
    "examples": "Examples",
    "data": "Data",
    "parity": "Parity",
    "checks": "Checks",
    "provenance": "Provenance",
    "cost": "Cost",
}


def card(
    evidence: Evidence,
    name: str,
    examples: Sequence[Strip],
    source: dict[str, str],
    gates: dict[str, Any],
    charts: dict[str, str],
) -> str:
    """The whole page."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    spent, others = cost(evidence), beyond(evidence)
    empty = [name for name, found in (("cost", spent["rows"]), ("beyond", others)) if not found]
    return template.render(
        **head(evidence),
        name=name,
        style=Markup(CSS.read_text(encoding="utf-8") + STYLE),
        swatch=lambda style: Markup(swatch(style)),
        charts={key: Markup(svg) for key, svg in charts.items()},
        sections=[(a, label) for a, label in SECTIONS.items() if a not in empty],
        badges=badges(evidence),
        model=model(evidence, gates),
        threat=threat(evidence),
        attacks=attacks(evidence),
        twin=twin(evidence),
        beyond=others,
        classes=classes(evidence),
        eps=over_eps(evidence),
        dial=dial(evidence),
        training=training(evidence, charts),
        examples=[asdict(e) for e in examples],
        picture=data_uri(evidence.path(CONTACT_SHEET).read_bytes(), "image/png"),
        data=data(evidence),
        parity=parity(evidence),
        checks=checks(evidence),
        provenance=provenance(evidence, source),
        cost=spent,
        key=evidence.key[:16],
    )


def write_card(folder: str | Path = ".") -> None:
    """The card of the files in a folder."""
    evidence = Evidence(folder)
    register = check(evidence.path("params.yaml")).register
    source, gates = provenance_of(evidence.folder), register.gates.model_dump()
    page = card(evidence, register.name, strips(evidence), source, gates, plots(evidence))
    write_text(evidence.path("reports/card.html"), page)


# --- head -------------------------------------------------------------------------------------------------------------


def head(evidence: Evidence) -> dict[str, Any]:
    r = evidence.robustness
    return {
        "n": f"{r['data']['n']:,}",
        "clean": percent(r["clean_accuracy"]),
        "robust": percent(r["robust_accuracy"]),
        "attack": attack_name(r),
        "version": r["version"],
        "radius": radius(r),
        "seed": r["seed"],
        "deviation": r.get("deviation"),
        "warnings": [f"{c.title}: {c.detail}" for c in sixteen(r["checks"]) if c.verdict == "warn"],
        "figures": figures(r),
    }


def attack_name(r: dict[str, Any]) -> str:
    return f"AutoAttack ({r['version']})" if r["version"] != "fast" else "AutoAttack's fast tier"


def figures(r: dict[str, Any]) -> list[dict[str, Any]]:
    n = r["data"]["n"]
    clean = wilson(round(r["clean_accuracy"] * n), n)
    found = [
        figure("Robust accuracy", "robust", r["robust_accuracy"], r["ci95"]),
        figure("Clean accuracy", "clean", r["clean_accuracy"], clean),
    ]
    if natural := r.get("baseline"):
        found.append(figure("Natural twin, attacked", "natural", natural["robust_accuracy"], natural["ci95"]))
    return found


def figure(name: str, style: str, share: float, bounds: Sequence[float]) -> dict[str, Any]:
    value, low, high = (f"{100 * v:.1f}" for v in (share, *bounds))
    words = f"{name}: {value} percent, 95 percent interval {low} to {high}"
    chart = Markup(interval(share, bounds[0], bounds[1], style, words))
    return {"name": name, "style": style, "value": value, "low": low, "high": high, "chart": chart}


def badges(evidence: Evidence) -> list[tuple[str, str]]:
    """What a reader in a hurry must know, in words and not by colour alone."""
    r, width = evidence.robustness, 100 * (evidence.robustness["ci95"][1] - evidence.robustness["ci95"][0])
    standard = r["version"] in ("standard", "plus", "strong")
    found = [("pass", attack_name(r)) if standard else ("warn", f"{attack_name(r)}: not the standard attack")]
    found += [checks_badge(r["checks"])]
    flips = evidence.label_flips
    found += [("fail", f"ONNX: {flips} labels flip") if flips else ("pass", "ONNX answers as the attacked network")]
    found += [(data_kind(evidence), f"data: {evidence.quality['verdict']}")]
    if width > 10:
        found.append(("warn", f"few images: the interval is {width:.0f} points wide"))
    return found


def checks_badge(rows: list[dict[str, Any]]) -> tuple[str, str]:
    found = sixteen(rows)
    return worst(found), in_words(found)


def main() -> None:
    parser = Command(
        __doc__, reads="params.yaml, data/, models/ and reports/ in FOLDER", writes="reports/card.html there"
    )
    parser.add_argument("folder", nargs="?", default=".", help="of a run (default: here)")
    try:
        write_card(parser.parse_args().folder)
    except (StageError, OSError, ValueError) as error:
        sys.exit(f"card: {first_line(error)}")
