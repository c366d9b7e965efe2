"""The card's charts, and the sections that they stand in: both from the same rows of the same file.

plots(evidence)        # every chart by name, as SVG: shown on the card and kept beside the run
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from autolora.common.statistics import mean_over_radius
from autolora.training.axes import NO_ATTACK
from stages.card.svg import Point, Series, lines, pairs, percent, plain
from stages.evidence.files import ALPHA_CURVE, EPS_CURVE, FINETUNED, TRAINING, Evidence
from stages.evidence.provenance import locked_params

FEW_CLASSES, SHOWN_CLASSES = 14, 30


def plots(evidence: Evidence) -> dict[str, str]:
    """Every chart by name: drawn once, shown on the card and kept beside the run."""
    rows = evidence.rows(TRAINING)
    found = {
        "by_class": class_chart(evidence),
        "accuracy_over_eps": eps_chart(evidence),
        "alpha_curve": alpha_chart(evidence),
        "validation_accuracy": accuracy_chart(rows),
        "learning_rate": rate_chart(rows),
        "lambdas": lambda_chart(rows),
        "gradient_cosine": cosine_chart(rows),
    }
    return {name: svg for name, svg in found.items() if svg}


# --- classes ----------------------------------------------------------------------------------------------------------


def classes(evidence: Evidence) -> dict[str, Any]:
    found = evidence.robustness["by_class"]
    low, high = (choose(found, key=lambda c: c["robust"]) for choose in (min, max))
    counts = sorted({c["n"] for c in found})
    return {
        "few": len(found) <= FEW_CLASSES,
        "hidden": len(found) > SHOWN_CLASSES,
        "low": (low["class"], percent(low["robust"])),
        "high": (high["class"], percent(high["robust"])),
        "images": f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}",
        "rows": [(str(c["class"]), c["n"], percent(c["clean"]), percent(c["robust"])) for c in found],
    }


def class_chart(evidence: Evidence) -> str:
    found = evidence.robustness["by_class"]
    shown = found if len(found) <= SHOWN_CLASSES else sorted(found, key=lambda c: c["robust"])[:SHOWN_CLASSES]
    words = "; ".join(f"{c['class']}: {percent(c['robust'])} robust, {percent(c['clean'])} clean" for c in shown)
    return pairs("Accuracy by class", words, [(str(c["class"]), c["robust"], c["clean"]) for c in shown])


# --- radius -----------------------------------------------------------------------------------------------------------


def over_eps(evidence: Evidence) -> dict[str, Any]:
    rows = evidence.rows(EPS_CURVE)
    names = {"robust": "this model", "natural": "natural twin"}
    return {
        "expected": _expected(evidence),
        "stronger": _stronger(evidence),
        "attack": ", ".join(sorted({r["attack"] for r in rows if r["attack"] != "none"})),
        "beyond": _beyond(evidence),
        "legend": [(key, text) for key, text in names.items() if any(r["model"] == key for r in rows)],
        "rows": [
            (names.get(r["model"], r["model"]), _number(r["eps"]), _percent(r["accuracy"]), r["attack"]) for r in rows
        ],
    }


def _expected(evidence: Evidence) -> str:
    """The mean accuracy up to twice the threat's radius, of this model and of its twin."""
    most, found = 2 * evidence.robustness["threat"]["eps"], []
    for key, name in (("robust", ""), ("natural", " (natural twin)")):
        curve = [(float(r["eps"]), float(r["accuracy"])) for r in evidence.rows(EPS_CURVE) if r["model"] == key]
        found += [percent(mean_over_radius(curve, most)) + name] if curve else []
    return ", ".join(found)


def _stronger(evidence: Evidence) -> str:
    """What AutoAttack leaves where the curve's attack leaves more."""
    r = evidence.robustness
    eps = r["threat"]["eps"]
    rows = [row for row in evidence.rows(EPS_CURVE) if row["model"] == "robust"]
    quick = [float(row["accuracy"]) for row in rows if math.isclose(float(row["eps"]), eps, rel_tol=1e-4)]
    return percent(r["robust_accuracy"]) if quick and quick[0] > r["robust_accuracy"] else ""


def _beyond(evidence: Evidence) -> str:
    """The points that the chart leaves out, so that its interesting part is wide."""
    limit, scale = _shown_radius(evidence), _radius_scale(evidence)[0]
    rows = [r for r in evidence.rows(EPS_CURVE) if r["model"] == "robust" and float(r["eps"]) > limit]
    return ", ".join(f"{_percent(r['accuracy'])} at {float(r['eps']) * scale:.3g}" for r in rows)


def eps_chart(evidence: Evidence) -> str:
    t = evidence.robustness["threat"]
    (scale, label), limit = _radius_scale(evidence), _shown_radius(evidence)
    series = []
    for key, text in (("robust", "this model"), ("natural", "natural twin")):
        rows = [r for r in evidence.rows(EPS_CURVE) if r["model"] == key and float(r["eps"]) <= limit]
        points = sorted((float(r["eps"]) * scale, float(r["accuracy"])) for r in rows)
        series += [Series(text, key, [x for x, _ in points], [y for _, y in points])] if points else []
    words = "; ".join(
        f"{s.label}: {percent(s.y[0])} at {s.x[0]:.3g}, {percent(s.y[-1])} at {s.x[-1]:.3g}" for s in series
    )
    twin = evidence.robustness.get("baseline") or {}
    left = {"robust": evidence.robustness["robust_accuracy"], "natural": twin.get("robust_accuracy")}
    diamonds = [
        Point(key, t["eps"] * scale, share, "AutoAttack")
        for key, share in left.items()
        if share is not None and any(s.style == key for s in series)
    ]
    words += "".join(f"; AutoAttack leaves {percent(p.y)} of the {p.style} model" for p in diamonds)
    marks = [(t["eps"] * scale, "threat model")]
    return lines("Accuracy over the radius", words, series, label, marks=marks, points=diamonds)


def _shown_radius(evidence: Evidence) -> float:
    return 3.5 * evidence.robustness["threat"]["eps"]


def _radius_scale(evidence: Evidence) -> tuple[float, str]:
    norm = evidence.robustness["threat"]["norm"]
    return (255.0, "radius, in grey levels of 255") if norm == "linf" else (1.0, f"radius, {norm}")


# --- dial -------------------------------------------------------------------------------------------------------------


def dial(evidence: Evidence) -> dict[str, Any]:
    rows = evidence.rows(ALPHA_CURVE)
    words = {
        "branch": "the natural branch",
        "natural": "the naturally tuned twin",
        "critical": "itself with its least critical layer tuned naturally",
    }
    mixed = {r["alpha"] for r in rows if r["toward"] == _direction(rows)}
    if locked_params(evidence.folder).get("merge", {}).get("alpha", "auto") != "auto":
        how = "was set in params.yaml. The curve was measured"
    else:
        how = "was chosen" if len(mixed) > 1 else "is all there is; it was measured"
    table = [
        (r["toward"], r["alpha"], _percent(r["clean"]), _percent(r["robust"]), "chosen" if _true(r["chosen"]) else "")
        for r in rows
    ]
    return {
        "toward": words.get(_direction(rows), _direction(rows)) if len(mixed) > 1 else "",
        "chosen": plain(evidence.robustness["alpha"]),
        "n": rows[0]["n"],
        "how": how,
        "rows": table,
    }


def alpha_chart(evidence: Evidence) -> str:
    every = evidence.rows(ALPHA_CURVE)
    rows = sorted((r for r in every if r["toward"] == _direction(every)), key=lambda r: float(r["alpha"]))
    series = [_column(rows, key, key, key, x="alpha") for key in ("clean", "robust")]
    chosen = evidence.robustness["alpha"]
    words = f"Clean and robust accuracy on the validation part over alpha; {plain(chosen)} was chosen."
    drawn = [s for s in series if s]
    floor = max(0.0, math.floor(10 * min(y for s in drawn for y in s.y) - 0.5) / 10)
    return lines("The dial", words, drawn, "alpha", marks=[(chosen, "chosen")], y_range=(floor, 1.0))


def _direction(rows: list[dict[str, str]]) -> str:
    """The curve that the choice was made on; the file may hold others for comparison."""
    return next((r["toward"] for r in rows if _true(r["chosen"])), rows[0]["toward"])


# --- training ---------------------------------------------------------------------------------------------------------


def training(evidence: Evidence, charts: dict[str, str]) -> dict[str, Any]:
    rows, tuned = evidence.rows(TRAINING), evidence.optional(FINETUNED)
    shown = [
        ("validation_accuracy", "Validation accuracy", [("clean", "clean"), ("robust", "robust (PGD)")], ""),
        ("learning_rate", "Learning rate", [], _rate_note(rows, tuned)),
        ("lambdas", "Loss weights", [("clean", "lambda 1, natural"), ("robust", "lambda 2, distillation")],
         "Both follow the accuracy of the natural branch on the training set."),
        ("gradient_cosine", "Gradient cosine", [], _cosine_note(rows, tuned)),
    ]  # fmt: skip
    return {
        "epochs": len(rows),
        "said": _rate_in_words(tuned),
        "ships": _ships(tuned, evidence.robustness),
        "charts": [
            {"title": title, "legend": legend, "note": note, "svg": Markup(charts[key])}
            for key, title, legend, note in shown
            if key in charts
        ],
        "head": [column.replace("_", " ") for column in rows[0]],
        "rows": [[_number(value) for value in r.values()] for r in rows],
    }


def _ships(tuned: dict[str, Any], r: dict[str, Any]) -> str:
    """Which weights: the rule of `best` keeps the newest that are not surely worse, the others the best."""
    by = "clean" if tuned.get("method") in NO_ATTACK else "robust"
    epoch = f", {tuned['best_epoch']}," if "best_epoch" in tuned else ""
    if "soup" in r:
        return f"Its members were trained alike; what ships is a {r['soup']} soup of them."
    if tuned.get("reference") == "best":
        return f"The last epoch{epoch} that was not surely worse than one before it in {by} validation accuracy ships."
    return f"The epoch{epoch} with the best {by} validation accuracy ships."


def _rate_in_words(tuned: dict[str, Any]) -> str:
    """Whether anything was searched, as far as this run knows."""
    if {"rate", "decay", "gamma"} & set(tuned.get("axes", {})):
        return "A learning rate, a decay or a loss weight was set by hand: whether it was searched, no run knows."
    if tuned.get("reference") in ("best", "slow_start"):
        weights = " and the loss weights set themselves" if tuned.get("method") == "autolora" else ""
        return f"This run searched no hyper-parameter: the learning rate found itself{weights}."
    return "This run searched no hyper-parameter: the learning rate is the published one."


STEPPED = ("vanilla", "twins", "natural", "linear")  # a tenth at two published epochs, but under `best`


def _rate_note(rows: list[dict[str, str]], tuned: dict[str, Any]) -> str:
    stepped = tuned.get("method") in STEPPED and tuned.get("reference") in ("paper", "released")
    if stepped or tuned.get("reference") == "slow_start":
        return "Its course was fixed before the first epoch."
    halved, cooling = _epochs(rows, "halved"), _cooling([float(r["lr"]) for r in rows])
    if halved:
        note = f"Halved after epoch {', '.join(halved)}; the best weights so far were put back"
    else:
        note = "No halving was needed"
    if not cooling or (cooling == 1 and str(len(rows) - 1) in halved):  # that was the halving
        return f"{note}."
    last = f"the last {cooling} epochs" if cooling > 1 else "the last epoch"
    return f"{note}; it cools down over {last}."


def _cooling(rates: list[float]) -> int:
    """How many epochs at the end have a lower rate than the one before."""
    falls = [b < a for a, b in pairwise(rates)]
    return len(falls) if all(falls) else falls[::-1].index(False)


def _cosine_note(rows: list[dict[str, str]], tuned: dict[str, Any]) -> str:
    """The diagnosis: do the natural and the adversarial loss want the same of the weights?"""
    series = _column(rows, "gradient_cosine", "accent", "cosine")
    middle = statistics.median(series.y) if series else 0.0
    verdict = "they pull apart" if middle < 0.2 else "they agree in part" if middle < 0.6 else "they mostly agree"
    autolora = tuned.get("method", "autolora") == "autolora"
    branch = ", which is why the low-rank branch takes the natural gradient" if autolora else ""
    return (
        f"Between the gradients of the natural and the adversarial loss: median {middle:.2f}, {verdict}. Near 0 or "
        f"below, clean accuracy is won against robustness{branch}."
    )


def accuracy_chart(rows: list[dict[str, str]]) -> str:
    series = [_column(rows, "val_clean", "clean", "clean"), _column(rows, "val_robust", "robust", "robust")]
    best = [(float(epoch), "best") for epoch in _epochs(rows, "best")[-1:]]
    best += [(float(epoch), "PGD from here") for epoch in _epochs(rows, "collapsed")]
    best += [(float(epoch), "IDBH from here") for epoch in _epochs(rows, "harder")]
    words = "Clean and robust accuracy on the validation part after each epoch."
    return _over_epochs("Validation accuracy", words, series, marks=best)


def rate_chart(rows: list[dict[str, str]]) -> str:
    halved = _epochs(rows, "halved")
    words = f"Learning rate in each epoch, halved after epochs {', '.join(halved) or 'none'}."
    marks = [(float(epoch), "") for epoch in halved]
    series = [_column(rows, "lr", "accent", "learning rate")]
    return _over_epochs("Learning rate", words, series, marks=marks, y_range=None, y_text=_rate, log=True, steps=True)


def lambda_chart(rows: list[dict[str, str]]) -> str:
    series = [_column(rows, "lambda1", "clean", "lambda 1"), _column(rows, "lambda2", "robust", "lambda 2")]
    words = "Lambda 1 weighs the natural loss, lambda 2 the distillation."
    return _over_epochs("Loss weights", words, series, y_range=None, y_text=plain)


def cosine_chart(rows: list[dict[str, str]]) -> str:
    series = _column(rows, "gradient_cosine", "accent", "cosine")
    if series is None:
        return ""
    words = f"Median {statistics.median(series.y):.2f}, from {min(series.y):.2f} to {max(series.y):.2f}."
    return _over_epochs("Gradient cosine", words, [series], y_range=(min(-0.2, *series.y), 1.0), y_text=plain)


def _rate(value: float) -> str:
    return f"{value:.2g}" if value >= 1e-3 else f"{value:.1e}".replace("e-0", "e-")


def _over_epochs(title: str, words: str, series: Sequence[Series | None], **options: Any) -> str:
    drawn = [s for s in series if s]
    return lines(title, words, drawn, "epoch", dots=False, **options) if drawn else ""


def _epochs(rows: list[dict[str, str]], event: str) -> list[str]:
    return [r["epoch"] for r in rows if event in r["event"].split("+")]


# --- cells of a CSV file ----------------------------------------------------------------------------------------------


def _column(rows: list[dict[str, str]], name: str, style: str, label: str, x: str = "epoch") -> Series | None:
    """A column of a CSV file as a series, without the rows where it is empty."""
    points = [(float(r[x]), float(r[name])) for r in rows if r.get(name, "") not in ("", "nan")]
    return Series(label, style, [a for a, _ in points], [b for _, b in points]) if points else None


def _percent(text: str) -> str:
    return percent(float(text))


def _number(text: str) -> str:
    try:
        return f"{float(text):.4g}"
    except ValueError:
        return text


def _true(text: str) -> bool:
    return text.strip().lower() in ("1", "1.0", "true")
