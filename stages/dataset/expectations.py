"""What is expected of the data, as Great Expectations suites, one per table of stages.dataset.quality; and their run.

    outcomes = run([Check("decoding", ...), ...], tables, docs="reports/data_docs")

Import this late: Great Expectations takes seconds to load.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape, unescape
from itertools import groupby
from pathlib import Path
from typing import Any

os.environ["GX_ANALYTICS_ENABLED"] = "false"  # before the import, or it reports home

import great_expectations as gx
import pandas as pd
from great_expectations.core.run_identifier import RunIdentifier
from great_expectations.data_context.types.base import ProgressBarsConfig
from great_expectations.execution_engine import PandasExecutionEngine
from great_expectations.expectations.expectation import ColumnMapExpectation
from great_expectations.expectations.metadata_types import FailureSeverity
from great_expectations.expectations.metrics import ColumnMapMetricProvider, column_condition_partial

from stages.dataset.quality import DECODING

E = gx.expectations
FETCHES = (
    '<p style="margin:0;padding:.4rem 1rem;background:#fbf0d9;color:#16202c">This report fetches its scripts and looks '
    "from other hosts. <code>reports/data.html</code> says the same, with pictures, and asks no network.</p>"
)
CRITICAL, WARNING = FailureSeverity.CRITICAL, FailureSeverity.WARNING


class ImageDecodes(ColumnMapMetricProvider):
    """stages.prepare tried to decode each image, and wrote the reason where it could not."""

    condition_metric_name = "column_values.image_decodes"

    @column_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column: pd.Series, **kwargs: Any) -> pd.Series:
        return ~column.str.partition(":")[0].isin(DECODING)


class ExpectImagesToDecode(ColumnMapExpectation):
    """Expect every image to decode; the column holds the reason why one does not."""

    map_metric = "column_values.image_decodes"
    success_keys = ("mostly",)


@dataclass(frozen=True)
class Check:
    name: str
    table: str
    expectation: Any
    about: str  # "{n} images do not decode"
    row: str = "path"  # the column that names a row
    detail: str = ""  # the column that says what is wrong with it

    @property
    def critical(self) -> bool:
        return self.expectation.severity == CRITICAL


@dataclass(frozen=True)
class Outcome:
    check: Check
    passed: bool
    of: int
    failed: list[tuple[str, str]]  # (row, detail)


def checks(on_bad_image: str, declared: Sequence[str], stored_size: int, *, reference: bool) -> list[Check]:
    """All of them. What `data.on_bad_image: skip` leaves out of training is only a warning."""
    bad = CRITICAL if on_bad_image == "stop" else WARNING
    null, between = E.ExpectColumnValuesToBeNull, E.ExpectColumnValuesToBeBetween
    found = [
        Check("decoding", "images", ExpectImagesToDecode(column="reason", severity=bad), "cannot be decoded"),
        Check("placement", "images", null(column="placement", severity=bad), "are not where an image can be used"),
        Check("two_labels", "images", null(column="two_labels", severity=bad), "lie under two labels"),
        Check("two_splits", "images", null(column="two_splits", severity=bad), "lie in two splits"),
        Check("repeated", "images", null(column="repeated", severity=WARNING), "repeat another, and are left out"),
        Check("ignored", "images", null(column="ignored", severity=WARNING), "are no images by their name"),
        Check("size", "images", between(column="short_side", min_value=stored_size / 2, severity=WARNING),
              f"are enlarged more than twice to {stored_size} pixels"),
        Check("aspect", "images", between(column="aspect", max_value=4, severity=WARNING),
              "are more than four times as long as wide: most of each is cut off"),
        Check("blank", "images", between(column="std", min_value=2, severity=WARNING), "are blank"),
        Check("near_duplicates", "held_out", null(column="near_duplicate", severity=WARNING),
              "images of val and test look like one nearer to training"),
        Check("declared_classes", "used", E.ExpectColumnDistinctValuesToEqualSet(
            column="label", value_set=[escape(name) for name in declared], severity=bad),
            "classes have no image that can be used"),
        Check("alike_classes", "names", null(column="alike", severity=WARNING),
              "classes have names that read the same as another's: put their images together, if they are one",
              "class", "alike"),
        Check("empty_classes", "classes", between(column="images", min_value=1, severity=CRITICAL),
              "parts of classes are empty", "place", "remedy"),
        Check("small_classes", "classes", between(column="train_images", min_value=10, severity=WARNING),
              "classes have fewer than 10 images to train on", "class"),
        Check("balance", "classes", between(column="rarer_than_largest", max_value=10, severity=WARNING),
              "classes are over ten times rarer than the largest", "class"),
        Check("shares", "shares", between(column="deviation", max_value=4, severity=WARNING),
              "splits have not the share asked for", "split", "share"),
    ]  # fmt: skip
    if reference:
        found += [
            Check("new_classes", "changed_classes", between(column="then", min_value=1, severity=WARNING),
                  "classes are new since the reference", "class"),
            Check("vanished_classes", "changed_classes", between(column="now", min_value=1, severity=WARNING),
                  "classes of the reference have vanished", "class"),
            Check("drift", "drift", between(column="beyond_chance", max_value=0.05, severity=WARNING),
                  "statistics have drifted since the reference", "statistic"),
        ]  # fmt: skip
    return found


def run(found: Sequence[Check], tables: Mapping[str, pd.DataFrame], docs: Path) -> list[Outcome]:
    """Every check on its table; Data Docs beside them, with their own dates: they are for people, not for DVC."""
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    context.add_data_docs_site("docs", _site(docs))
    pandas = context.data_sources.add_pandas("manifest")
    outcomes = []
    for table, group in groupby(found, key=lambda check: check.table):
        batch = pandas.add_dataframe_asset(table).add_batch_definition_whole_dataframe("all")
        outcomes += _run_table(context, table, list(group), batch, tables[table])
    context.build_data_docs(site_names=["docs"])  # once: as an action of each checkpoint it takes three times as long
    for page in docs.rglob("*.html"):
        _say_that_it_fetches(page)
    return outcomes


def _say_that_it_fetches(page: Path) -> None:
    """Its scripts and looks come from other hosts, and without a network it is bare: there is a page of ours."""
    html = page.read_text(encoding="utf-8")
    page.write_text(re.sub(r"<body[^>]*>", lambda body: body[0] + FETCHES, html, count=1), encoding="utf-8")


def _site(folder: Path) -> Any:
    store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder.resolve())}
    return {
        "class_name": "SiteBuilder",
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
        "store_backend": store,
    }


def _run_table(context: Any, table: str, found: list[Check], batch: Any, frame: pd.DataFrame) -> list[Outcome]:
    suite = context.suites.add(gx.ExpectationSuite(name=table, expectations=[check.expectation for check in found]))
    definition = context.validation_definitions.add(gx.ValidationDefinition(name=table, data=batch, suite=suite))
    checkpoint = context.checkpoints.add(
        gx.Checkpoint(
            name=table,
            validation_definitions=[definition],
            result_format={"result_format": "COMPLETE", "partial_unexpected_count": 20},
        )
    )
    told = {"batch_parameters": {"dataframe": _escaped(frame)}, "run_id": RunIdentifier(run_name="validate")}
    result = next(iter(checkpoint.run(**told).run_results.values()))
    by_id = {r.expectation_config.id: r for r in result.results}
    return [_outcome(check, by_id[check.expectation.id], frame) for check in found]


def _escaped(frame: pd.DataFrame) -> pd.DataFrame:
    """Data Docs show names as they are given, and a file may be called <script>: they are given escaped ones."""
    return frame.apply(lambda column: column.map(lambda cell: escape(cell) if isinstance(cell, str) else cell))


def _outcome(check: Check, result: Any, frame: pd.DataFrame) -> Outcome:
    if result.exception_info.get("raised_exception"):
        raise RuntimeError(f"expectation {check.name} did not run: {result.exception_info['exception_message']}")
    if "unexpected_index_list" not in result.result:  # about the table as a whole
        missing = {unescape(name) for name in check.expectation.value_set} - set(frame[check.expectation.column])
        return Outcome(
            check, result.success, len(check.expectation.value_set), [(name, "") for name in sorted(missing)]
        )
    rows = frame.loc[result.result["unexpected_index_list"] or []]
    details = rows[check.detail or check.expectation.column]
    return Outcome(check, result.success, len(frame), list(zip(rows[check.row].map(str), details.map(_text))))


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
