"""The members that `finetune` left, as one network: merge.soup."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, cast

from torch import Tensor

from autolora.backbones.classifier import Classifier, load_classifier, read_notes
from autolora.common.progress import bar
from autolora.training.branch import load_deltas
from autolora.training.dial import Point
from autolora.training.soup import Member, Soup, greedy, stock, uniform
from stages.common.runner import StageError
from stages.merging.validation import FINETUNED, Validation

MEMBERS = FINETUNED / "members"


class Cooked(NamedTuple):
    network: Classifier
    deltas: dict[str, Tensor]
    notes: dict[str, str]  # for the file of the merged network


def cooked(kind: str, count: int, validation: Validation) -> Cooked:
    """The soup, on the CPU."""
    members = [_member(i) for i in range(count)]
    if kind == "greedy":
        soup = _greedy(members, validation)
    else:
        soup = uniform(members) if kind == "uniform" else stock(load_classifier(MEMBERS / "start.safetensors"), members)
    said = " ".join(str(i + 1) for i in soup.members)
    print(f"merge: a {kind} soup of member {said} of {count}")
    digests = " ".join(read_notes(file_of(i))["weights_sha256"] for i in range(count))
    notes = {"soup": kind, "soup_members": said, "members_sha256": digests}
    return Cooked(cast(Classifier, soup.network), soup.deltas, notes)


def file_of(member: int) -> Path:
    return MEMBERS / f"{member + 1}.safetensors"


def _member(i: int) -> Member:
    if not file_of(i).exists():
        raise StageError(f"{file_of(i)} is missing: run `dvc repro finetune` with finetune.members at least {i + 1}")
    return Member(load_classifier(file_of(i)), load_deltas(MEMBERS / f"{i + 1}-branch.safetensors"))


def _greedy(members: list[Member], validation: Validation) -> Soup:
    with bar((2 * len(members) - 1) * len(validation), "the soup", "image") as shown:

        def measure(chosen: tuple[int, ...]) -> Point:
            name = "members-" + "+".join(str(i + 1) for i in chosen)
            flags = validation.judged(name, lambda: cast(Classifier, uniform(members, chosen).network), shown.update)
            return Point("soup", 0.0, *flags)

        return greedy(members, measure)
