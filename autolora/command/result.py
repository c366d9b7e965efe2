"""What an attack has come to, as files: one folder, whole or absent, each file with its hash in the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from autolora.attacks.also import Also
from autolora.attacks.report import Report, by_class
from autolora.command.card import page
from autolora.command.images import Data
from autolora.command.models import Target
from autolora.common.errors import BadArgument
from autolora.common.files import file_sha256, read_json, replacing_folder, write_json, write_text
from autolora.data.examples import Examples, id_column, write_examples
from autolora.data.sample import ids_sha256

REPORT, FLAGS, EXAMPLES, CARD = "report.json", "robust_flags.npy", "adversarial.npz", "card.html"


def refuse_foreign(out: Path) -> None:
    """A folder is replaced as a whole: not one that holds anything else than an attack writes."""
    if not out.exists():
        return
    inside = {file.name for file in out.iterdir()} if out.is_dir() else None
    if inside is None or (inside and not is_a_report(out / REPORT)):
        raise BadArgument("out", str(out), "it is there already, and no attack wrote it: name another folder")
    if foreign := sorted(inside - {REPORT, FLAGS, EXAMPLES, CARD}):
        raise BadArgument("out", str(out), f"it would be replaced, and {foreign[0]} in it is of nobody's attack")


def is_a_report(file: Path) -> bool:
    try:
        return {"robust_accuracy", "attacks", "files"} <= set(read_json(file))
    except (OSError, ValueError, TypeError):
        return False


def record_of(model: Target, data: Data, report: Report, notes: dict[str, Any]) -> dict[str, Any]:
    """As docs/architecture.md says; what needs a twin or our own training is null."""
    return report.as_record() | {
        "model": {"name": model.name, "kind": model.kind, "sha256": model.sha256, **model.notes, **notes},
        "data": {
            "name": Path(data.name).name,
            "split": None,
            "n": len(data.images),
            "of": data.of,
            "ids_sha256": ids_sha256(data.images.ids),
            "stratified": True,
            **data.notes,
        },
        "weights_sha256": model.sha256,
        "alpha": None,
        "baseline": None,
        "mcnemar": None,
        "by_class": by_class(report, data.classes or []),
    }


def flags(report: Report, also: Also) -> np.ndarray:
    more = also.columns()
    names = id_column(report.ids)
    known = [("id", names.dtype.str), ("label", "i8"), ("clean", "?"), ("robust", "?")]
    table = np.zeros(len(report.ids), dtype=known + [(what, column.dtype.str) for what, column in more.items()])
    table["id"], table["label"] = names, report.y.numpy()
    for what, column in {"clean": report.clean.numpy(), "robust": report.robust.numpy(), **more}.items():
        table[what] = column
    return table


def write(out: Path, record: dict[str, Any], found: tuple[Report, Also], data: Data) -> None:
    report, also = found
    examples = Examples(data.images, report.adversarial.numpy(), report.found.numpy())
    with replacing_folder(out) as part:
        np.save(part / FLAGS, flags(report, also))
        write_examples(part / EXAMPLES, examples, str(report.threat))
        hashes = {name: file_sha256(part / name) for name in (FLAGS, EXAMPLES)}
        write_json(part / REPORT, record | {"files": hashes})
        write_text(part / CARD, page(record | {"files": hashes}, report, examples, data.classes or []))
