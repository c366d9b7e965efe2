"""The robustness card: one HTML file with all that is known about a model, for people who must decide about it.

    python -m stages.card [FOLDER]        # writes reports/card.html from the files of a run

No script, no request to anywhere; charts are drawn from the CSV files, so that the page and the evidence cannot differ.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from autolora.files import file_sha256, read_json, write_text
from autolora.statistics import wilson
from stages.charts import STYLE, Series, interval, legend, lines, pairs, percent, plain, power_of_ten
from stages.evidence import ALPHA_CURVE, EPS_CURVE, GALLERY, ONNX, TRAINING, Evidence
from stages.examples import Example, data_uri

CSS = Path(__file__).with_suffix(".css")
MANY_CLASSES = 30


def card(
    evidence: Evidence, name: str, examples: Sequence[Example], lineage: dict[str, str], gates: dict[str, Any]
) -> str:
    """The whole page."""
    charts = plots(evidence)
    sections = [
        ("model", "The model", model(evidence, name, gates)),
        ("threat", "Threat", threat(evidence)),
        ("attacks", "Attacks", attacks(evidence)),
        ("classes", "Classes", by_class(evidence, charts)),
        ("eps", "Radius", over_eps(evidence, charts)),
        ("dial", "Dial", dial(evidence, charts)),
        ("training", "Training", training(evidence, charts)),
        ("examples", "Examples", gallery(evidence, examples)),
        ("data", "Data", data(evidence)),
        ("checks", "Checks", checks(evidence)),
        ("parity", "Parity", parity(evidence)),
        ("lineage", "Lineage", origin(evidence, lineage)),
        ("cost", "Cost", cost(evidence)),
    ]
    links = "".join(f'<li><a href="#{anchor}">{label}</a></li>' for anchor, label, body in sections if body)
    body = "".join(f'<section id="{anchor}">{html}</section>\n' for anchor, _, html in sections if html)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<title>{escape(name)}: robustness card</title><link rel="icon" href="data:,">'
        f"<style>{CSS.read_text(encoding='utf-8')}{STYLE}</style></head>\n<body>"
        f'<a class="skip" href="#content">Skip to the content</a>\n{header(evidence, name)}\n'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n<main id="content">\n{body}</main>\n'
        f"<footer><p>Evidence key <code>{evidence.key[:16]}</code>. Every figure on this page comes from the files that were "
        "registered with the model; intervals are Wilson 95 %.</p></footer></body></html>\n"
    )


def plots(evidence: Evidence) -> dict[str, str]:
    """Every chart by name: drawn once, shown on the card and kept beside the run."""
    return {
        "by_class": class_chart(evidence),
        "accuracy_over_eps": eps_chart(evidence),
        "alpha_curve": alpha_chart(evidence),
        **training_charts(evidence),
    }


# ---- head


def header(evidence: Evidence, name: str) -> str:
    r = evidence.robustness
    n = r["data"]["n"]
    twin = r.get("baseline")
    sentence = (
        f"Of {n:,} test images that no choice was made on, this model reads {percent(r['clean_accuracy'])} rightly as they are, "
        f"and {percent(r['robust_accuracy'])} rightly whatever {attack_name(r)} does to them within {radius(r)}."
    )
    figures = [
        figure("Robust accuracy", "robust", r["robust_accuracy"], r["ci95"], n),
        figure("Clean accuracy", "clean", r["clean_accuracy"], wilson(round(r["clean_accuracy"] * n), n), n),
    ]
    if twin:
        figures.append(figure("Without robust tuning, attacked", "natural", twin["robust_accuracy"], twin["ci95"], n))
    return (
        f'<header><p class="kind">Robustness card</p><h1>{escape(name)}</h1><p class="lead">{sentence}</p>'
        f'<div class="hero">{"".join(figures)}</div>{badges(evidence)}</header>'
    )


def figure(name: str, style: str, share: float, range_: Sequence[float], n: int) -> str:
    words = f"{name}: {percent(share)}, 95 % interval {percent(round(range_[0], 3))} to {percent(round(range_[1], 3))}"
    return (
        f'<div class="figure"><p class="name">{name}</p><p class="big text-{style}">{100 * share:.1f}<small> %</small></p>'
        f'<p class="range">95 % interval {100 * range_[0]:.1f} to {100 * range_[1]:.1f} &middot; n = {n:,}</p>'
        f"{interval(share, range_[0], range_[1], style, words)}</div>"
    )


def badges(evidence: Evidence) -> str:
    """What a reader in a hurry must know, in words and not by colour alone."""
    r, count = evidence.robustness, verdicts(evidence)
    flips = evidence.exported["parity"].get("label_flips_beyond_noise", evidence.exported["parity"]["label_flips"])
    entries = [
        ("pass" if r["version"] in ("standard", "plus") else "warn", attack_name(r)),
        (_worst(count), f"{count['pass']} of {sum(count.values())} checks passed" + _rest(count)),
        (
            "fail" if flips else "pass",
            "ONNX file answers as the attacked network" if not flips else f"parity: {flips} labels flip",
        ),
    ]
    if not evidence.quality_passed:
        entries.append(("fail", "data not fit"))
    if r["data"]["n"] < 500:
        entries.append(("warn", f"few images: interval of {100 * (r['ci95'][1] - r['ci95'][0]):.0f} points"))
    return '<ul class="badges">' + "".join(f"<li>{badge(kind, text)}</li>" for kind, text in entries) + "</ul>"


def verdicts(evidence: Evidence) -> dict[str, int]:
    found = dict.fromkeys(("pass", "warn", "fail", "not run"), 0)
    for check in evidence.robustness["checks"]:
        found[check["verdict"]] += 1
    return found


def _worst(count: dict[str, int]) -> str:
    return "fail" if count["fail"] else "warn" if count["warn"] or count["not run"] else "pass"


def _rest(count: dict[str, int]) -> str:
    return "".join(
        f", {count[v]} {word}" for v, word in (("warn", "warn"), ("fail", "failed"), ("not run", "not run")) if count[v]
    )


def badge(kind: str, text: str) -> str:
    return f'<span class="badge {kind}">{escape(text)}</span>'


def attack_name(r: dict[str, Any]) -> str:
    return (
        f"AutoAttack ({r['version']})"
        if r["version"] != "fast"
        else "the fast tier of AutoAttack (not the standard one)"
    )


def radius(r: dict[str, Any]) -> str:
    t = r["threat"]
    norm = {"linf": "L∞", "l2": "L2", "l1": "L1"}[t["norm"]]
    return f"{norm} {t['text'].split(':')[-1]}"


# ---- sections


def model(evidence: Evidence, name: str, gates: dict[str, Any]) -> str:
    r, finetuned = evidence.robustness, evidence.optional("models/finetuned/finetuned.json")
    facts = {
        "What it is": "an image classifier, fine-tuned adversarially (AutoLoRa, ICLR 2024) from a pre-trained backbone",
        "Reads": f"images of {_shape(evidence)} pixels, floats from 0 to 1; normalising lives inside the file",
        "Answers": f"{len(r['by_class'])} logits: {_classes(evidence)}",
        "Method": f"{finetuned.get('method', 'autolora')}, {finetuned.get('reference', 'paper')} reference",
        "Dial alpha": f"{plain(r['alpha'])} (0 is the robust end, 1 the natural one)",
        "File": f"<code>model.onnx</code>, {evidence.exported['bytes'] / 1e6:.1f} MB, opset {evidence.exported['opset']}",
        "Promotion asks for": _gates(gates),
    }
    return (
        "<h2>What this model is</h2>"
        + dl(facts)
        + '<p class="note">Robust means robust to the threat below and to nothing else: not to other norms or larger radii, not to '
        "rotations, weather, stickers or new cameras, and not on images unlike the test images. Figures speak of the test part of "
        "its data set.</p>"
    )


def _shape(evidence: Evidence) -> str:
    size = evidence.image_size
    return f"{size} × {size}" if size else "the stated size in"


def _classes(evidence: Evidence) -> str:
    names = evidence.classes
    shown = ", ".join(map(escape, names[:12]))
    return shown + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _gates(gates: dict[str, Any]) -> str:
    if not gates:
        return "nothing (no gates in params.yaml)"
    return f"at least {percent(gates['clean'])} clean and {percent(gates['robust'])} robust, the standard attack, no failed check"


def threat(evidence: Evidence) -> str:
    r = evidence.robustness
    t = r["threat"]
    levels = f"{t['eps_255']:g}"
    words = {
        "linf": f"may change every colour value of every pixel by up to {levels} of 255 grey levels, each as it likes",
        "l2": f"may change the image by up to {t['eps']:g} in Euclidean length (all changes squared, summed, rooted; white minus "
        "black is 1)",
        "l1": f"may change the image by up to {t['eps']:g} in the sum of all changes (white minus black is 1)",
    }[t["norm"]]
    return (
        "<h2>Threat model, in words</h2>"
        f"<p>The attacker knows the model completely, its weights included, and {words}. The result must still be a picture: values "
        "stay between black and white. The attacker wins when the label changes to any wrong one. Each image is attacked afresh, "
        "and counts as robust only when every attack fails on it.</p>"
        + dl(
            {
                "Norm and radius": f"{escape(t['text'])} &middot; eps = {t['eps']:.6g} of the pixel range = {levels} grey levels of 255"
            }
        )
    )


def attacks(evidence: Evidence) -> str:
    r = evidence.robustness
    twin = {a["name"]: a["robust_accuracy"] for a in (r.get("baseline") or {}).get("attacks", [])}
    head = ["After", "Still right", "Broken by this attack"] + (["Natural twin"] if twin else [])
    rows, before = [], r["clean_accuracy"]
    base = (r.get("baseline") or {}).get("clean_accuracy")
    rows.append(["no attack", percent(before), "", *([percent(base)] if twin else [])])
    for attack in r["attacks"]:
        share = attack["robust_accuracy"]
        lost = f"{100 * (before - share):.1f} points"
        rows.append(
            [
                escape(attack["name"]),
                percent(share),
                lost,
                *([percent(twin[attack["name"]]) if attack["name"] in twin else ""] if twin else []),
            ]
        )
        before = share
    return (
        f"<h2>Attack by attack</h2><p>{attack_name(r)[0].upper() + attack_name(r)[1:]} runs its attacks one after another, each on "
        f"the images that still stand.{_deviation(r)}</p>"
        + table(head, rows, numeric=(1, 2, 3), caption=f"n = {r['data']['n']:,} images, seed {r['seed']}")
        + _comparison(r)
        + _warnings(r)
    )


def _deviation(r: dict[str, Any]) -> str:
    return f" It deviates from the published one: {escape(str(r['deviation']))}." if r.get("deviation") else ""


def _comparison(r: dict[str, Any]) -> str:
    twin, paired = r.get("baseline"), r.get("mcnemar")
    if not twin or not paired:
        return ""
    gain, price = r["robust_accuracy"] - twin["robust_accuracy"], twin["clean_accuracy"] - r["clean_accuracy"]
    return (
        f"<p>What robustness was bought for: against the same backbone tuned naturally, <b>{100 * gain:+.1f} points robust</b> for "
        f"<b>{-100 * price:+.1f} points clean</b>. On the same images {paired['only_model']} withstand only with this model and "
        f"{paired['only_baseline']} only with its natural twin (McNemar, exact: p {_p(paired['p'])}).</p>"
    )


def _p(p: float) -> str:
    return f"= {p:.3f}" if p >= 0.001 else "&lt; 0.001"


def _warnings(r: dict[str, Any]) -> str:
    if not r["warnings"]:
        return ""
    return f"<h3>Warnings</h3><ul>{''.join(f'<li>{escape(w)}</li>' for w in r['warnings'])}</ul>"


def class_chart(evidence: Evidence) -> str:
    rows = [(str(c["class"]), c["robust"], c["clean"]) for c in _shown_classes(evidence)]
    worst = min(evidence.robustness["by_class"], key=lambda c: c["robust"])
    words = f"Clean and robust accuracy of each class; the weakest is {worst['class']} with {percent(worst['robust'])} robust."
    return pairs("Accuracy by class", words, rows, ("robust", "clean"))


def _shown_classes(evidence: Evidence) -> list[dict[str, Any]]:
    """All classes, or where there are many the weakest of them."""
    found = evidence.robustness["by_class"]
    return found if len(found) <= MANY_CLASSES else sorted(found, key=lambda c: c["robust"])[:MANY_CLASSES]


def by_class(evidence: Evidence, charts: dict[str, str]) -> str:
    found = evidence.robustness["by_class"]
    shown = (
        ""
        if len(found) <= MANY_CLASSES
        else f" Shown are the {MANY_CLASSES} weakest of {len(found)}; the table has all."
    )
    rows = [[escape(str(c["class"])), str(c["n"]), percent(c["clean"]), percent(c["robust"])] for c in found]
    low, high = (f(found, key=lambda c: c["robust"]) for f in (min, max))
    return (
        f"<h2>Class by class</h2><p>Robustness is not shared evenly: <b>{escape(str(low['class']))}</b> keeps {percent(low['robust'])}, "
        f"<b>{escape(str(high['class']))}</b> {percent(high['robust'])}. With {min(c['n'] for c in found)} to "
        f"{max(c['n'] for c in found)} images a class, single classes are known only roughly.{shown}</p>"
        '<p class="legend"><span><b class="text-robust">&#9679;</b> robust</span><span><b class="text-clean">&#9670;</b> clean</span></p>'
        + charts["by_class"]
        + more("The figures", table(["Class", "Images", "Clean", "Robust"], rows, numeric=(1, 2, 3)))
    )


def eps_chart(evidence: Evidence) -> str:
    t = evidence.robustness["threat"]
    scale, label = (255.0, "radius eps, in grey levels of 255") if t["norm"] == "linf" else (1.0, "radius eps")
    series = []
    for key, text in (("robust", "this model"), ("natural", "natural twin")):
        points = sorted(
            (float(r["eps"]) * scale, float(r["accuracy"])) for r in evidence.rows(EPS_CURVE) if r["model"] == key
        )
        if points:
            series.append(Series(text, key, [p[0] for p in points], [p[1] for p in points]))
    words = "Accuracy falls as the radius grows: " + "; ".join(
        f"{s.label} from {percent(s.y[0])} at {plain(round(s.x[0], 2))} to {percent(s.y[-1])} at {plain(round(s.x[-1], 2))}"
        for s in series
    )
    return lines("Accuracy over the radius", words, series, label, marks=[(t["eps"] * scale, "threat model")])


def over_eps(evidence: Evidence, charts: dict[str, str]) -> str:
    rows = evidence.rows(EPS_CURVE)
    kinds = ", ".join(sorted({r["attack"] for r in rows if r.get("attack")}))
    figures = [
        [escape(r["model"]), f"{float(r['eps']):.5g}", percent(round(float(r["accuracy"]), 4)), escape(r["attack"])]
        for r in rows
    ]
    return (
        "<h2>Accuracy over the radius</h2><p>Nobody attacks with exactly the radius that was trained for. The curve must fall, and "
        f"end near zero: where it does not, the attack is too weak to be believed. Attack: {escape(kinds)}.</p>"
        + legend([("robust", "this model"), ("natural", "natural twin")])
        + charts["accuracy_over_eps"]
        + more("The figures", table(["Model", "eps", "Accuracy", "Attack"], figures, numeric=(1, 2)))
    )


def alpha_chart(evidence: Evidence) -> str:
    rows = sorted(evidence.rows(ALPHA_CURVE), key=lambda r: float(r["alpha"]))
    rows = [r for r in rows if r["toward"] == _direction(rows)]
    x = [float(r["alpha"]) for r in rows]
    series = [Series(key, key, x, [float(r[key]) for r in rows]) for key in ("clean", "robust")]
    chosen = float(next((r["alpha"] for r in rows if _true(r["chosen"])), evidence.robustness["alpha"]))
    words = f"Clean and robust accuracy on the validation part for alpha from {plain(x[0])} to {plain(x[-1])}; chosen: {plain(chosen)}."
    return lines("The dial", words, series, "alpha", marks=[(chosen, "chosen")])


def _direction(rows: list[dict[str, str]]) -> str:
    """The curve that the choice was made on; the file may hold others for comparison."""
    return next((r["toward"] for r in rows if _true(r["chosen"])), rows[0]["toward"])


def _true(text: str) -> bool:
    return text.strip().lower() in ("1", "1.0", "true")


def dial(evidence: Evidence, charts: dict[str, str]) -> str:
    rows = evidence.rows(ALPHA_CURVE)
    figures = [
        [
            escape(r["toward"]),
            r["alpha"],
            percent(round(float(r["clean"]), 4)),
            percent(round(float(r["robust"]), 4)),
            "chosen" if _true(r["chosen"]) else "",
        ]
        for r in rows
    ]
    toward = {"branch": "the natural branch", "natural": "the naturally tuned twin"}.get(
        _direction(rows), _direction(rows)
    )
    return (
        f"<h2>The dial between robust and accurate</h2><p>Weights are mixed as theta(alpha), from the robust network (0) toward {escape(toward)} "
        f"(1), folded once before anything was attacked. Alpha was chosen on {escape(str(rows[0]['n']))} validation images, never on "
        "the test part.</p>"
        + legend([("clean", "clean"), ("robust", "robust (PGD)")])
        + charts["alpha_curve"]
        + more("The figures", table(["Toward", "Alpha", "Clean", "Robust", ""], figures, numeric=(1, 2, 3)))
    )


def training_charts(evidence: Evidence) -> dict[str, str]:
    rows = evidence.rows(TRAINING)
    marks = [(float(r["epoch"]), "") for r in rows if "halved" in r["event"]]
    best = [(float(r["epoch"]), "best") for r in rows if "best" in r["event"]][-1:]
    halved = ", ".join(r["epoch"] for r in rows if "halved" in r["event"]) or "never"

    def column(name: str, style: str, label: str) -> Series | None:
        points = [(float(r["epoch"]), float(r[name])) for r in rows if r.get(name) not in (None, "", "nan")]
        return Series(label, style, *zip(*points)) if points else None

    def chart(title: str, words: str, series: list[Series | None], **options: Any) -> str:
        drawn = [s for s in series if s]
        return lines(title, words, drawn, "epoch", dots=False, **options) if drawn else ""

    accuracy = [column("val_clean", "clean", "clean"), column("val_robust", "robust", "robust")]
    lambdas = [column("lambda1", "clean", "lambda 1"), column("lambda2", "robust", "lambda 2")]
    found = {
        "validation_accuracy": chart(
            "Validation accuracy",
            f"Clean and robust (PGD) accuracy on the validation part per epoch; halved at {halved}.",
            accuracy,
            marks=best,
        ),
        "learning_rate": chart(
            "Learning rate",
            f"Learning rate per epoch, halved at epochs {halved}.",
            [column("lr", "accent", "learning rate")],
            y_range=None,
            y_text=power_of_ten,
            log=True,
            marks=marks,
        ),
        "lambdas": chart(
            "Loss weights",
            "Lambda 1 weighs the natural loss, lambda 2 the distillation; both follow the training accuracy.",
            lambdas,
            y_range=None,
            y_text=plain,
        ),
        "gradient_cosine": chart(
            "Gradient cosine",
            "Cosine between the gradients of the natural and the adversarial loss per epoch.",
            [column("gradient_cosine", "accent", "cosine")],
            y_range=None,
            y_text=plain,
        ),
    }
    return {name: svg for name, svg in found.items() if svg}


def training(evidence: Evidence, charts: dict[str, str]) -> str:
    rows = evidence.rows(TRAINING)
    halved = [r["epoch"] for r in rows if "halved" in r["event"]]
    shown = [
        (
            "validation_accuracy",
            "Validation accuracy",
            [("clean", "clean"), ("robust", "robust (PGD)")],
            "The best robust epoch ships.",
        ),
        (
            "learning_rate",
            "Learning rate",
            [],
            f"Halved after epoch {', '.join(halved)}." if halved else "Never halved.",
        ),
        (
            "lambdas",
            "Loss weights",
            [("clean", "λ₁ natural"), ("robust", "λ₂ distillation")],
            "Set by the natural accuracy on the training set.",
        ),
        (
            "gradient_cosine",
            "Gradient cosine",
            [],
            "Near 0 or below, natural and adversarial gradients pull apart: why the branch takes the natural one.",
        ),
    ]
    figures = "".join(
        f"<div><h3>{title}</h3>{legend(entries) if entries else ''}{charts[name]}<p class='note'>{note}</p></div>"
        for name, title, entries, note in shown
        if name in charts
    )
    columns = list(rows[0])
    table_rows = [[escape(_short(r[c])) for c in columns] for r in rows]
    return (
        f"<h2>Training</h2><p>{len(rows)} epochs; no hyper-parameter was searched: learning rate and loss weights set themselves.</p>"
        f'<div class="two">{figures}</div>'
        + more("Every epoch", table([c.replace("_", " ") for c in columns], table_rows))
    )


def _short(text: str) -> str:
    try:
        return f"{float(text):.4g}"
    except ValueError:
        return text


def gallery(evidence: Evidence, examples: Sequence[Example]) -> str:
    words = "<h2>What an attack looks like</h2><p>Each strip: the image as it is, the perturbation (magnified, grey is no change), and their sum."
    if not examples:
        picture = evidence.path(GALLERY)
        uri = data_uri(picture.read_bytes(), "image/png")
        return f'{words}</p><img class="whole" src="{uri}" alt="Test images beside their adversarial examples and the perturbations between them">'
    figures = "".join(
        f'<figure><img class="{"small" if e.size < 100 else ""}" src="{e.strip}" loading="lazy" width="{3 * e.size}" height="{e.size}" '
        f'alt="{escape(e.truth)}, the perturbation, and the sum that the model reads as {escape(e.seen)}">'
        f"<figcaption>{escape(e.truth)}, read as <b>{escape(e.seen)}</b></figcaption></figure>"
        for e in examples
    )
    return f'{words} All of these were read rightly before the attack.</p><div class="gallery">{figures}</div>'


def data(evidence: Evidence) -> str:
    d, passed = evidence.robustness["data"], evidence.quality_passed
    rows = [
        [
            escape(e["name"]),
            badge(
                "pass" if e["success"] else "warn" if e["severity"] != "critical" else "fail",
                "holds" if e["success"] else e["severity"],
            ),
            escape(e["detail"]),
        ]
        for e in evidence.expectations
    ]
    facts = {
        "Data set": escape(str(d["name"])),
        "Attacked images": f"{d['n']:,} of the {escape(str(d['split']))} part, {'drawn evenly from the classes' if d['stratified'] else 'not stratified'}",
        "Their ids": f"sha256 <code>{escape(d['ids_sha256'])}</code>",
    }
    summary = f"{sum(e['success'] for e in evidence.expectations)} of {len(rows)} expectations hold."
    return (
        f"<h2>Data</h2><p>{badge('pass' if passed else 'fail', 'fit to train on' if passed else 'not fit')} {summary if rows else ''}</p>"
        + dl(facts)
        + (more("Every expectation", table(["Expectation", "", "Found"], rows)) if rows else "")
    )


def checks(evidence: Evidence) -> str:
    kinds = {"pass": "pass", "warn": "warn", "fail": "fail", "not run": "none"}
    found = evidence.robustness["checks"]
    rows = [
        [str(c["number"]), escape(c["name"]), badge(kinds[c["verdict"]], c["verdict"]), escape(str(c["detail"]))]
        for c in sorted(found, key=lambda c: c["number"])
    ]
    return (
        f"<h2>{_in_words(len(found))} checks that make the number believable</h2>"
        "<p>Most robustness claims that fell, fell to one of these. They run with every evaluation.</p>"
        + table(["#", "Pitfall", "", "What was found"], rows)
    )


def _in_words(n: int) -> str:
    return "Sixteen" if n == 16 else str(n)


def parity(evidence: Evidence) -> str:
    e = evidence.exported
    p = e["parity"]
    facts = {
        "Largest difference of a logit": f"{p['max_difference']:.2e}",
        "Labels that flip": f"{p['label_flips']}"
        + (f" ({p['label_flips_beyond_noise']} beyond noise)" if p.get("label_flips_beyond_noise") is not None else ""),
        "Batches tried": ", ".join(map(str, p.get("batches", []))),
        "Stored attacks, replayed on the file": _measured(e.get("replay")),
        "Square attack on the file": _measured(e.get("square_onnxruntime")),
    }
    rows = [
        [
            escape(name),
            "written" if v.get("written") else "not written",
            _share(v.get("clean_accuracy")),
            _share(v.get("robust_accuracy")),
            escape(str(v.get("reason") or "")),
        ]
        for name, v in e.get("variants", {}).items()
    ]
    return (
        "<h2>The file is what was attacked</h2><p>The network was attacked in PyTorch and ships as ONNX. Both answer the same images "
        "here; a difference would mean that the number above belongs to something else.</p>"
        + dl({k: v for k, v in facts.items() if v})
        + (
            f"<h3>Smaller variants</h3>{table(['Variant', '', 'Clean', 'Robust', 'Why'], rows, numeric=(2, 3))}"
            if rows
            else ""
        )
    )


def _measured(value: dict[str, Any] | None) -> str:
    if not value or value.get("robust_accuracy") is None:
        return ""
    return f"{percent(round(value['robust_accuracy'], 4))} withstand (n = {value['n']:,})"


def _share(value: float | None) -> str:
    return "" if value is None else percent(round(value, 4))


def origin(evidence: Evidence, lineage: dict[str, str]) -> str:
    lock = evidence.path("dvc.lock")
    facts = {
        "Code (git)": _code(lineage.get("git_revision"))
        + (" with changes not committed" if lineage.get("git_dirty") == "yes" else ""),
        "Data version (DVC)": _code(lineage.get("data_version")),
        "dvc.lock": _code(file_sha256(lock) if lock.is_file() else None),
        "Weights": _code(evidence.robustness["weights_sha256"]),
        "ONNX file": _code(evidence.manifest[ONNX]),
        "Evidence": _code(evidence.key),
        "Measured on": escape(f"{evidence.robustness['device']}, {evidence.robustness['dtype']}"),
        "Versions": escape(", ".join(f"{k} {v}" for k, v in sorted(evidence.robustness["versions"].items()))),
    }
    rows = [[f"<code>{escape(name)}</code>", f"<code>{digest}</code>"] for name, digest in evidence.manifest.items()]
    return (
        "<h2>Lineage</h2><p>All hashes are sha256 unless DVC made them. With the revision and dvc.lock, "
        "<code>dvc repro</code> gives back the same files.</p>"
        + dl(facts)
        + more("Every file", table(["File", "sha256"], rows))
    )


def _code(text: str | None) -> str:
    return f"<code>{escape(text)}</code>" if text else "not known"


def cost(evidence: Evidence) -> str:
    timing = {p.stem: read_json(p) for p in sorted(evidence.path("reports/timing").glob("*.json"))}
    if not timing:
        return ""
    order = ["prepare", "validate", "finetune", "merge", "evaluate", "export", "register"]
    rows = [
        [
            name,
            _seconds(t.get("seconds")),
            f"{t['peak_memory_mb']:,} MB" if t.get("peak_memory_mb") else "",
            escape(_speed(t)),
            escape(str(t.get("machine", ""))),
        ]
        for name, t in sorted(timing.items(), key=lambda item: order.index(item[0]) if item[0] in order else 99)
    ]
    return (
        "<h2>Cost</h2><p>As measured on the machine that ran each stage; these figures change at every run and nothing depends on them. "
        f"{_accelerator_hours(timing)}</p>"
        + table(["Stage", "Time", "Peak memory", "Speed", "Machine"], rows, numeric=(1, 2))
    )


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    if value < 120:
        return f"{value:.1f} s"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"


def _speed(t: dict[str, Any]) -> str:
    found = {k: v for k, v in t.items() if "per_second" in k and isinstance(v, int | float)}
    return ", ".join(f"{v:,.0f} {k.replace('_per_second', '').replace('_', ' ')}/s" for k, v in found.items())


def _accelerator_hours(timing: dict[str, Any]) -> str:
    hours = sum(t.get("gpu_hours", 0) or 0 for t in timing.values())
    total = sum(t.get("seconds", 0) or 0 for t in timing.values())
    return (
        f"In all {_seconds(total)}, of which {hours:.2f} GPU hours."
        if hours
        else f"In all {_seconds(total)}, without a GPU."
    )


# ---- parts


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numeric: Sequence[int] = (), caption: str = "") -> str:
    def kind(i: int) -> str:
        return ' class="n"' if i in numeric else ""

    top = "".join(f'<th scope="col"{kind(i)}>{h or "<span aria-hidden=true></span>"}</th>' for i, h in enumerate(head))
    body = "".join(
        "<tr>"
        + "".join(f'<th scope="row">{c}</th>' if i == 0 else f"<td{kind(i)}>{c}</td>" for i, c in enumerate(row))
        + "</tr>"
        for row in rows
    )
    title = f"<caption>{caption}</caption>" if caption else ""
    return f'<div class="scroll" tabindex="0"><table>{title}<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def dl(facts: dict[str, str]) -> str:
    return "<dl>" + "".join(f"<dt>{key}</dt><dd>{value}</dd>" for key, value in facts.items()) + "</dl>"


def more(title: str, body: str) -> str:
    return f"<details><summary>{title}</summary>{body}</details>"


if __name__ == "__main__":
    from stages.examples import gallery as examples
    from stages.mirror import lineage as lineage_of
    from stages.params import check

    here = Evidence(sys.argv[1] if len(sys.argv) > 1 else ".")
    params = check(here.path("params.yaml")).register
    shown = examples(here, here.classes)
    write_text(
        here.path("reports/card.html"),
        card(here, params.name, shown, lineage_of(here.folder), params.gates.model_dump()),
    )
