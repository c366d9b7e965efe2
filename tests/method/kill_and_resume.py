"""Kill -9 a training at random moments, start it again each time, and compare the final weights with an unhurt run's.

    python -m tests.method.kill_and_resume --kills 10

The runs are forked from one process that has everything imported, so that a kill hits training, a checkpoint being
written or a resume, and not the start of Python.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import shutil
import tempfile
import time
from pathlib import Path

import torch

from autolora.common.files import weights_sha256
from autolora.training.loop import finetune
from tests.method.small import QUICK, THREAT, images, network

SETTINGS = QUICK | {"epochs": 24, "batch_size": 32, "average": 0.9}
SERVER = multiprocessing.get_context("forkserver")  # its children have torch already, and no threads of this process
SERVER.set_forkserver_preload(["tests.method.kill_and_resume"])


def train(work: Path, out: Path) -> None:
    """One run in a process of its own; a resumed one goes on from `work`."""
    torch.set_num_threads(1)
    tuned = finetune(network(), images(384, size=16), images(48, 1, size=16), THREAT, checkpoints=work, **SETTINGS)
    epochs = [{k: v for k, v in r.items() if k in ("epoch", "loss", "val_robust", "event")} for r in tuned.history]
    digests = [weights_sha256(tuned.model.state_dict()), weights_sha256(tuned.branch.factors())]
    out.write_text(json.dumps({"weights": digests, "history": epochs}))


def start(work: Path, out: Path) -> multiprocessing.process.BaseProcess:
    process = SERVER.Process(target=train, args=(work, out))
    process.start()
    return process


def hurt_run(folder: Path, kills: int, seconds: float, draw: random.Random) -> tuple[str, list[int]]:
    """What comes out, and after which epoch each kill hit."""
    work, out, hits = folder / "work", folder / "out.json", []
    while len(hits) < kills:
        process = start(work, out)
        process.join(draw.uniform(0.02, min(0.5, 2 / kills)) * seconds)
        if process.is_alive():
            process.kill()
            process.join()
            hits.append(epoch_of(work))
        else:  # it came to its end before the last kill: begin again
            shutil.rmtree(work)
    process = start(work, out)
    process.join()
    return out.read_text(), hits


def epoch_of(work: Path) -> int:
    files = list(work.glob("*.pt"))
    return torch.load(files[0], weights_only=True)["progress"]["epoch"] if files else 0


def compare(kills: int, seed: int = 0, folder: Path | None = None) -> list[int]:
    """The epochs that were hit; AssertionError where the bits differ."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        root = Path(name)
        began = time.perf_counter()
        process = start(root / "whole", root / "whole.json")
        process.join()
        seconds = time.perf_counter() - began
        text, hits = hurt_run(root, kills, seconds, random.Random(seed))
        assert text == (root / "whole.json").read_text(), "the resumed run ended with other weights"
    return hits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    hits = compare(arguments.kills, arguments.seed)
    print(
        f"{len(hits)} kills, after epochs {hits} of {SETTINGS['epochs']}: weights, branch and history are the same bits"
    )


if __name__ == "__main__":
    main()
