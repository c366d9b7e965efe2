"""Is the data fit to train on? Great Expectations on the manifest; a red result stops the pipeline.

    python -m stages.validate       # or: dvc repro validate

data/quality.json is small and the same for the same manifest. Data Docs, for people, are built in reports/data_docs.
"""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from autolora.common.files import file_sha256, replacing, write_json, write_text
from stages.common.command_line import takes_no_arguments
from stages.common.runner import StageError, main, timed
from stages.common.views import ValidateParams, load
from stages.dataset.cells import in_cell
from stages.dataset.page import data_page
from stages.dataset.quality import (
    changed_classes,
    classes,
    declared_classes,
    drift,
    held_out,
    images,
    names,
    read_manifest,
    shares,
    used,
)
from stages.dataset.splits import SPLITS

if TYPE_CHECKING:
    from stages.dataset.expectations import Outcome

MANIFEST, QUALITY, DOCS = Path("data/manifest.csv"), Path("data/quality.json"), Path("reports/data_docs")
PAGE = Path("reports/data.html")
EXAMPLES = 5  # files named per check in quality.json
LISTED = 50  # files named on the terminal


def validate() -> None:
    params = load(ValidateParams)
    with timed("validate", QUALITY):
        manifest = read_manifest(MANIFEST)
        outcomes = _judge(manifest, params)
        quality = _summary(manifest, outcomes)
        write_json(DOCS / "quality.json", quality)  # stays when the stage fails and DVC drops its own
        _write_offending(outcomes)
        write_text(PAGE, data_page(quality, outcomes, manifest, file_sha256(MANIFEST)))
        if quality["critical"]:
            raise StageError(_stop(outcomes, params.data.on_bad_image))
        write_json(QUALITY, quality)
    print(_said(quality))


def _judge(manifest: pd.DataFrame, params: ValidateParams) -> list[Outcome]:
    from stages.dataset.expectations import checks, run  # imported here: Great Expectations takes seconds

    data = params.data
    reference = _reference(data.reference_manifest)
    shutil.rmtree(DOCS, ignore_errors=True)
    size = data.stored_size or data.image_size
    found = checks(data.on_bad_image, declared_classes(manifest), size, reference=reference is not None)
    fractions = {"val": data.validation_fraction, "test": data.test_fraction}
    tables = {
        "images": images(manifest),
        "held_out": held_out(manifest),
        "used": used(manifest),
        "names": names(manifest),
        "classes": classes(manifest, params.seed, fractions),
        "shares": shares(manifest, params.seed, fractions),
    }
    if reference is not None:
        tables |= {"changed_classes": changed_classes(manifest, reference), "drift": drift(manifest, reference)}
    return run(found, tables, DOCS)


def _reference(path: str | None) -> pd.DataFrame | None:
    if path is None:
        return None
    if not Path(path).is_file():
        raise StageError(f"data.reference_manifest is {path}: there is no such file; copy an earlier {MANIFEST} there")
    table = read_manifest(path)
    if used(table).empty:
        raise StageError(
            f"data.reference_manifest is {path}: none of its images was used, so there is nothing to compare"
        )
    return table


def _summary(manifest: pd.DataFrame, outcomes: list[Outcome]) -> dict[str, Any]:
    fit = used(manifest)
    counts = fit["split"].value_counts()
    critical, warnings = (
        [_sentence(o) for o in outcomes if not o.passed and o.check.critical == stops] for stops in (True, False)
    )
    return {
        "verdict": "unfit" if critical else "fit, with warnings" if warnings else "fit",
        "images": {"found": len(manifest), "used": len(fit), **{s: int(counts.get(s, 0)) for s in SPLITS}},
        "classes": int(fit["label"].nunique()),
        "checks": {o.check.name: _check(o) for o in outcomes},
        "critical": critical,
        "warnings": warnings,
    }


def _said(quality: dict[str, Any]) -> str:
    """What a person wants to know who does not open the report."""
    n = quality["images"]
    parts = ", ".join(f"{n[split]:,} {split}" for split in SPLITS)
    used = f"{n['used']:,} of {n['found']:,} images in {quality['classes']} classes are used ({parts})"
    lines = [f"validate: {quality['verdict']}: {used}"]
    lines += [f"  {warning}" for warning in quality["warnings"]]
    if quality["warnings"]:
        lines.append(f"  All of them: {DOCS}/offending.csv; the whole report, with pictures: {PAGE}.")
    return "\n".join(lines)


def _check(outcome: Outcome) -> dict[str, Any]:
    severity = "critical" if outcome.check.critical else "warning"
    record = {"severity": severity, "passed": outcome.passed, "failed": len(outcome.failed), "of": outcome.of}
    examples = [_line(row, detail) for row, detail in outcome.failed[:EXAMPLES]]
    return record | ({"examples": examples} if examples else {})


def _sentence(outcome: Outcome) -> str:
    first = ", ".join(row for row, _ in outcome.failed[:3])
    more = f", and {len(outcome.failed) - 3} more" if len(outcome.failed) > 3 else ""
    return f"{len(outcome.failed)} of {outcome.of} {outcome.check.about}: {first}{more}"


def _line(row: str, detail: str) -> str:
    return f"{row}: {detail}" if detail else row


def _write_offending(outcomes: list[Outcome]) -> None:
    with replacing(DOCS / "offending.csv") as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["severity", "check", "what", "detail"])
        for o in outcomes:
            severity = "critical" if o.check.critical else "warning"
            writer.writerows((severity, o.check.name, in_cell(row), in_cell(detail)) for row, detail in o.failed)


def _stop(outcomes: list[Outcome], on_bad_image: str) -> str:
    lines = ["the data is not fit to train on"]
    for outcome in (o for o in outcomes if not o.passed and o.check.critical):
        lines.append(f"{len(outcome.failed)} of {outcome.of} {outcome.check.about}:")
        lines += [f"  {_line(row, detail)}" for row, detail in outcome.failed[:LISTED]]
        if len(outcome.failed) > LISTED:
            lines.append(f"  ... and {len(outcome.failed) - LISTED} more")
    lines.append(f"All of them: {DOCS}/offending.csv; the whole report, with pictures: {PAGE}.")
    names = {o.check.name for o in outcomes if not o.passed and o.check.critical}
    can_skip = on_bad_image == "stop" and "empty_classes" not in names  # which it does not fill
    lines.append(
        "Mend the data"
        + (
            ", or set data.on_bad_image: skip to go on without the images at fault."
            if can_skip
            else " and run it again."
        )
    )
    return "\n".join(lines)


if __name__ == "__main__":
    takes_no_arguments(__doc__)
    main(validate)
