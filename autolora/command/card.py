"""The card of an attacked file: one HTML page that asks no network for anything."""

from __future__ import annotations

import base64
from html import escape
from typing import Any

import numpy as np
import torch
from torchvision.io import encode_png

from autolora.attacks.report import Report
from autolora.data.examples import Examples, magnified

SHOWN = 6  # adversarial images
CSS = """
:root{color-scheme:light dark;--page:#f5f6f4;--card:#fff;--ink:#16202c;--muted:#4b5563;--line:#dfe3e6;--robust:#0a6ea8;
--clean:#b4530a;--pass:#0b6b4f;--warn:#8a5300;--fail:#b3261e}
@media (prefers-color-scheme:dark){:root{--page:#0f1418;--card:#171d23;--ink:#e9edf1;--muted:#a9b4bf;--line:#2c353e;
--robust:#62b5ea;--clean:#f0a35c;--pass:#7fd8b5;--warn:#f2c26b;--fail:#ff9d94}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:60rem;padding:2rem 1.25rem;background:var(--page);color:var(--ink);
font:16px/1.55 system-ui,sans-serif}
h1{margin:0;font-size:1.9rem;overflow-wrap:anywhere}h2{font-size:1.2rem;margin:0 0 .4rem}
section{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:1.1rem 1.3rem;margin:1.1rem 0}
.figures{display:flex;gap:2.5rem;flex-wrap:wrap}.figures b{display:block;font-size:2.3rem;line-height:1.1}
.robust b{color:var(--robust)}.clean b{color:var(--clean)}.note,td.detail{color:var(--muted);font-size:.93rem}
table{border-collapse:collapse;width:100%}th,td{text-align:left;vertical-align:top;padding:.25rem .6rem .25rem 0}
tr+tr{border-top:1px solid var(--line)}meter{width:9rem}
.pass{color:var(--pass)}.warn{color:var(--warn)}.fail{color:var(--fail)}
.strip{display:flex;gap:.5rem;flex-wrap:wrap}figure{margin:0;width:6.5rem}
img{width:100%;image-rendering:pixelated;border-radius:6px}figcaption{font-size:.8rem;overflow-wrap:anywhere}
"""


def page(record: dict[str, Any], report: Report, examples: Examples, names: list[str]) -> str:
    """All that comes from outside is escaped."""
    model, (low, high) = record["model"], record["ci95"]
    head = (
        f"<h1>{escape(model['name'])}</h1><p class=note>{escape(model['kind'])} · sha256 {model['sha256'][:16]} · "
        f"{record['data']['n']} images of {escape(record['data']['name'])} · seed {record['seed']}</p>"
    )
    figures = (
        "<section class=figures>"
        f"<div class=robust><b>{_percent(record['robust_accuracy'])}</b>stand {escape(record['threat']['text'])}"
        f"<br><span class=note>95 %: {_percent(low)} to {_percent(high)}</span></div>"
        f"<div class=clean><b>{_percent(record['clean_accuracy'])}</b>right without an attack</div></section>"
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(model['name'])} under attack</title><style>{CSS}</style>"
        f"<body>{head}{figures}{_attacks(record)}{_also(record)}{_strips(report, examples, names)}"
        f"{_classes(record)}{_checks(record)}"
        "</body></html>\n"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _attacks(record: dict[str, Any]) -> str:
    said = (
        [f"AutoAttack, version {record['version']}"] if record["version"] != "square" else ["Square, from scores alone"]
    )
    said += [record["deviation"]] if record["deviation"] else []
    said += [record["model"]["left_out"]] if "left_out" in record["model"] else []
    if "agreement" in record["model"]:
        said.append("white-box attacks ran on a torch copy; each success was confirmed by onnxruntime on the file")
    shares = [("no attack", record["clean_accuracy"])]
    shares += [(f"after {one['name']}", one["robust_accuracy"]) for one in record["attacks"]]
    rows = "".join(
        f"<tr><th scope=row>{escape(name)}<td>{_percent(share)}<td><meter max=1 value={share:.4f}></meter>"
        for name, share in shares
    )
    return f"<section><h2>Attacks</h2><p class=note>{escape('; '.join(said))}</p><table>{rows}</table></section>"


def _also(record: dict[str, Any]) -> str:
    if not record.get("also"):
        return ""
    rows = "".join(
        f"<tr><th scope=row>{escape(row['what'])}<td>{_percent(row['accuracy'])}"
        f"<td class=detail>95 %: {_percent(row['ci95'][0])} to {_percent(row['ci95'][1])}"
        for row in record["also"]
    )
    return f"<section><h2>Beyond the threat</h2><table>{rows}</table></section>"


def _strips(report: Report, examples: Examples, names: list[str]) -> str:
    chosen = report.found.nonzero().flatten().tolist()[:SHOWN]
    if not chosen:
        return ""
    shown = "".join(_strip(i, report, examples, names) for i in chosen)
    return f"<section><h2>Adversarial images</h2>{shown}</section>"


def _strip(i: int, report: Report, examples: Examples, names: list[str]) -> str:
    clean, adversarial = examples.images.floats[i], examples.adversarial[i]
    grey, factor = magnified(clean, adversarial)
    label, answer = int(report.y[i]), int(report.fooled[i])
    said = [
        (clean, _name(names, label)),
        (grey, f"difference x {factor:.0f}"),
        (adversarial, f"taken for {_name(names, answer)}"),
    ]
    cells = "".join(
        f'<figure><img alt="" src="{_uri(picture)}"><figcaption>{escape(words)}</figcaption></figure>'
        for picture, words in said
    )
    return f"<div class=strip>{cells}</div>"


def _name(names: list[str], label: int) -> str:
    return names[label] if 0 <= label < len(names) else str(label) if label >= 0 else "no answer (NaN)"


def _uri(picture: np.ndarray) -> str:
    encoded = encode_png(torch.from_numpy(np.rint(picture * 255).clip(0, 255).astype(np.uint8)))
    return "data:image/png;base64," + base64.b64encode(encoded.numpy().tobytes()).decode()


def _classes(record: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><th scope=row>{escape(one['class'])}<td>{one['n']}"
        f"<td>{_percent(one['clean'])}<td>{_percent(one['robust'])}"
        for one in record["by_class"]
    )
    return f"<section><h2>Classes</h2><table><tr><th>class<th>images<th>clean<th>robust{rows}</table></section>"


def _checks(record: dict[str, Any]) -> str:
    rows = "".join(
        f'<tr><th scope=row>{one["number"]}. {escape(one["name"])}<td class="{one["verdict"].replace(" ", "-")}">'
        f"{one['verdict']}<td class=detail>{escape(one['detail'])}"
        for one in record["checks"]
    )
    return f"<section><h2>The sixteen checks</h2><table>{rows}</table></section>"
