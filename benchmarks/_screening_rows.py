"""The rows of benchmarks.screening: what is changed, one fine-tuning a row, and the file that keeps them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from autolora.common.files import locked, write_text
from autolora.training.controllers import rise
from benchmarks._report_cells import unpacked

RESULTS, KEPT = Path("benchmarks/results/screening.csv"), Path(".work/screening")
EPOCHS = 40
MEASURES = ("clean", "robust")
DEFAULT = "default"
CHANGES: dict[str, dict[str, Any]] = {  # each an axis of autolora.finetune; what a loss needs beside it comes with it
    DEFAULT: {"eps_schedule": "constant", "augmentation": "crop_flip"},  # which the changes keep, but for their own
    "pgd": {"attack": "pgd"},
    "vanilla": {"method": "vanilla"},
    "madry": {"method": "madry"},
    "arow": {"method": "arow"},
    "mart": {"method": "mart"},
    "smoothing": {"smoothing": 0.1},
    "weight_attack": {"weight_attack": 0.005},
    "average": {"average": 0.98},
    "robust_head": {"start": "robust_head"},
    "idbh": {"augmentation": "idbh"},
    "harder": {"augmentation": "auto"},  # idbh from where training is apart from validation
    "cutmix": {"augmentation": "cutmix"},
    "ramp": {"eps_schedule": "ramp"},
    "slow_start": {"reference": "slow_start", "attack": "single"},
    "lora": {"method": "madry", "trains": "lora"},
    "prominent": {"method": "vanilla", "trains": "prominent"},
}
NATURAL: dict[str, dict[str, Any]] = {"natural": {"method": "natural", "eps_schedule": "auto"}}  # it knows no eps
RATES = ("0.003", "0.01", "0.03", "0.1")
BEFORE = "0.01"  # the first rate of every fine-tuning before it found itself
SEARCHED = (DEFAULT, "vanilla", *NATURAL)  # whose first rate finds itself, and is held against the grid


def at_rate(change: str, rate: str) -> str:
    """The name of a change at a rate of the grid."""
    return rate if change == DEFAULT else f"{change}-{rate}"


ALL = CHANGES | NATURAL
ALL |= {at_rate(change, rate): ALL[change] | {"rate": float(rate)} for change in SEARCHED for rate in RATES}


@dataclass(frozen=True)
class Row:
    net: str
    data: str
    change: str
    epochs: int
    seed: int
    on: str
    n: int
    clean: float
    robust: float
    seconds: float  # of the processor, for the fine-tuning
    rate: float
    train_accuracy: float  # of the natural images in training, in the kept epoch
    val_robust: float
    collapsed: int  # times the guard went back
    clean_flags: str
    robust_flags: str
    machine: str = ""  # where it was trained; of the oldest rows unknown

    @property
    def diverged(self) -> bool:
        return self.train_accuracy == self.val_robust == self.clean == 0

    def key(self) -> tuple[Any, ...]:
        return self.net, self.data, self.change, self.epochs, self.seed, self.on


def shares(rows: Sequence[Row], what: str) -> np.ndarray:
    """Of each image the share of the seeds under which it is right."""
    return np.mean([unpacked(getattr(row, f"{what}_flags"), row.n) for row in rows], axis=0)


def paired(before: Sequence[Row], now: Sequence[Row], what: str) -> tuple[float, float]:
    """The rise in points, and its two-sided p: on the same images, each counted once for all seeds."""
    old, new = shares(before, what), shares(now, what)
    return 100 * float((new - old).mean()), math.erfc(abs(rise(old.tolist(), new.tolist())) / math.sqrt(2))


def read() -> list[Row]:
    if not RESULTS.is_file():
        return []
    kinds = get_type_hints(Row)
    with open(RESULTS, newline="", encoding="utf-8") as text:
        return [Row(**{name: kinds[name](value) for name, value in line.items()}) for line in csv.DictReader(text)]


def added(row: Row) -> None:
    """Two processes may be at it, on two sets."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    with locked(KEPT / "lock", wait=True):
        writer.writerows(asdict(one) for one in sorted([*read(), row], key=Row.key))
        write_text(RESULTS, text.getvalue())
    print(*row.key(), f"clean {row.clean} robust {row.robust} (n = {row.n}), {row.seconds} s", flush=True)
