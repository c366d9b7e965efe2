"""Fine-tune the backbone robustly, and its naturally tuned twin beside it.

data/prepared/{train,val} -> models/finetuned/, reports/training.csv. Killed, it goes on from the last whole epoch
(`.work/finetune/<key>`). The test part is never opened here. With several GPUs it starts one process for each, through
torchrun (`AUTOLORA_PROCESSES` says another number); `torchrun --nproc-per-node N -m stages.finetune` does the same.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
import torch

from autolora.backbones.classifier import Classifier, save_classifier
from autolora.backbones.loading import load_backbone
from autolora.common import distributed
from autolora.common.code import code_sha256
from autolora.common.files import read_json, replacing, replacing_folder, write_json
from autolora.common.processes import end_with_parent
from autolora.training.branch import save_branch
from autolora.training.learner import number
from autolora.training.loop import Tuned
from autolora.training.loop import finetune as tune
from autolora.training.settings import Settings
from stages.common.command_line import takes_no_arguments
from stages.common.errors import TryAgain
from stages.common.params import Finetune
from stages.common.prepared import PREPARED, data_keys, read_split
from stages.common.recipes import in_one_line, recipe, set_otherwise, words
from stages.common.runner import main, only_one, processes_asked_for, timed, work_dir
from stages.common.views import FinetuneParams, load
from stages.common.weights import resolve_weights
from stages.estimate import announce
from stages.estimate.costs import Counts
from stages.tracking.live_run import live

FINETUNED, TRAINING = Path("models/finetuned"), Path("reports/training.csv")
COLUMNS = ["epoch", "lr", "lambda1", "lambda2", "loss", "loss_natural", "loss_adversarial", "loss_kl"]
COLUMNS += ["natural_accuracy", "val_clean", "val_robust", "gradient_cosine", "event"]
KEYS = ("reference", "batch_size", "augmentation", "average", "precision", "compile", "channels_last")
SEARCHED = ("rate", "decay", "gamma")  # for searches over the baselines; never of the naturally tuned twin
AXES = ["start", "attack", "trains", "rank", "weight_attack", "smoothing", "eps_schedule"]  # nor these
AXES += ["teacher", "natural_teacher"]
TOLD = (*AXES, "augmentation", "average")  # on the card, where they are not as usual
USUAL = ("auto", "crop_flip", "crop", "rrc_flip")  # augmentations that go by the images
OF_THE_HEAD = ("epoch", "lr", "loss", "val_clean", "val_robust", "event")  # of the epochs before the others


def finetune() -> None:
    if "WORLD_SIZE" not in os.environ and (count := wanted_processes()) > 1:
        return launch(count)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()
    with distributed.group():
        train_both()


def train_both() -> None:
    params = load(FinetuneParams)
    first = distributed.process_number() == 0
    work = work_dir("finetune", **params.as_dict(), data=data_keys("train", "val"), code=code_sha256())
    clock: AbstractContextManager[dict[str, Any]] = timed("finetune", TRAINING) if first else nullcontext({})
    lock: AbstractContextManager[None] = only_one(work) if first else nullcontext()
    with clock as record, lock:
        model = backbone(params, read_json(PREPARED / "train" / "classes.json"))
        if first:
            say_recipe(params.finetune)
            announce.finetune(model, counts(), params.finetune, params.threat)
        here: list[int] = []  # the epochs that this attempt trains: an earlier one may have been killed

        with live(work, params.as_dict(), params.finetune.epochs) as on_epoch:

            def seen(epoch: dict[str, Any]) -> None:
                if here and epoch["epoch"] <= here[-1]:  # it diverged, and began once more
                    here.clear()
                here.append(epoch["epoch"])
                on_epoch(epoch)

            robust = tuned(params, model, params.finetune.method, work, seen)
        members = [robust, *others(params, model, work)]
        natural = tuned(params, model, "natural", work, twin=True)
        if first:
            write_outputs(params, model, members, natural)
            record |= speeds(robust) | {"images": {"train": counts().train, "val": counts().val}}
            record["resumed_after"] = len(robust.history) - len(here)


def others(params: FinetuneParams, model: Classifier, work: Path) -> list[Tuned]:
    """The further members, from the same start: each has another order, augmentation, attack and branch."""
    seeds = (member_seed(params.seed, i) for i in range(1, params.finetune.members))
    return [tuned(params, model, params.finetune.method, work, seed=seed) for seed in seeds]


def member_seed(seed: int, member: int) -> int:
    return number(seed, "member", member) if member else seed


def tuned(
    params: FinetuneParams,
    model: Classifier,
    method: str,
    work: Path,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    seed: int | None = None,
    *,
    twin: bool = False,
) -> Tuned:
    """The naturally tuned twin is plain, whatever is searched or tried."""
    section = params.finetune
    return tune(
        model,
        read_split("train"),
        read_split("val"),
        params.threat,
        method=method,
        epochs=section.epochs,
        seed=params.seed if seed is None else seed,
        checkpoints=work,
        on_epoch=on_epoch,
        **{key: getattr(section, key) for key in KEYS},
        **({key: getattr(section, key) for key in (*SEARCHED, *AXES)} if not twin else {}),
    )


def speeds(robust: Tuned) -> dict[str, Any]:
    keys = ("epoch", "seconds", "images_per_second", "peak_memory_mb")
    epochs = [{k: round(r[k], 2) for k in keys} for r in robust.history]
    return {
        "epochs": epochs,
        "images_per_second": median(e["images_per_second"] for e in epochs),
        "processes": distributed.process_count(),
        "threads": torch.get_num_threads(),
    }


# --- several processes -----------------------------------------------------------------------------------------------


def wanted_processes() -> int:
    """One for each visible GPU, or what AUTOLORA_PROCESSES says. No param: it must not make the stage stale."""
    return processes_asked_for() or max(1, torch.cuda.device_count())


def launch(count: int) -> None:
    """This stage again, in `count` processes that torchrun keeps together; they die when this one does."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    with subprocess.Popen([*command, "-m", "stages.finetune"], preexec_fn=end_with_parent) as run:
        try:
            code = run.wait()
        except BaseException:
            run.terminate()
            raise
    if code != 0:
        raise TryAgain(f"one of {count} processes failed (torchrun ended with {code}): its message is above")


# --- what goes in ----------------------------------------------------------------------------------------------------


def backbone(params: FinetuneParams, classes: list[str]) -> Classifier:
    section = params.backbone
    return load_backbone(
        section.arch,
        weights=resolve_weights(section.weights, section.sha256),
        classes=len(classes),
        image_size=params.data.image_size,
        stem=section.stem,
        options=section.options,
        network_size=section.network_size,
        mean=section.mean,
        std=section.std,
        trained_for=section.trained_for,
        seed=params.seed,
    )


def counts() -> Counts:
    train, val = (len(np.load(PREPARED / split / "labels.npy", mmap_mode="r")) for split in ("train", "val"))
    return Counts(train, val)


# --- what comes out --------------------------------------------------------------------------------------------------


def write_outputs(params: FinetuneParams, start: Classifier, members: list[Tuned], natural: Tuned) -> None:
    """The first member is the robust network; the others lie beside it, with what they all started from."""
    with replacing_folder(FINETUNED) as part:
        record = write_weights(part, params, members[0], natural)
        if len(members) > 1:
            record |= {"members": write_members(part / "members", params, start, members)}
        write_json(part / "finetuned.json", record)
    write_training(members[0].history)


def write_members(folder: Path, params: FinetuneParams, start: Classifier, members: list[Tuned]) -> dict[str, Any]:
    """start.safetensors, and of each member K.safetensors and K-branch.safetensors: what merge.soup mixes."""
    threat, found = str(params.threat), []
    for i, member in enumerate(members):
        network, path = cast(Classifier, member.model), folder / f"{i + 1}.safetensors"
        found.append(
            {
                "seed": member_seed(params.seed, i),
                "best_epoch": member.best_epoch,
                "val_clean": member.best["val_clean"],
                "val_robust": member.best["val_robust"],
                **told_of(member.history),
                "weights_sha256": save_classifier(network, path, threat=threat),
                "branch_sha256": save_branch(member.branch, folder / f"{i + 1}-branch.safetensors"),
            }
        )
    return {"start_sha256": save_classifier(start, folder / "start.safetensors", threat="none"), "runs": found}


def write_weights(folder: Path, params: FinetuneParams, robust: Tuned, natural: Tuned) -> dict[str, Any]:
    """The three files, and what they hold."""
    threat = str(params.threat)
    return {
        "method": robust.method,
        "reference": robust.settings.reference,
        "attack": robust.settings.attack,
        "first_rate": robust.history[0]["lr"],
        **how(params.finetune, robust),
        "threat": params.threat.as_record(),
        "seed": params.seed,
        "epochs": len(robust.history),
        "best_epoch": robust.best_epoch,
        "val_clean": robust.best["val_clean"],
        "val_robust": robust.best["val_robust"],
        "natural": {
            "best_epoch": natural.best_epoch,
            "val_clean": natural.best["val_clean"],
            "val_robust": natural.best["val_robust"],
        },
        "weights_sha256": {
            "robust": save_classifier(cast(Classifier, robust.model), folder / "robust.safetensors", threat=threat),
            "branch": save_branch(robust.branch, folder / "branch.safetensors"),
            "natural": save_classifier(cast(Classifier, natural.model), folder / "natural.safetensors", threat="none"),
        },
    }


def recipe_of(section: Finetune) -> dict[str, Any]:
    """Its name and paper, and what params.yaml has in place of the recipe's own."""
    if section.recipe is None:
        return {}
    otherwise = set_otherwise(section.recipe, "finetune", section.model_dump())
    return {"name": section.recipe, "paper": words(section.recipe), **({"but": otherwise} if otherwise else {})}


def say_recipe(section: Finetune) -> None:
    """All that it has set: a default that params.yaml spells out is filled in like one that it leaves out."""
    if section.recipe is None:
        return
    said, otherwise = in_one_line(recipe(section.recipe).get("finetune", {})), recipe_of(section).get("but", {})
    but = f"; but {in_one_line(otherwise)}, as params.yaml says" if otherwise else ""
    print(f"finetune: recipe {section.recipe}: {said}{but}", file=sys.stderr)


def how(section: Finetune, robust: Tuned) -> dict[str, Any]:
    """What differs from AutoLoRa's defaults; nothing where nothing does."""
    asked, plain = robust.settings, Settings(robust.settings.threat, attack=robust.settings.attack)
    plain = replace(plain, eps_schedule="constant")
    if asked.augmentation in USUAL:
        plain = replace(plain, augmentation=asked.augmentation)
    axes = {key: value for key in TOLD if (value := getattr(asked, key)) != getattr(plain, key)}
    axes |= {key: value for key in SEARCHED if (value := getattr(section, key)) != getattr(plain, key)}
    before = {"head": robust.head, "first_pass": robust.first_pass}
    found = {
        "recipe": recipe_of(section),
        "axes": axes,
        "diverged": section.rate is None and asked.rate is not None,  # at the rate that was found: a part of it then
        "head": [{key: rounded(record[key]) for key in OF_THE_HEAD} for record in robust.head or []],
        "features_moved": robust.features_moved,
        "blocks": {"chosen": robust.settings.blocks, "tried": robust.tries} if robust.tries else {},
        "collapsed_before": {name: found for name, some in before.items() if (found := after(some or [], "collapsed"))},
    }
    return {key: value for key, value in found.items() if value} | told_of(robust.history)


def told_of(history: list[dict[str, Any]]) -> dict[str, list[int]]:
    """The epochs after which one gradient an image was given up, and images became harder."""
    return {event: epochs for event in ("collapsed", "harder") if (epochs := after(history, event))}


def after(history: list[dict[str, Any]], event: str) -> list[int]:
    return [record["epoch"] for record in history if event in record["event"].split("+")]


def write_training(history: list[dict[str, Any]]) -> None:
    with replacing(TRAINING) as part, open(part, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for record in history:
            writer.writerow({k: rounded(v) for k, v in record.items()})


def rounded(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value


if __name__ == "__main__":
    takes_no_arguments(__doc__)
    main(finetune)
