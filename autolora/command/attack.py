"""AutoAttack on any classifier: an ONNX file, whoever trained it, or a torch network.

    autolora attack model.onnx --data FOLDER --eps 8/255 --out attacked
    autolora attack model.onnx --data FOLDER --eps 8/255 --normalised --require-robust 0.5     # in a CI job

MODEL: an ONNX file (float32, float16, static or dynamic 8 bits), a torch.export archive (.pt2, with --trust),
package.module:factory, timm:NAME, hf:ID, or models:/NAME@alias of an MLflow server. An attack runs on a torch copy of
the file; each success counts once onnxruntime is fooled by it on the file itself. DATA: a folder with one folder for
each class, an .npz, a .csv of paths and labels, or data/prepared/test.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from autolora.attacks.also_flags import WORD
from autolora.attacks.autoattack import autoattack_of, black_box
from autolora.attacks.checks import known_labels, logits_are_numbers, logits_not_softmax, shuffled
from autolora.attacks.engine.answers import require_logits
from autolora.attacks.engine.file_network import Agreement, FileNetwork
from autolora.attacks.engine.prepare import default_batch
from autolora.attacks.evaluation import Settings
from autolora.attacks.report import Report
from autolora.attacks.under_corruptions import under_corruptions
from autolora.attacks.verdicts import CheckFailed, require
from autolora.attacks.versions import VERSIONS
from autolora.command import options, result
from autolora.command.also import measured, of_threat, words
from autolora.command.budget import within
from autolora.command.images import Data, read, told
from autolora.command.models import Asked, Target, no_gradients, target
from autolora.command.suspicions import look
from autolora.common import distributed
from autolora.common.command_line import at_least_one
from autolora.common.errors import BadArgument, first_line
from autolora.common.files import locked
from autolora.common.progress import duration
from autolora.common.shared_out import per_core, shared_out
from autolora.data.sample import ids_sha256
from autolora.export.operators.shapes import NoRule
from autolora.threat import NORMS, Threat

CPU = torch.device("cpu")
ALONE = 5.0  # seconds after which one of several processes may say what the first has not said
ASKED = 256  # images on which the copy is held against the file, and the labels against the answers


class Done(NamedTuple):
    """What one process has come to: the same in all of them."""

    record: dict[str, Any]
    report: Report
    out: Path
    progress: Path


class Agreed(NamedTuple):
    """How the attack goes on."""

    agreement: Agreement | None  # of a file with its copy
    scores_only: str  # why there are no gradients; empty where there are


def add_to(commands: Any) -> None:
    parser = commands.add_parser(
        "attack",
        doc=__doc__,
        help="AutoAttack on a file",
        reads="MODEL and the images of --data",
        writes="--out: report.json, robust_flags.npy, adversarial.npz, card.html",
    )
    parser.add_argument("model", metavar="MODEL", help="what is attacked, as above")
    parser.add_argument("--data", required=True, metavar="DATA", help="the images, as above")
    parser.add_argument("--eps", required=True, help="the radius in the pixels of the image as given: 8/255, 0.5")
    parser.add_argument("--norm", default="linf", choices=NORMS, help="in which the radius is measured (default linf)")
    parser.add_argument(
        "--version",
        default="standard",
        choices=(*VERSIONS, "square"),
        help="which attacks (default standard); fast: two of the four, labelled so; square: from scores alone",
    )
    parser.add_argument("--images", default="500", help="how many, the same of each class, or all (default 500)")
    parser.add_argument(
        "--also", metavar="LIST", help="other threats, on the same images: l2:0.5,linf:4/255,corruptions"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the attacks' random draws (default 0)")
    parser.add_argument(
        "--batch", type=at_least_one, metavar="N", help="images a forward; the default fits the network"
    )
    parser.add_argument("--mean", help="of a model that wants normalised pixels: one number, or one for each channel")
    parser.add_argument("--std", help="the same: 0.229,0.224,0.225 or 1/255")
    parser.add_argument("--normalised", action="store_true", help="ImageNet's mean and deviation")
    parser.add_argument("--layout", choices=("nchw", "nhwc"), default="nchw", help="nhwc: of tf2onnx and Keras")
    parser.add_argument("--before-softmax", action="store_true", help="attack what the file's last softmax is given")
    parser.add_argument("--size", type=at_least_one, metavar="N", help="pixels a side, where the model takes any")
    parser.add_argument("--classes", help="names in the model's order: a,b,c or a file with one a line or a JSON list")
    parser.add_argument("--weights", help="of package.module:factory or timm:NAME: a file, a URL or hf:ID/FILE")
    parser.add_argument("--trust", action="store_true", help="read a .pt2, which can run code: you know who made it")
    parser.add_argument(
        "--budget", type=float, metavar="MINUTES", help="at most so long; the report says how many images were left out"
    )
    parser.add_argument(
        "--require-robust", type=float, metavar="SHARE", help="exit code 1 where a smaller share stands, of 0 to 1"
    )
    parser.add_argument(
        "--processes", type=at_least_one, metavar="N", help="that share the images out (default: one a core, 8 at most)"
    )
    parser.add_argument("--out", type=Path, help="the folder that is written (default: attacked-MODEL)")
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> int:
    """The images are shared out over the processes, and the first one writes and tells."""
    work = partial(attack, chosen)
    with shared_out(work, chosen.processes or per_core(), as_helper) as first:
        done = work()
    if not first:
        return 0
    shutil.rmtree(done.progress, ignore_errors=True)
    print("\n".join(f"{name:<8}{said}" for name, said in done.report.rows()))
    for row in done.record.get("also", []):
        print(f"{'also':<8}{row['what']}: {100 * row['accuracy']:.1f} %")
    print(f"{'written':<8}{done.out}: card.html, report.json, robust_flags.npy, adversarial.npz")
    return _ending(chosen.require_robust, done.report)


def as_helper(helper: Callable[[], None]) -> None:
    """What is wrong is mostly wrong in every process, and told by the first, which then ends this one.

    Where that does not happen, it is wrong here alone.
    """
    try:
        helper()
    except KeyboardInterrupt:
        sys.exit(1)
    except Exception as error:
        time.sleep(ALONE)
        print(f"attack: {first_line(error)}", file=sys.stderr)
        sys.exit(1)


def attack(chosen: argparse.Namespace) -> Done:
    """The work of one process."""
    threat, asked = Threat(chosen.norm, chosen.eps), options.of_model(chosen)
    options.refuse_shares(chosen.require_robust)
    options.refuse_minutes(chosen.budget)
    count = options.count(chosen.images)
    model = target(asked)
    out = chosen.out or Path(f"attacked-{model.name.replace(':', '-')}")
    result.refuse_foreign(out)
    data = read(chosen.data, count, chosen.seed, model.shape, options.classes(chosen.classes) or model.classes)
    for line in told(data.notes):
        _tell(line)
    also = words(chosen.also, threat, data.images.x.shape[1:])
    agreed = looked_at(model, data, asked)
    progress = out.with_name(f"{out.name}.progress")
    with locked(progress / "lock") if _first() else nullcontext():
        distributed.wait()  # until the folder is ours
        begin, kept = time.perf_counter(), progress / _key(model, data, threat, chosen)
        threats = [threat, *(Threat.parse(word) for word in also if word != WORD)]
        version = "square" if agreed.scores_only else chosen.version
        left_out = within(chosen.budget, model, data, (threats, version), kept)
        if left_out:
            _tell(left_out)
        settings = _settings(chosen, model, data, kept)
        with _removed_in_vain(progress):
            report = _attacked(model, data, threat, settings, agreed)
            found = measured(
                also,
                lambda other, name: _attacked(model, data, other, _beside(settings, kept, name), agreed),
                lambda name: under_corruptions(model.network, data.images, _beside(settings, kept, name)),
            )
        notes = {"agreement": agreed.agreement.as_record()} if agreed.agreement else {}
        record = result.record_of(model, data, report, notes | ({"left_out": left_out} if left_out else {}))
        record |= {"also": found.rows(report, min(data.images.x.shape[2:]), of_threat)} if also else {}
        record |= {"seconds": round(time.perf_counter() - begin, 1)}
        if _first():
            result.write(out, record, (report, found), data)
    return Done(record, report, out, progress)


@contextmanager
def _removed_in_vain(progress: Path) -> Iterator[None]:
    """A check that fails would fail again: there is nothing to go on with."""
    try:
        yield
    except CheckFailed:
        if _first():
            shutil.rmtree(progress, ignore_errors=True)
        raise


def _first() -> bool:
    return distributed.process_number() == 0


def _tell(said: str) -> None:
    if _first():
        print(f"attack: {said}", flush=True)


def _ending(wanted: float | None, report: Report) -> int:
    if wanted is None or report.robust_accuracy >= wanted:
        return 0
    print(f"attack: {report.robust_accuracy:.3f} of the images stand, and --require-robust asks for {wanted:g}")
    return 1


# --- before the attack ------------------------------------------------------------------------------------------------


def looked_at(model: Target, data: Data, asked: Asked) -> Agreed:
    """Each fault in one line, before any work is done."""
    some = shuffled(data.images.ids)[:ASKED]  # the first ones of a sorted folder would be of few classes
    network, x, y = model.network, data.images.pixels()[some], data.images.labels()[some]
    shape = list(x.shape[1:])
    with _taking(asked.model, f"images {shape}"):
        require_logits(network, x[:1])
    with _taking(asked.model, f"several images {shape} at once (export it for any batch)"), torch.no_grad():
        answered = torch.cat([network(part) for part in x.split(64)])
    require([logits_are_numbers(answered)])
    if logits_not_softmax(answered).verdict == "fail":
        cure = (
            "--before-softmax attacks what its softmax is given" if model.kind == "ONNX" else "give it without softmax"
        )
        raise ValueError(f"{asked.model} answers with probabilities, whose slopes vanish: {cure}")
    known_labels(data.images.labels(), answered.shape[1])
    data.classes = data.classes or [str(i) for i in range(answered.shape[1])]
    if len(data.classes) > answered.shape[1]:
        raise ValueError(f"{len(data.classes)} classes, and the model answers for {answered.shape[1]}")
    look(network, x, y, data.classes, normalised=asked.normalise is not None, guessed=data.folders)
    return _agreed(network, x, asked.model) if isinstance(network, FileNetwork) else Agreed(None, "")


@contextmanager
def _taking(name: str, what: str) -> Iterator[None]:
    """Whatever a network of anybody's raises is one line."""
    try:
        yield
    except BadArgument:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{name} does not take {what}: {reason}") from error


def _agreed(network: FileNetwork, x: Tensor, name: str) -> Agreed:
    """Whether there are gradients to trust; a form of an operator that has no rule may show only now."""
    if network.copy is None:
        return Agreed(None, "")
    try:
        found = network.agreement(x[:32])
    except NoRule as error:
        raise no_gradients(name, error) from None
    if found.fine:
        return Agreed(found, "")
    said = (
        f"its torch copy differs from onnxruntime by {found.difference:.1e}, more than rounding ({found.allowed:.1e})"
    )
    _tell(f"{said}: there are no gradients to trust, and Square goes on alone")
    return Agreed(found, said)


def _key(model: Target, data: Data, threat: Threat, chosen: argparse.Namespace) -> str:
    """Of all that determines the attack; a budget only says how much of it is done."""
    said = [
        model.sha256,
        str(threat),
        chosen.version,
        chosen.seed,
        chosen.batch,
        chosen.budget,
        ids_sha256(data.images.ids),
        hashlib.sha256(data.images.y.tobytes()).hexdigest(),
    ]
    said += [chosen.also, chosen.mean, chosen.std, chosen.normalised, chosen.before_softmax, chosen.layout]
    return hashlib.sha256(repr(said).encode()).hexdigest()[:16]


# --- the attack -------------------------------------------------------------------------------------------------------


def _settings(chosen: argparse.Namespace, model: Target, data: Data, progress: Path) -> Settings:
    network, x = model.network, data.images.pixels()[:2]
    batch = chosen.batch
    if isinstance(network, FileNetwork) and network.copy is not None:
        batch = batch or default_batch(CPU, network.copied, x)
        if model.graph is not None:
            network.hasten(model.graph, x)
    tell = _forecast(len(data.images))
    return Settings(chosen.version, chosen.seed, batch_size=batch, progress=progress / "found", device=CPU, tell=tell)


def _beside(settings: Settings, kept: Path, name: str) -> Settings:
    """For something else on the same images, with progress of its own."""
    return replace(settings, progress=kept / name, tell=None)


def _forecast(images: int) -> Callable[[float], None]:
    return lambda seconds: _tell(f"up to {duration(seconds)} for {images} images")


def _attacked(model: Target, data: Data, threat: Threat, settings: Settings, agreed: Agreed) -> Report:
    if not agreed.scores_only and settings.version != "square":
        return autoattack_of(model.network, data.images, threat, settings)
    images = data.images
    report = black_box(
        model.network,
        images.pixels(),
        images.labels(),
        threat,
        seed=settings.seed,
        ids=images.ids,
        progress=settings.progress,
        batch_size=settings.batch_size,
    )
    if agreed.agreement is not None:
        report.deviation = f"Square alone: {agreed.scores_only}"
    return report
