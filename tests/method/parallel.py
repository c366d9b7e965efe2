"""Run by torchrun in tests: fine-tune in one or several processes and keep what came out.

torchrun --nproc-per-node 2 -m tests.method.parallel FOLDER METHOD[+AXIS=VALUE]...
"""

import sys
from pathlib import Path

import torch

from autolora.common import distributed
from autolora.threat import Threat
from autolora.training.loop import finetune
from tests.method.small import QUICK, images, network

NUMBERS = {"weight_attack": float, "smoothing": float, "average": float, "epochs": int}


def tune(folder: str | Path, chosen: str) -> None:
    method, *axes = chosen.split("+")
    changes = dict(axis.split("=") for axis in axes)
    threat = Threat("linf", changes.pop("eps", "8/255"))
    changes = {axis: NUMBERS.get(axis, str)(value) for axis, value in changes.items()}
    pixels = [torch.from_numpy(x).double() / 255 for x, _ in (images(39), images(13, 1))]
    with distributed.group():
        tuned = finetune(
            network().double(),
            (pixels[0], images(39)[1]),
            (pixels[1], images(13, 1)[1]),
            threat,
            method=method,
            checkpoints=folder,
            **QUICK | changes,  # global batches of 16, 16 and 7: uneven parts
        )
        kept = {"model": tuned.model.state_dict(), "history": tuned.history}
        torch.save(
            kept,
            Path(folder)
            / f"{chosen.replace('/', ':')}-{distributed.process_count()}-{distributed.process_number()}.out",
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    with distributed.group():  # once for all, as the stage does: gloo hung when a second group met on the same store
        for name in sys.argv[2:]:
            tune(sys.argv[1], name)
