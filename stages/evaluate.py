"""AutoAttack on the test part, on the network that ships and on its naturally tuned twin.

    python -m stages.evaluate          (or `dvc repro evaluate`; settings: threat, evaluate and seed in params.yaml)

reads   models/merged.safetensors, models/finetuned/, data/prepared/test/, data/manifest.csv
writes  reports/robustness.json, metrics.json, robust_flags.npy, eps_curve.csv, adversarial.png, models/adversarial.npz

Killed, it goes on from the last finished images (`.work/evaluate/<key>`). It uses every GPU, or every core
(`AUTOLORA_PROCESSES` sets the number; torchrun works too); no image's flag depends on that.
"""

from __future__ import annotations

import csv
import hashlib
import io
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from torch import Tensor
from tqdm import tqdm

from autolora.attacks.also import Also
from autolora.attacks.also_flags import WORD
from autolora.attacks.autoattack import autoattack_of
from autolora.attacks.checks import curve_agrees
from autolora.attacks.engine.prepare import device_of
from autolora.attacks.eps_curve import Point, curve_of
from autolora.attacks.evaluation import Settings
from autolora.attacks.report import Report, by_class
from autolora.attacks.under_corruptions import under_corruptions
from autolora.attacks.verdicts import Check, ordered, require
from autolora.backbones.classifier import Classifier, load_classifier, read_notes
from autolora.common import distributed
from autolora.common.code import code_sha256
from autolora.common.files import read_json, replacing, write_json, write_text
from autolora.common.progress import duration
from autolora.common.statistics import mcnemar, mean_over_radius
from autolora.data.examples import Examples, write_examples
from autolora.data.images import TestImages
from autolora.data.sample import ids_sha256, read_images, stratified
from autolora.threat import Threat
from stages.common.command_line import takes_no_arguments
from stages.common.processes import processes
from stages.common.runner import StageError, main, timed, work_dir
from stages.common.views import EvaluateParams, load
from stages.evaluation import beyond
from stages.evaluation.contact_sheet import Row, contact_sheet
from stages.evaluation.provenance_checks import nothing_chosen, read_manifest, splits_apart, weights_match

TEST, MANIFEST = Path("data/prepared/test"), Path("data/manifest.csv")
MERGED, NATURAL = Path("models/merged.safetensors"), Path("models/finetuned/natural.safetensors")
FINETUNED = Path("models/finetuned/finetuned.json")
REPORTS, ADVERSARIAL = Path("reports"), Path("models/adversarial.npz")
MADE_OF = ("soup", "soup_members", "critical_layer", "mix", "recipe_but")  # notes of a merge that is not the default
SHOWN = 6  # rows of the contact sheet


class Evaluated(NamedTuple):
    """What was found out about one network."""

    notes: dict[str, str]
    report: Report
    curve: list[Point]
    also: Also  # what evaluate.also asks for


def evaluate() -> None:
    params = load(EvaluateParams)
    images = stratified(read_images(TEST), params.evaluate.images, params.seed)
    provenance = check_provenance(images)
    work = partial(evaluate_networks, params, images)
    with processes(work) as first:
        if not first:
            work()
            return
        with timed("evaluate", REPORTS / "robustness.json") as record:
            robust, natural = work()
            robust.report.checks = replaced(robust.report.checks, provenance)
            write(images, robust, natural)
            record["attacks"] = {"robust": times(robust.report), "natural": times(natural.report)}
    print(f"evaluate: {robust.report.in_words}")


def check_provenance(images: TestImages) -> list[Check]:
    """Checks 12, 14 and 15, before any work is done."""
    recorded = recorded_weights()
    merged, natural = load_network(MERGED)[1], load_network(NATURAL)[1]
    as_tuned = merged["alpha"] == "0" and not {"soup", "mix"} & merged.keys()
    robust = merged["weights_sha256"] if as_tuned else merged.get("robust_sha256", "none")
    evaluated = {"robust": robust, "natural": natural["weights_sha256"]}
    if "soup" in merged:
        evaluated["members"] = merged["members_sha256"]
    checks = [
        nothing_chosen(yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]),
        weights_match(evaluated, recorded),
        splits_apart(read_manifest(MANIFEST), images.ids),
    ]
    require(checks)
    return checks


def recorded_weights() -> dict[str, str]:
    """What `finetune` wrote down, by name."""
    record = read_json(FINETUNED) if FINETUNED.exists() else {"weights_sha256": {}}
    members = (
        {"members": " ".join(run["weights_sha256"] for run in record["members"]["runs"])} if "members" in record else {}
    )
    return record["weights_sha256"] | members


def replaced(checks: list[Check], ours: list[Check]) -> list[Check]:
    numbers = {c.number for c in ours}
    return ordered([*(c for c in checks if c.number not in numbers), *ours])


def times(report: Report) -> list[dict[str, Any]]:
    return [{"name": a.name, "seconds": round(a.seconds, 2), "forwards": a.forwards} for a in report.attacks]


def evaluate_networks(params: EvaluateParams, images: TestImages) -> tuple[Evaluated, Evaluated]:
    """The one that ships, and its naturally tuned twin."""
    robust = evaluate_network(params, images, MERGED)
    say("now the natural twin, attacked in the same way")
    return robust, evaluate_network(params, images, NATURAL)


def evaluate_network(params: EvaluateParams, images: TestImages, path: Path) -> Evaluated:
    model, notes = load_network(path)
    settings = partial(settings_of, params, model=path.stem, images=images, notes=notes)
    device = device_of(model)
    told = partial(tell, len(images)) if path == MERGED else None
    report = autoattack_of(model, images, params.threat, settings(params.threat, device, tell=told))
    curve = curve_of(model, images, params.threat, Settings(seed=params.seed, device=device))
    report.checks = ordered([*report.checks, curve_agrees(report, curve)])
    require(report.checks)
    reports = {}
    for threat in params.evaluate.also_threats:
        say(f"{path.stem} at {threat}")
        reports[str(threat)] = autoattack_of(model, images, threat, settings(threat, device))
    corrupted = None
    if WORD in params.evaluate.also:
        corrupted = under_corruptions(model, images, settings(WORD, device))
    return Evaluated(notes, report, curve, Also(reports, corrupted))


def settings_of(
    params: EvaluateParams,
    what: Threat | str,
    device: torch.device,
    *,
    model: str,
    images: TestImages,
    notes: dict[str, str],
    tell: Callable[[float], object] | None = None,
) -> Settings:
    """Progress belongs to one threat: another list in evaluate.also leaves what is known of the others."""
    determines = params.as_dict() | {"weights": notes["weights_sha256"], "ids": ids_sha256(images.ids)}
    determines["labels"] = hashlib.sha256(images.labels().numpy().tobytes()).hexdigest()  # may be corrected
    determines["evaluate"] = {key: value for key, value in determines["evaluate"].items() if key != "also"}
    determines["threat"] = what.as_record() if isinstance(what, Threat) else what
    determines |= {"code": code_sha256(), "device": device.type}  # rounding of another kind of device differs
    folder = work_dir("evaluate", model=model, **determines)
    section = params.evaluate
    return Settings(section.version, params.seed, section.precision, progress=folder, device=device, tell=tell)


def say(text: str) -> None:
    if distributed.process_number() == 0:
        tqdm.write(f"evaluate: {text}", file=sys.stderr)  # beside a bar


def tell(images: int, seconds: float) -> None:
    """Once, after the first timed steps."""
    said = f"up to {duration(seconds)} for {images} images, and less for the twin, which breaks early"
    say(said)


def load_network(path: Path) -> tuple[Classifier, dict[str, str]]:
    """The network of a file, on the GPU where there is one; refused unless its weights are those the file names."""
    if not path.exists():
        raise StageError(f"{path} is missing: run `dvc repro {'merge' if path == MERGED else 'finetune'}` first")
    try:
        model = load_classifier(path)
    except (KeyError, RuntimeError) as error:
        raise StageError(f"{path} is no classifier file of this pipeline ({error})") from None
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    return model.to(device).eval(), read_notes(path)


def write(images: TestImages, robust: Evaluated, natural: Evaluated) -> None:
    record = record_of(images, robust, natural)
    write_json(REPORTS / "robustness.json", record)
    write_json(REPORTS / "metrics.json", headline(record))
    with replacing(REPORTS / "robust_flags.npy") as part, open(part, "wb") as file:
        np.save(file, flags(images, robust, natural))
    write_text(REPORTS / "eps_curve.csv", curve_csv({"robust": robust.curve, "natural": natural.curve}))
    with replacing(REPORTS / "adversarial.png") as part:
        pictures(images, robust.report).save(part, format="PNG")
    report = robust.report
    write_examples(ADVERSARIAL, Examples(images, report.adversarial.numpy(), report.found.numpy()), str(report.threat))


def record_of(images: TestImages, robust: Evaluated, natural: Evaluated) -> dict[str, Any]:
    ours, twin = robust.report, natural.report
    baseline = twin.as_record()
    data = {
        "name": str(TEST.parent),
        "split": TEST.name,
        "n": len(images),
        "ids_sha256": ids_sha256(images.ids),
        "stratified": True,
    }
    keys = ("clean_accuracy", "robust_accuracy", "ci95", "attacks")
    return ours.as_record() | {
        "data": data,
        "weights_sha256": robust.notes["weights_sha256"],
        "alpha": _number(robust.notes.get("alpha")),
        **{key: robust.notes[key] for key in MADE_OF if key in robust.notes},
        "baseline": {k: baseline[k] for k in keys} | {"weights_sha256": natural.notes["weights_sha256"]},
        "mcnemar": paired(ours.robust, twin.robust),
        "by_class": by_class(ours, read_json(TEST / "classes.json")),
        **also(images, robust, natural),
    }


def also(images: TestImages, robust: Evaluated, natural: Evaluated) -> dict[str, Any]:
    """What params.yaml asks for beyond its threat; nothing where it asks for nothing."""
    found = beyond.rows(robust.also, natural.also, (robust.report, natural.report), min(images.x.shape[2:]))
    if not found:
        return {}
    most = 2 * robust.report.threat.eps
    mine, twin = (mean_over_radius([(p.eps, p.accuracy) for p in e.curve], most) for e in (robust, natural))
    attack = robust.curve[-1].attack
    return {"also": found, "expected_robustness": {"up_to": most, "accuracy": mine, "baseline": twin, "attack": attack}}


def headline(record: dict[str, Any]) -> dict[str, float]:
    """What `dvc metrics show` and `dvc exp show` print: four numbers, not the whole record."""
    return {
        "clean": record["clean_accuracy"],
        "robust": record["robust_accuracy"],
        "natural_clean": record["baseline"]["clean_accuracy"],
        "natural_robust": record["baseline"]["robust_accuracy"],
    }


def _number(text: str | None) -> float | None:
    return None if text is None else float(text)


def paired(model: Tensor, baseline: Tensor) -> dict[str, Any]:
    only_model, only_baseline = int((model & ~baseline).sum()), int((baseline & ~model).sum())
    return {"p": mcnemar(only_model, only_baseline), "only_model": only_model, "only_baseline": only_baseline}


def flags(images: TestImages, robust: Evaluated, natural: Evaluated) -> np.ndarray:
    ours, twin = robust.report, natural.report
    kept = {"clean": ours.clean, "robust": ours.robust, "baseline_clean": twin.clean, "baseline_robust": twin.robust}
    found = {field: values.numpy() for field, values in kept.items()}
    found |= beyond.columns(robust.also, natural.also)
    kinds = [(field, "?" if values.dtype == bool else "i8") for field, values in found.items()]
    table = np.zeros(len(images), dtype=[("id", "S64"), ("label", "i8"), *kinds])
    table["id"], table["label"] = [i.encode() for i in images.ids], images.y
    for field, values in found.items():
        table[field] = values
    return table


def curve_csv(curves: dict[str, list[Point]]) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["model", "eps", "accuracy", "attack"])
    for name, points in curves.items():
        rows.writerows([name, f"{p.eps:.8g}", f"{p.accuracy:.6g}", p.attack] for p in points)
    return text.getvalue()


def pictures(images: TestImages, report: Report) -> Any:
    names = read_json(TEST / "classes.json")
    chosen = report.found.nonzero().flatten().tolist()[:SHOWN]
    rows = [
        Row(
            images.x[i] / 255,
            report.adversarial[i].numpy(),
            names[int(report.y[i])],
            names[int(report.predicted[i])],
            names[int(report.fooled[i])] if report.fooled[i] >= 0 else "no answer (NaN)",
        )
        for i in chosen
    ]
    return contact_sheet(rows, f"{report.threat}: {len(chosen)} of {int(report.found.sum())} adversarial images")


if __name__ == "__main__":
    takes_no_arguments(__doc__)
    main(evaluate)
