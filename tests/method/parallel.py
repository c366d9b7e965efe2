"""Run by torchrun in tests: fine-tune in one or several processes and keep what came out.

torchrun --nproc-per-node 2 -m tests.method.parallel FOLDER METHOD[+AUGMENTATION]...
"""

import sys
from pathlib import Path

import torch

from autolora.common import distributed
from autolora.training.loop import finetune
from tests.method.small import QUICK, THREAT, images, network


def tune(folder: str | Path, chosen: str) -> None:
    method, _, augmentation = chosen.partition("+")
    pixels = [torch.from_numpy(x).double() / 255 for x, _ in (images(39), images(13, 1))]
    with distributed.group():
        tuned = finetune(
            network().double(),
            (pixels[0], images(39)[1]),
            (pixels[1], images(13, 1)[1]),
            THREAT,
            method=method,
            checkpoints=folder,
            **QUICK
            | ({"augmentation": augmentation} if augmentation else {}),  # global batches of 16, 16 and 7: uneven parts
        )
        kept = {"model": tuned.model.state_dict(), "history": tuned.history}
        torch.save(kept, Path(folder) / f"{chosen}-{distributed.process_count()}-{distributed.process_number()}.out")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with distributed.group():  # once for all, as the stage does: gloo hung when a second group met on the same store
        for name in sys.argv[2:]:
            tune(sys.argv[1], name)
