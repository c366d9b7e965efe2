"""One attack on a quick copy of the network, and the network itself as the judge of what it finds.

A copy's success counts only once the network has seen the point and is fooled too. Where a copy's first success on an
image is none for the network, nothing that the copy found there counts, and the network itself is attacked: which of
the image's later attempts had been made by then must make no difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from autolora.attacks.engine.network import Network, predicted
from autolora.attacks.engine.slots import Job, Slots
from autolora.attacks.evaluation import Evaluation
from autolora.attacks.versions import Step
from autolora.common import distributed
from autolora.common.progress import bar

Found = dict[Job, Tensor | None]  # (image, attempt) -> the adversarial image, or None
Tick = Callable[[int, int], None]  # steps taken, steps that proved unnecessary
AGAIN = "-again"  # in the names of progress files: what was attacked again on the network itself


def attack(e: Evaluation, step: Step, images: list[int]) -> Found:
    """What this attack comes to on these images, found now or known from an earlier life."""
    found = _known(e, step.name, images)
    again = _known(e, f"{step.name}{AGAIN}", images)
    doubtful = _run(e, step, images, Confirmation(e, step.name, found), on=e.attacked_by(step))
    if doubtful:
        found = {job: point for job, point in found.items() if job[0] not in doubtful}
        again = {job: point for job, point in again.items() if job[0] in doubtful}
        _run(e, step, doubtful, Confirmation(e, f"{step.name}{AGAIN}", again), on=e.network)
        found |= again
    return found


def _known(e: Evaluation, name: str, images: list[int]) -> Found:
    distributed.wait()  # no process writes while another reads
    known = e.journal.read(name)
    distributed.wait()
    where = {e.images.ids[i]: i for i in images}
    return {(where[image], attempt): point for (image, attempt), point in known.items() if image in where}


class Confirmation:
    """What one attack finds in this process, written into the journal as soon as it counts."""

    def __init__(self, e: Evaluation, name: str, found: Found) -> None:
        self.e, self.name, self.found = e, name, found
        self.claimed: dict[Job, Tensor] = {}  # successes on a copy that the network has not seen yet
        self.refuted: dict[int, int] = {}  # image -> the first attempt whose success is none for the network

    def keep(self, job: Job, point: Tensor | None) -> None:
        self.found[job] = point
        self.e.journal.add(self.name, self.e.images.ids[job[0]], job[1], point)

    def hear(self, job: Job, point: Tensor | None) -> None:
        """What came of a job on a copy."""
        if point is None:
            return self.keep(job, point)
        self.claimed[job] = point
        if len(self.claimed) >= self.e.network.batch:
            self.confirm()

    def confirm(self) -> None:
        """The network itself is shown what the copy has found."""
        if not self.claimed:
            return
        seen = predicted(self.e.network.all_logits(torch.stack(list(self.claimed.values())), self.e.device))
        for ((image, attempt), point), label in zip(list(self.claimed.items()), seen.tolist()):
            if label != self.e.images.y[image]:
                self.keep((image, attempt), point)
            else:
                self.refuted[image] = min(attempt, self.refuted.get(image, attempt))
        self.claimed.clear()

    def flush(self) -> None:
        self.e.journal.flush(self.name)

    def doubtful(self) -> list[int]:
        """Images on which the first success was one on the copy only."""
        return sorted(image for image, first in self.refuted.items() if not self._broken_before(image, first))

    def _broken_before(self, image: int, attempt: int) -> bool:
        return any(self.found.get((image, earlier)) is not None for earlier in range(attempt))


def _run(e: Evaluation, step: Step, images: list[int], known: Confirmation, *, on: Network) -> list[int]:
    """Attack what is not known yet; the images of which the network itself says otherwise than its copy."""
    attack = step.attack(on, e.threat)
    jobs = [(image, attempt) for attempt in range(step.attempts) for image in images]
    jobs = [job for job in jobs if job not in known.found]
    targets = e.targets_of(step, sorted({image for image, _ in jobs}))
    slots = Slots(attack, e.images, targets, name=step.name, seed=e.settings.seed, batch=on.batch, every=step.every)
    for image, attempt in [job for job, point in known.found.items() if point is not None]:
        slots.broken[image] = min(attempt, slots.broken.get(image, attempt))
    hear = known.keep if on is e.network else known.hear
    with _bar(e, step.name, len(jobs) * attack.rounds, lambda: (len(images) - len(slots.broken), len(images))) as tick:
        slots.run(jobs, hear, _timed(e, 2 * attack.gradients + attack.forwards, tick), known.flush)
    known.confirm()
    known.flush()
    return known.doubtful()


def _timed(e: Evaluation, cost: float, tick: Tick) -> Tick:
    """The forecast hears what was really done."""

    def heard(taken: int, saved: int) -> None:
        if e.forecast is not None and taken:
            e.forecast.hear(taken * cost)
        tick(taken, saved)

    return heard


@contextmanager
def _bar(e: Evaluation, name: str, steps: int, left: Callable[[], tuple[int, int]]) -> Iterator[Tick]:
    """How many images are left, and how long still; steps that prove unnecessary leave the total."""
    shape = "{desc} {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left"
    hidden = not (e.settings.show and steps and distributed.process_number() == 0)

    processes = distributed.process_count()
    share = f" (process 1 of {processes})" if processes > 1 else ""  # whose images are a part of all

    def said() -> str:
        return "{}: {} of {} stand{}".format(name, *left(), share)

    shown = bar(steps, said(), bar_format=shape, disable=hidden)

    def tick(taken: int, saved: int) -> None:
        shown.total -= saved
        shown.set_description_str(said(), refresh=False)
        shown.update(taken)

    with shown:
        yield (lambda taken, saved: None) if hidden else tick
