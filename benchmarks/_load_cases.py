"""The cases of benchmarks.load: each does one thing at a given size in an empty folder, and checks what comes out.

A case returns the seconds that count (without making its input), a sentence, and whether all was right.
"""

from __future__ import annotations

import csv
import hashlib
import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles

import numpy as np
import yaml

from autolora.common.files import read_json
from benchmarks._served import SHAPE, Served, serving

COLUMNS = ["path", "sha256", "phash", "label", "split", "width", "height", "mode", "mean", "std", "bytes"]
COLUMNS += ["near_duplicate", "reason"]
ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Done:
    seconds: float
    right: bool
    note: str
    megabytes: float | None = None  # of another process, where the work is done there


def params(**data: object) -> None:
    """This repository's params.yaml, with other data."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["data"] |= {"path": "raw", "image_size": 8, **data}
    content["backbone"]["weights"] = None  # they lie in the repository, and prepare looks for them first
    Path("params.yaml").write_text(yaml.safe_dump(content))


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def prepared() -> float:
    from stages.prepare import prepare

    return timed(prepare)


def validated() -> tuple[float, str]:
    """Seconds, and what it said where it stopped."""
    from stages.common.runner import StageError
    from stages.validate import validate

    said = []

    def judge() -> None:
        try:
            validate()
        except StageError as error:
            said.append(str(error))

    return timed(judge), "".join(said)


# --- data ------------------------------------------------------------------------------------------------------------


def write_npz(images: int, classes: int) -> None:
    """All different, the classes in turn."""
    Path("raw").mkdir()
    x = np.random.default_rng(0).integers(0, 256, (images, 8, 8, 3), dtype=np.uint8)
    np.savez("raw/images.npz", x=x, y=np.arange(images) % classes)


def classes_prepared(size: int) -> Done:
    """Six images of each class."""
    write_npz(6 * size, size)
    params(source="npz", validation_fraction=0.2, test_fraction=0.3)
    seconds = prepared()
    names = read_json("data/prepared/classes.json")
    labels = [np.load(f"data/prepared/{split}/labels.npy") for split in ("train", "val", "test")]
    counts = np.bincount(np.concatenate(labels), minlength=size)
    right = names == [str(number) for number in range(size)] and bool((counts == 6).all())
    return Done(seconds, right, f"{6 * size} images of {size} classes, each class with its six")


def classes_attacked(size: int) -> Done:
    """A head of so many classes: one step of fine-tuning's attack, APGD's targets, the ONNX file against torch."""
    import torch

    from autolora import Threat, autoattack, export_onnx
    from autolora.backbones.classifier import Spec, build
    from autolora.export.runtime import logits, open_session

    torch.set_num_threads(1)
    options = {"channels": [8, 8, 16, 16], "stem_width": 8}
    model = build(Spec("resnet10t", size, 8, "nopool", options), seed=0).eval()
    x = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(x)
    report: list = []
    seconds = timed(
        lambda: report.append(
            autoattack(model, x, expected.argmax(1), Threat("linf", "1/255"), version="fast", seed=0, show=False)
        )
    )
    export_onnx(model, "model.onnx")
    difference = float(np.abs(logits(open_session("model.onnx"), x.numpy()) - expected.numpy()).max())
    wrong = int((model(report[0].adversarial).argmax(1) == expected.argmax(1))[~report[0].robust].sum())
    right = wrong == 0 and bool(report[0].clean.all()) and difference < 1e-3
    return Done(seconds, right, f"autoattack (fast) on 8 images, ONNX within {difference:.1e} of torch")


def manifest_rows(size: int) -> Done:
    """A manifest of so many good rows but two: they, and no others, must be named."""
    Path("data").mkdir()
    splits = ("train", "train", "train", "train", "train", "train", "train", "val", "test", "test")
    with open("data/manifest.csv", "w", newline="") as file:
        write = csv.writer(file, lineterminator="\n").writerow
        write(COLUMNS)
        for number in range(size):
            digest = hashlib.sha256(str(number).encode()).hexdigest()
            bad = "broken: planted" if number in (size // 3, size // 2) else ""
            row = [f"{number}.png", digest, digest[:16], f"c{number % 100}", splits[number // 100 % 10], 16, 16, "RGB"]
            write([*row, 100 + number % 50, 60 + number % 7, 900 + number % 90, "", bad])
    params(source="folder", image_size=16)
    seconds, said = validated()
    report = read_json("reports/data_docs/quality.json")
    named = {text for text in (f"{size // 3}.png", f"{size // 2}.png") if text in said}
    failed = report["checks"]["decoding"]["failed"] if "decoding" in report["checks"] else None
    right = report["images"]["found"] == size and len(named) == 2 and failed in (None, 2)
    return Done(seconds, right, f"{report['images']['found']} rows judged, both planted faults named")


def class_with_one_image(size: int) -> Done:
    """Beside `size` classes of twenty: it must be stopped with the reason, or go on with a warning; never unnoticed."""
    Path("raw").mkdir()
    y = np.append(np.arange(20 * size) % size, size)
    x = np.random.default_rng(0).integers(0, 256, (len(y), 8, 8, 3), dtype=np.uint8)
    np.savez("raw/images.npz", x=x, y=y)
    params(source="npz")
    seconds = prepared()
    more, said = validated()
    quality = json.dumps(read_json("reports/data_docs/quality.json"))
    return Done(
        seconds + more, f"{size} (" in said + quality, said.splitlines()[1] if said else "goes on with a warning"
    )


def large_images(size: int) -> Done:
    """Four photos-like images of size x size pixels as JPEG and PNG, decoded to 224; the mean must stay."""
    from PIL import Image

    rng, means = np.random.default_rng(0), {}
    for label in ("a", "b"):
        Path("raw", label).mkdir(parents=True)
        for kind in ("jpg", "png"):
            small = Image.fromarray(rng.integers(0, 256, (size // 64, size // 64, 3), dtype=np.uint8))
            image = small.resize((size, size), Image.Resampling.BICUBIC)
            image.save(Path("raw", label, f"1.{kind}"))
            means[f"{label}/1.{kind}"] = float(np.asarray(image, np.float32).mean())
    params(source="folder", image_size=224)
    seconds = prepared()
    with open("data/manifest.csv", newline="") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    right = set(rows) == set(means) and not any(row["reason"] for row in rows.values())
    right &= all(int(row["width"]) == size for row in rows.values())
    ids = {row["sha256"]: path for path, row in rows.items()}
    for split in ("train", "val", "test"):
        images, names = (np.load(f"data/prepared/{split}/{part}.npy") for part in ("images", "ids"))
        right &= all(abs(image.mean() - means[ids[name.decode()]]) < 2 for image, name in zip(images, names))
    return Done(seconds, right, f"4 images of {size} x {size}, each mean within two grey levels")


# --- the network -----------------------------------------------------------------------------------------------------


def batches(size: int) -> Done:
    """One batch of so many through the shipped backbone's ONNX file; each row as if it had come alone."""
    from autolora import export_onnx
    from autolora.backbones.classifier import Spec, build
    from autolora.export.runtime import logits, open_session

    options = {"channels": [24, 48, 96, 192], "stem_width": 16}
    export_onnx(build(Spec("resnet10t", 10, 16, "nopool", options), seed=0).eval(), "model.onnx")
    session = open_session("model.onnx", threads=1)
    x = np.random.default_rng(0).random((size, 3, 16, 16), dtype=np.float32)
    answers: list[np.ndarray] = []
    seconds = timed(lambda: answers.append(logits(session, x, batch=size)))
    some = np.linspace(0, size - 1, min(size, 16)).astype(int)
    alone = np.concatenate([logits(session, x[[index]]) for index in some])
    difference = float(np.abs(answers[0][some] - alone).max())
    return Done(seconds, difference < 1e-3, f"largest difference to a batch of one: {difference:.1e}")


# --- registry and server ---------------------------------------------------------------------------------------------


def registered_versions(size: int) -> Done:
    """One look-up by content, by number and by alias among so many, and the log of as many decisions."""
    import os

    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{Path.cwd()}/mlflow.db"
    from pipelines.registry import decision_log
    from pipelines.registry.versions import alias_version, get_version
    from stages.register import find
    from stages.tracking.client import connect

    client = connect().MlflowClient()
    client.create_registered_model("many")
    log, before = client.create_experiment(decision_log._log_name()), None
    for number in range(1, size + 1):
        client.create_model_version("many", f"file:///nowhere/{number}", tags={"content_key": f"key {number}"})
        entry = {"model": "many", "alias": "champion", "version": number, "previous": number - 1 or None}
        entry |= {"decision": "promoted", "why": None, "at": f"{number:09}", "by": "load", "follows": before}
        tags = {key: str(entry[key]) for key in ("model", "version", "alias", "decision")}
        before = client.create_run(log, tags=tags | {"entry": json.dumps(entry)}).info.run_id
    client.set_registered_model_alias("many", "champion", str(size))
    found: list = []

    def look() -> None:
        found.append([int(v.version) for v in find(client, "many", f"key {size // 2 + 1}")])
        found.append(int(get_version(client, "many", size).version))
        found.append(alias_version(client, "many", "champion"))
        found.append(decision_log.reigns(decision_log.entries(client, "many"), "champion"))

    seconds = timed(look)
    right = found == [[size // 2 + 1], size, size, list(range(1, size + 1))]
    return Done(seconds, right, f"the version with a content, version {size}, the champion, {size} decisions in order")


def concurrent_requests(size: int, minutes: float = 1.0) -> Done:
    """So many clients at once, each with request after request; every answer is compared with numpy's."""
    with serving(Path.cwd()) as model:
        before, ends, counts = model.megabytes(), time.monotonic() + 60 * minutes, Counter[str]()
        times: list[float] = []
        clients = [threading.Thread(target=client, args=(model, n, ends, counts, times)) for n in range(size)]
        began = time.monotonic()
        for one in clients:
            one.start()
        for one in clients:
            one.join()
        seconds, after = time.monotonic() - began, model.megabytes()
    cuts = quantiles(times, n=100) if len(times) > 1 else [0.0] * 99
    note = f"{counts['right']} right, {counts['wrong']} wrong, {counts['failed']} failed in {seconds:.0f} s; median "
    note += f"{cuts[49] * 1000:.0f} ms, 99 %: {cuts[98] * 1000:.0f} ms; server {before:.0f} MB, then {after:.0f} MB"
    right = counts["right"] > 0 and counts["wrong"] + counts["failed"] == 0
    return Done(cuts[49], right, note, after)


def client(model: Served, seed: int, ends: float, counts: Counter[str], times: list[float]) -> None:
    draw = np.random.default_rng(seed)
    while time.monotonic() < ends:
        images = draw.random((1 + seed % 4, *SHAPE), dtype=np.float32)
        body, began = json.dumps({"inputs": {"image": images.tolist()}}).encode(), time.monotonic()
        try:
            status, reply = model.post(body)
        except (OSError, http.client.HTTPException):
            counts["failed"] += 1
            continue
        times.append(time.monotonic() - began)
        logits = np.asarray(json.loads(reply)["predictions"]["logits"]) if status == 200 else None
        near = logits is not None and np.allclose(logits, model.expected(images), atol=1e-3)
        counts["right" if near else "wrong"] += 1


# What grows, at which sizes; the last one is what is asked for.
CASES: dict[str, tuple[Callable[[int], Done], list[int]]] = {
    "classes, prepared": (classes_prepared, [100, 1_000, 10_000]),
    "classes, attacked": (classes_attacked, [100, 1_000, 10_000]),
    "rows of a manifest": (manifest_rows, [10_000, 100_000, 1_000_000]),
    "a class with one image": (class_with_one_image, [2, 10, 100]),
    "pixels a side": (large_images, [256, 1_024, 4_096]),
    "images in a batch": (batches, [1, 64, 512, 4_096]),
    "registered versions": (registered_versions, [10, 100, 1_000]),
    "concurrent requests": (concurrent_requests, [1, 10, 100]),
}
