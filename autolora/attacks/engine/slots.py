"""A batch of slots that is full while jobs wait: as soon as an image is broken or through, its slot takes the next job.

Every attack is a step on a batch of rows, each row at its own age. So no work is spent on images that are already
broken, and a batch ends only where the jobs do; then the slots that are left are the rows of the step. A job is
(image, attempt): a target class or a restart; the attempts on one image are independent, and the first that succeeds is
the one that counts, as if they had run one after another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from autolora.attacks.engine.draws import image_keys
from autolora.attacks.engine.network import replaced
from autolora.data.images import TestImages

State = dict[str, Tensor]
Job = tuple[int, int]  # image, attempt
Finish = Callable[[Job, Tensor | None], None]  # the adversarial image, or None


class Attack(Protocol):
    rounds: int  # steps until a row gives up
    gradients: float  # passes that one step of one row takes: forward and back to the pixels,
    forwards: float  # and without the way back

    def start(self, x: Tensor, y: Tensor, target: Tensor, keys: Tensor, attempts: np.ndarray) -> State:
        """Fresh rows."""

    def step(self, s: State, age: np.ndarray) -> tuple[Tensor, Tensor]:
        """Advance every row by one: which rows are broken now [b], and the points that break them [b,...].

        A step that takes a row further than one adds the rest to its age, in place.
        """


class Slots:
    """One batch of slots: what is in flight, and so what a kill loses.

    targets [n,attempts] are wrong classes of each image, most likely first; where they lie, the attack runs. The draws
    belong to `name`. A look at which rows are through makes a GPU wait, so there it comes after `every` steps only.
    """

    def __init__(
        self,
        attack: Attack,
        images: TestImages,
        targets: Tensor,
        *,
        name: str,
        seed: int,
        batch: int,
        every: int = 1,
    ) -> None:
        self.attack, self.images, self.targets, self.name, self.seed = attack, images, targets, name, seed
        self.x, self.y = images.pixels(targets.device), images.labels(targets.device)
        self.batch, self.every = batch, 1 if targets.device.type == "cpu" else every
        self.jobs: list[Job | None] = []
        self.age = np.zeros(0, dtype=np.int64)
        self.state: State = {}
        self.broken: dict[int, int] = {}  # image -> the first attempt that broke it

    def run(
        self,
        jobs: Iterable[Job],
        finish: Finish,
        tick: Callable[[int, int], None] = lambda done, left: None,
        keep: Callable[[], object] = lambda: None,
    ) -> None:
        """finish(job, adversarial or None) once for each job not overtaken; tick(steps done, steps not needed).

        `keep` is called when jobs have been finished, before the next step: here they can be written down.
        """
        queue = deque(jobs)
        size = min(len(queue), self.batch)
        self.jobs, self.age, self.state = [None] * size, np.full(size, self.attack.rounds), {}
        while self._refill(queue, tick):
            before = self._taken()
            for _ in range(self.every):
                self.step()
            tick(self._taken() - before, 0)
            if self._harvest(finish, tick):
                keep()

    def _taken(self) -> int:
        """Steps behind the rows; that of an idle slot does not move."""
        return int(np.minimum(self.age, self.attack.rounds).sum())

    def _refill(self, queue: deque[Job], tick: Callable[[int, int], None]) -> bool:
        if self.jobs and None not in self.jobs:
            return True
        fresh: dict[int, Job] = {}
        for slot in (i for i, job in enumerate(self.jobs) if job is None):
            while queue and self._overtaken(queue[0]):
                queue.popleft()
                tick(0, self.attack.rounds)
            if queue:
                fresh[slot] = queue.popleft()
        if fresh:
            self._put(fresh)
        self._shrink()
        return bool(self.jobs)

    def _overtaken(self, job: Job) -> bool:
        return self.broken.get(job[0], job[1] + 1) <= job[1]

    def _put(self, fresh: dict[int, Job]) -> None:
        rows = self.start(list(fresh.values()))
        slots = torch.tensor(list(fresh), device=self.targets.device)
        for name, value in rows.items():
            if name not in self.state:  # the first rows: the other slots idle on copies of them
                self.state[name] = value[torch.arange(len(self.jobs), device=value.device) % len(value)].clone()
            self.state[name][slots] = value
        self.age[list(fresh)] = 0
        for slot, job in fresh.items():
            self.jobs[slot] = job
            self.state["found"][slot] = False

    def _shrink(self) -> None:
        """Slots for which no job was left go."""
        keep = [slot for slot, job in enumerate(self.jobs) if job is not None]
        if len(keep) < len(self.jobs):
            rows = torch.tensor(keep, dtype=torch.long, device=self.targets.device)
            self.state = {name: value[rows] for name, value in self.state.items()}
            self.jobs, self.age = [self.jobs[slot] for slot in keep], self.age[keep]

    def start(self, jobs: list[Job]) -> State:
        """Fresh rows for these jobs."""
        device = self.targets.device
        index = torch.tensor([image for image, _ in jobs], device=device)
        attempts = np.array([attempt for _, attempt in jobs])
        names = [(f"{self.name}/{attempt}", self.images.ids[image]) for image, attempt in jobs]
        keys = torch.cat([image_keys(self.seed, name, [image]) for name, image in names]).to(device)
        target = self.targets[index, torch.from_numpy(attempts % self.targets.shape[1]).to(device)]
        x = self.x[index].clone()
        state = self.attack.start(x, self.y[index], target, keys, attempts)
        return state | {"found": torch.zeros(len(jobs), dtype=torch.bool, device=device), "adversarial": x.clone()}

    def step(self) -> None:
        """Every row one step further; what breaks its image is kept."""
        s = self.state
        going = torch.from_numpy(self.age < self.attack.rounds).to(s["found"].device)
        wrong, points = self.attack.step(s, self.age)
        new = wrong & ~s["found"] & going
        if new.device.type != "cpu" or new.any():  # on a GPU asking costs more than copying
            s["adversarial"] = replaced(s["adversarial"], new, points)
            s["found"] |= new
        self.age += 1

    def _harvest(self, finish: Finish, tick: Callable[[int, int], None]) -> bool:
        """Whether any row was through."""
        if not self.state["found"].any() and (self.age < self.attack.rounds).all():
            return False
        found = self.state["found"].tolist()
        for slot, job in enumerate(self.jobs):
            if job is not None and found[slot]:
                self.broken[job[0]] = min(job[1], self.broken.get(job[0], job[1]))
        for slot, job in enumerate(self.jobs):
            if job is None:
                continue
            overtaken = self.broken.get(job[0], job[1]) < job[1]
            if not (overtaken or found[slot] or self.age[slot] >= self.attack.rounds):
                continue
            tick(0, max(self.attack.rounds - int(self.age[slot]), 0))
            self.jobs[slot], self.age[slot] = None, self.attack.rounds
            if not overtaken:
                finish(job, self.state["adversarial"][slot].cpu().clone() if found[slot] else None)
        return True
