"""A batch of slots that is always full: whenever an image is broken or through, its slot takes the next job.

Every attack is a step on a batch of rows, each row at its own age. So forwards have one shape, no work is spent on
images that are already broken, and the last batches stay full. A job is (image, rank): a target class or a restart;
ranks of one image are independent, and the lowest that succeeds is the one that counts, as if they had run one after
another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from autolora.attacks.draws import image_keys
from autolora.attacks.network import replaced

State = dict[str, Tensor]
Job = tuple[int, int]  # image, rank
Finish = Callable[[Job, Tensor | None], None]  # the adversarial image, or None


class Attack(Protocol):
    rounds: int  # steps until a row gives up

    def start(self, x: Tensor, y: Tensor, target: Tensor, keys: Tensor, ranks: np.ndarray) -> State:
        """Fresh rows."""

    def step(self, s: State, age: np.ndarray) -> tuple[Tensor, Tensor]:
        """Advance every row by one: which rows are broken now [b], and the points that break them [b,...]."""


@dataclass(frozen=True)
class Images:
    x: Tensor  # [n,c,h,w] on the device
    y: Tensor  # [n]
    targets: Tensor  # [n,ranks]: wrong classes, most likely first
    ids: list[str]


class Slots:
    """`size` slots, a multiple of the one batch shape of all forwards; fewer when there is less to do."""

    def __init__(
        self, attack: Attack, images: Images, name: str, seed: int, batch: int, every: int = 1, wide: int = 4
    ) -> None:
        self.attack, self.images, self.name, self.seed, self.batch, self.every = (
            attack,
            images,
            name,
            seed,
            batch,
            every,
        )
        self.wide = wide
        self.jobs: list[Job | None] = []
        self.age = np.zeros(0, dtype=np.int64)
        self.state: State = {}
        self.broken: dict[int, int] = {}  # image -> lowest rank that broke it

    def run(
        self, jobs: Iterable[Job], finish: Finish, tick: Callable[[int, int], None] = lambda done, left: None
    ) -> None:
        """finish(job, adversarial or None) once for each job not overtaken; tick(steps done, steps not needed)."""
        queue = deque(jobs)
        size = min(-(-len(queue) // self.batch), self.wide) * self.batch
        self.jobs, self.age, self.state = [None] * size, np.full(size, self.attack.rounds), {}
        while self._refill(queue, tick):
            for _ in range(self.every):
                self._step()
            tick(self.every * sum(job is not None for job in self.jobs), 0)
            self._harvest(finish, tick)

    def _refill(self, queue: deque[Job], tick: Callable[[int, int], None]) -> bool:
        fresh: dict[int, Job] = {}
        for slot in (i for i, job in enumerate(self.jobs) if job is None):
            while queue and self._overtaken(queue[0]):
                queue.popleft()
                tick(0, self.attack.rounds)
            if queue:
                fresh[slot] = queue.popleft()
        if fresh:
            self._put(fresh)
        else:
            self._shrink()
        return any(job is not None for job in self.jobs)

    def _overtaken(self, job: Job) -> bool:
        return self.broken.get(job[0], job[1] + 1) <= job[1]

    def _put(self, fresh: dict[int, Job]) -> None:
        rows = self._start(list(fresh.values()))
        slots = torch.tensor(list(fresh), device=self.images.x.device)
        for name, value in rows.items():
            if name not in self.state:  # the first rows: the other slots idle on copies of them
                self.state[name] = value[torch.arange(len(self.jobs), device=value.device) % len(value)].clone()
            self.state[name][slots] = value
        self.age[list(fresh)] = 0
        for slot, job in fresh.items():
            self.jobs[slot] = job
            self.state["found"][slot] = False

    def _shrink(self) -> None:
        """Nothing waits: idle slots go, in whole batches."""
        order = sorted(range(len(self.jobs)), key=lambda slot: self.jobs[slot] is None)
        size = -(-sum(job is not None for job in self.jobs) // self.batch) * self.batch
        if size < len(self.jobs):
            keep = order[:size]
            rows = torch.tensor(keep, dtype=torch.long, device=self.images.x.device)
            self.state = {name: value[rows] for name, value in self.state.items()}
            self.jobs, self.age = [self.jobs[slot] for slot in keep], self.age[keep]

    def _start(self, jobs: list[Job]) -> State:
        images, device = self.images, self.images.x.device
        index = torch.tensor([image for image, _ in jobs], device=device)
        ranks = np.array([rank for _, rank in jobs])
        keys = torch.cat([image_keys(self.seed, f"{self.name}/{r}", [images.ids[i]]) for i, r in jobs]).to(device)
        target = images.targets[index, torch.from_numpy(ranks % images.targets.shape[1]).to(device)]
        x = images.x[index].clone()
        state = self.attack.start(x, images.y[index], target, keys, ranks)
        return state | {"found": torch.zeros(len(jobs), dtype=torch.bool, device=device), "adversarial": x.clone()}

    def _step(self) -> None:
        s = self.state
        wrong, points = self.attack.step(s, self.age)
        new = wrong & ~s["found"] & torch.from_numpy(self.age < self.attack.rounds).to(wrong.device)
        if new.device.type != "cpu" or new.any():  # on a GPU asking costs more than copying
            s["adversarial"] = replaced(s["adversarial"], new, points)
            s["found"] |= new
        self.age += 1

    def _harvest(self, finish: Finish, tick: Callable[[int, int], None]) -> None:
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
            self.jobs[slot] = None
            if not overtaken:
                finish(job, self.state["adversarial"][slot].cpu().clone() if found[slot] else None)
