"""Which values of the axes exclude each other. Without torch: params.yaml is checked by the same lines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

NO_ATTACK = ("natural", "linear")
RANK = 8  # of the low-rank branch, as published
FIRST_PASS, TWIN = "first_pass", "twin"  # teachers that the run makes itself
TEACHERS = {"teacher": FIRST_PASS, "natural_teacher": TWIN}
ONE_LABEL = ("mart", "arow")  # these weigh each image by the answer for its one label
APART = ("madry", "natural", "linear")  # these never compare an image with itself under attack
OWN_PARTS = ("autolora", "twins", "linear")  # these methods say themselves what is trained
NEEDS_ATTACK = [("attack", "single"), ("attack", "pgd"), ("start", "robust_head"), ("trains", "prominent")]
NEEDS_ATTACK += [("eps_schedule", "ramp")]


class Asked(Protocol):
    """Of a run: the library's settings, or the section of params.yaml."""

    @property
    def method(self) -> str: ...
    @property
    def reference(self) -> str: ...
    @property
    def start(self) -> str: ...
    @property
    def attack(self) -> str: ...
    @property
    def trains(self) -> str: ...
    @property
    def rank(self) -> int: ...
    @property
    def gamma(self) -> float: ...
    @property
    def weight_attack(self) -> float | None: ...
    @property
    def augmentation(self) -> str: ...
    @property
    def eps_schedule(self) -> str: ...
    @property
    def smoothing(self) -> float: ...
    @property
    def teacher(self) -> str | None: ...
    @property
    def natural_teacher(self) -> str | None: ...


def clashes(asked: Asked, norm: str) -> Iterator[tuple[str, object, str]]:
    """An axis, its value, and the other key that does not go with it."""
    if asked.method in NO_ATTACK:
        for key, value in NEEDS_ATTACK:
            if getattr(asked, key) == value:
                yield key, value, f"method {asked.method} has no attack"
        if asked.weight_attack is not None:
            yield "weight_attack", asked.weight_attack, f"method {asked.method} has no attack"
    if asked.attack == "single" and norm != "linf":
        yield "attack", "single", f"norm is {norm}: one step is enough for linf alone"
    if asked.trains != "all" and asked.method in OWN_PARTS:
        yield "trains", asked.trains, f"method {asked.method} says itself what is trained"
    if asked.rank != RANK and asked.trains != "lora" and "autolora" not in (asked.method, *_before(asked)):
        yield (
            "rank",
            asked.rank,
            f"method {asked.method} has no low-rank branch, and trains is {asked.trains}, not lora",
        )
    if asked.gamma != 1 and asked.method != "twins":
        yield "gamma", asked.gamma, f"method {asked.method} has no second network to weigh: twins has"
    if asked.trains == "lora" and asked.weight_attack is not None:
        yield "weight_attack", asked.weight_attack, "trains is lora: the weights themselves stay"
    if asked.trains == "prominent" and asked.augmentation == "interpolate":
        yield "trains", "prominent", "augmentation interpolate mixes images inside the loss: set it to cutmix"
    if asked.augmentation == "cutmix" and asked.method in ONE_LABEL:
        yield "augmentation", "cutmix", f"method {asked.method} weighs each image by the answer for its one label"
    if asked.augmentation == "interpolate" and asked.method not in APART:
        said = f"method {asked.method} compares each image with itself under attack, and the two are mixed apart"
        yield "augmentation", "interpolate", f"{said}: set method to {', '.join(APART[:-1])} or {APART[-1]}"
    yield from _of_teachers(asked)
    if asked.eps_schedule == "ramp" and asked.reference in ("paper", "released"):
        said = f"reference {asked.reference} judges progress from the first epoch on: set reference to best"
        yield "eps_schedule", "ramp", said


def _before(asked: Asked) -> list[str]:
    """Methods of the runs that come first."""
    return ["autolora"] if asked.teacher == FIRST_PASS else []


def _of_teachers(asked: Asked) -> Iterator[tuple[str, object, str]]:
    if asked.method == "distill":
        if asked.teacher is None:
            yield "method", "distill", f"teacher is none: give a classifier file, or {FIRST_PASS}"
        if asked.smoothing:
            yield "smoothing", asked.smoothing, "method distill learns from its teacher's answers, not from labels"
    for key, made in TEACHERS.items():
        value = getattr(asked, key)
        if value is not None and asked.method != "distill":
            yield key, value, f"method {asked.method} has no teacher: set method to distill"
        elif value not in (None, made) and not Path(value).is_file():
            yield key, value, f"there is no such file: give a classifier file, or {made}"
