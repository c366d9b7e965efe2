"""Training only some blocks, chosen greedily (SubTuning: Kaplun et al., 2023), here by validation RA.

    S = {};   b* = argmax_b RA(head + S + {b}),   S <- S + {b*}     each b is trained shortly, from the same start

The published method is natural, and goes on while accuracy gains. Here a further block must be surely better by a
paired test on the same validation images: with few images the best of many looks good by chance. The first one need
only be better: the head alone is what `trains: head` is for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from autolora.backbones.layers import block_layers
from autolora.common import distributed
from autolora.common.errors import BadArgument
from autolora.common.files import read_json, write_json
from autolora.training.branch import block_of
from autolora.training.controllers import SURE, rise

MOST = 3  # blocks that are chosen: few do most of it, and a round costs nearly a short run for each block that is left
SHORT = 6  # a short run has a sixth of the epochs

Tries = dict[str, list[int]]  # names of blocks, with a space between two: which validation images were right, 0 or 1


def blocks_of(model: nn.Module) -> list[str]:
    """In the order of the network; a layer that lies in no block is one."""
    names = [block_of(model, name) or name for name, _ in block_layers(model)]
    if not names:
        raise BadArgument("trains", "blocks", "the network has no convolution or linear layer between stem and head")
    return list(dict.fromkeys(names))


def check_blocks(model: nn.Module, blocks: Sequence[str]) -> None:
    for block in set(blocks) - set(known := blocks_of(model)):
        raise BadArgument("blocks", block, f"the network has {', '.join(known)}")


def short_runs(blocks: int) -> int:
    """At most: the head alone, then in each round one for each block that is not chosen yet."""
    return 1 + sum(blocks - chosen for chosen in range(min(MOST, blocks)))


def short_epochs(epochs: int) -> int:
    return max(1, epochs // SHORT)


def choose(blocks: Sequence[str], tried: Callable[[tuple[str, ...]], Sequence[int]]) -> tuple[str, ...]:
    """`tried` trains the head and these blocks shortly, and says which validation images are right then."""
    chosen: tuple[str, ...] = ()
    kept = tried(chosen)
    while len(chosen) < min(MOST, len(blocks)):
        found = {block: tried((*chosen, block)) for block in blocks if block not in chosen}
        best = max(found, key=lambda block: sum(found[block]))  # ties: the earlier one
        if rise(kept, found[best]) <= (SURE if chosen else 0):
            break
        chosen, kept = (*chosen, best), found[best]
    return chosen


def remembered(
    tried: Callable[[tuple[str, ...]], Sequence[bool]], file: Path | None, tries: Tries
) -> Callable[[tuple[str, ...]], Sequence[int]]:
    """The same, asked once for each choice: what was found lies in `tries`, and in `file` for a run that is killed."""
    found = distributed.of_the_first(read_json(file) if file is not None and file.exists() else [])
    tries |= {name: [int(digit) for digit in digits] for name, digits in found}

    def asked(blocks: tuple[str, ...]) -> Sequence[int]:
        name = " ".join(blocks)
        if name not in tries:
            tries[name] = [int(right) for right in tried(blocks)]
            if file is not None and distributed.process_number() == 0:
                write_json(file, [(name, "".join(map(str, right))) for name, right in tries.items()])
        return tries[name]

    return asked


def as_records(tries: Tries) -> list[dict[str, Any]]:
    """For files: which blocks were trained, and the share of validation images that was right then."""
    return [{"blocks": name.split(), "right": sum(right) / len(right)} for name, right in tries.items()]
