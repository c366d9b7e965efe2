"""A finished cell of a sweep as one row of benchmarks/results/SWEEP.csv: figures, flags of images, curves."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import torch

from autolora.common.files import read_json, write_text
from autolora.common.statistics import mean_over_radius
from autolora.threat import Threat
from autolora.training.settings import Settings, decided
from stages.common.params import Params, check
from stages.estimate.costs import Counts, Price, finetune

RESULTS = Path("benchmarks/results")
PREFIX = "small-"  # of the sweeps whose cells end up on the page
FORWARDS = Price(forward=1, gradient=3, step=3)  # as docs/recipes.md counts
COST = (
    "train",
    "val",
    "forwards",
    "processor_seconds",
    "attack_seconds",
    "threads",
    "machine",
    "python",
)  # in no cache
OWN_AXES = ("data", "recipe", "seed")


@dataclass(frozen=True)
class Row:
    """One cell. Of a try of a search, which ends before anything is attacked, the figures of the test part are None."""

    study: str
    data: str
    recipe: str
    seed: int
    setting: str  # the other axes, as finetune.rate=0.01
    cell: str
    commit: str
    threat: str
    side: int
    train: int | None
    val: int | None
    epochs: int
    rate: float
    val_clean: float
    val_robust: float | None
    forwards: int | None
    processor_seconds: float | None
    attack_seconds: float | None  # of the processor, for the stage `evaluate`
    threads: int | None
    machine: str | None
    python: str | None
    torch: str | None
    version: str | None
    n: int | None
    clean: float | None
    robust: float | None
    expected: float | None  # robustness: the mean over radii up to twice the threat's
    alpha: float | None
    images: str | None  # which ones: a hash of their ids
    guess: float | None  # the share of the most frequent class
    clean_flags: str | None  # a bit an image, in the order of ids
    robust_flags: str | None
    val_robust_by_epoch: str
    cosine_by_epoch: str
    dial: str | None  # alpha:clean/robust on validation images

    def attacked(self) -> bool:
        return self.robust is not None


def bits(flags: np.ndarray) -> str:
    return np.packbits(flags.astype(bool)).tobytes().hex()


def unpacked(text: str, n: int) -> np.ndarray:
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))[:n].astype(bool)


def series(text: str) -> list[float | None]:
    return [None if word == "-" else float(word) for word in text.split()]


def collect(clone: Path) -> list[Row]:
    """All cells that are finished in a clone."""
    files = (clone / ".work/sweeps").glob(f"{PREFIX}*/*/*.json")
    kinds = {"cell.json": row, "diverged.json": lost}
    return [kinds[file.name](file.parent) for file in sorted(files) if file.name in kinds]


def row(folder: Path) -> Row:
    params, training = check(folder / "params.yaml"), read_csv(folder / "reports/training.csv")
    kept = [epoch for epoch in training if "best" in epoch["event"]][-1]
    return Row(
        **which(folder, read_json(folder / "cell.json"), params),
        epochs=len(training),
        rate=float(training[0]["lr"]),
        val_clean=float(kept["val_clean"]),
        val_robust=float(kept["val_robust"]) if kept["val_robust"] else None,
        val_robust_by_epoch=by_epoch(training, "val_robust"),
        cosine_by_epoch=by_epoch(training, "gradient_cosine"),
        **cost(folder, params, training),
        **attacked(folder, params.threat.eps),
    )


def lost(folder: Path) -> Row:
    """A try of a search whose training diverged: it has no figures."""
    params = check(folder / "params.yaml")
    nothing: dict[str, Any] = dict.fromkeys(field.name for field in fields(Row))
    known = which(folder, read_json(folder / "diverged.json"), params) | {
        "epochs": 0, "rate": params.finetune.rate, "val_clean": 0.0, "val_robust_by_epoch": "", "cosine_by_epoch": ""
    }  # fmt: skip
    return Row(**nothing | known)


def which(folder: Path, done: dict[str, Any], params: Params) -> dict[str, Any]:
    axes = done["axes"]
    return {
        "study": folder.parent.name,
        "data": axes["data"],
        "recipe": axes["recipe"],
        "seed": int(axes["seed"]),
        "setting": " ".join(f"{axis}={value}" for axis, value in axes.items() if axis not in OWN_AXES),
        "cell": folder.name,
        "commit": done["commit"][:12],
        "threat": f"{params.threat.norm} {params.threat.eps_text}",
        "side": params.data.image_size,
    }


def by_epoch(training: list[dict[str, str]], column: str) -> str:
    return " ".join(f"{float(epoch[column]):.4g}" if epoch[column] else "-" for epoch in training)


def cost(folder: Path, params: Params, training: list[dict[str, str]]) -> dict[str, Any]:
    """Nothing of a stage that DVC's cache had: times belong to the machine that took them."""
    timing, attack = (
        read_json(file) if (file := folder / f"reports/timing/{stage}.json").is_file() else {}
        for stage in ("finetune", "evaluate")
    )
    found = dict.fromkeys(COST) | {key: (timing or attack).get(key) for key in ("threads", "machine", "python")}
    found["attack_seconds"] = attack.get("processor_seconds")
    if not timing:
        return found
    counts = Counts(timing["images"]["train"], timing["images"]["val"])
    return found | {
        "train": counts.train,
        "val": counts.val,
        "forwards": round(forwards(params, counts, training)),
        "processor_seconds": None if resumed(timing) else timing["processor_seconds"],
    }


def resumed(timing: dict[str, Any]) -> bool:
    """Then the seconds are of the last attempt alone, which its epochs show where the record does not say so."""
    epochs = sum(epoch["seconds"] for epoch in timing["epochs"])
    return bool(timing.get("resumed_after") or timing["seconds"] < epochs)


def forwards(params: Params, counts: Counts, training: list[dict[str, str]]) -> float:
    """Of the training alone. `attack: auto` has taken one gradient an image until the guard went back, if it did."""
    epochs = len(training)
    section = params.finetune.model_copy(update={"epochs": epochs})
    if not one_gradient(params, counts.train):
        return finetune(FORWARDS, counts, section)[0]
    straight = next((i for i, epoch in enumerate(training, start=1) if "collapsed" in epoch["event"]), epochs)
    eps = params.threat.eps if section.attack == "single" else 0.0  # `auto` has no term of ELLE-A
    one, ten = (
        finetune(FORWARDS, counts, section.model_copy(update={"attack": attack}), eps=eps)[0]
        for attack in ("single", "pgd")
    )
    return (straight * one + (epochs - straight) * ten) / epochs


def one_gradient(params: Params, train: int) -> bool:
    """As the run itself decides it."""
    asked, threat = params.finetune, Threat(params.threat.norm, params.threat.eps)
    settings = Settings(threat, asked.method, asked.reference, attack=asked.attack, eps_schedule=asked.eps_schedule)
    return decided(settings, (torch.empty(0), torch.empty(train))).attack != "pgd"


def attacked(folder: Path, eps: float) -> dict[str, Any]:
    keys = (
        "torch", "version", "n", "clean", "robust", "expected", "alpha", "images", "guess",
        "clean_flags", "robust_flags",
    )  # fmt: skip
    if not (folder / "reports/robustness.json").is_file():
        return dict.fromkeys((*keys, "dial"))
    report = read_json(folder / "reports/robustness.json")
    flags = np.load(folder / "reports/robust_flags.npy", allow_pickle=False)
    flags = flags[np.argsort(flags["id"])]
    curve = [point for point in read_csv(folder / "reports/eps_curve.csv") if point["model"] == "robust"]
    dial = read_csv(folder / "reports/alpha_curve.csv")
    return {
        "torch": report["versions"]["torch"],
        "version": report["version"],
        "n": len(flags),
        "clean": report["clean_accuracy"],
        "robust": report["robust_accuracy"],
        "expected": mean_over_radius([(float(p["eps"]), float(p["accuracy"])) for p in curve], 2 * eps),
        "alpha": report["alpha"],
        "images": hashlib.sha256(b"".join(flags["id"].tolist())).hexdigest()[:12],
        "guess": max(one["n"] for one in report["by_class"]) / len(flags),
        "clean_flags": bits(flags["clean"]),
        "robust_flags": bits(flags["robust"]),
        "dial": dial_of(dial),
    }


def dial_of(rows: list[dict[str, str]]) -> str:
    return " ".join(
        f"{float(r['alpha']):g}:{float(r['clean']):.4f}/{float(r['robust']):.4f}"
        for r in rows
        if r.get("toward", "branch") == "branch"
    )


# --- the files -------------------------------------------------------------------------------------------------------


def read_csv(file: Path) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8") as text:
        return list(csv.DictReader(text))


def read(folder: Path) -> list[Row]:
    return [parsed(line) for file in sorted(folder.glob(f"{PREFIX}*.csv")) for line in read_csv(file)]


def parsed(line: dict[str, str]) -> Row:
    return Row(**{name: value_of(line.get(name, ""), kind) for name, kind in get_type_hints(Row).items()})


def value_of(text: str, kind: Any) -> Any:
    first = getattr(kind, "__args__", (kind,))[0]
    return None if text == "" and kind is not first else first(text)


def write(folder: Path, rows: Iterable[Row]) -> None:
    """A file for each study, in a fixed order."""
    studies: dict[str, list[Row]] = {}
    for one in sorted(rows, key=lambda r: (r.study, r.data, r.recipe, r.setting, r.seed)):
        studies.setdefault(one.study, []).append(one)
    for study, some in studies.items():
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([field.name for field in fields(Row)])
        writer.writerows(as_text(one) for one in some)
        write_text(folder / f"{study}.csv", text.getvalue())


def as_text(one: Row) -> Iterator[str]:
    return (
        "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value) for value in astuple(one)
    )


def merged(old: Iterable[Row], new: Iterable[Row]) -> list[Row]:
    """The new row for the old one; but what a cell cost stays known where it came from DVC's cache now.

    A row is known by what stands beside it on the page: of a sweep file that was edited, the cells of today stay.
    """
    known = {_known_by(one): one for one in old}
    for one in new:
        before = known.get(_known_by(one))
        if before and before.cell == one.cell and one.forwards is None:
            attack = before.attack_seconds if one.attack_seconds is None else one.attack_seconds
            one = replace(one, **{name: getattr(before, name) for name in COST} | {"attack_seconds": attack})
        known[_known_by(one)] = one
    return list(known.values())


def _known_by(one: Row) -> tuple[Any, ...]:
    return one.study, one.data, one.recipe, one.seed, one.setting
