"""What an evaluation found: flags per image, accuracy after each attack, checks and warnings as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from torch import Tensor

from autolora.attacks.verdicts import GRAVITY, Check, one_each
from autolora.common.statistics import wilson
from autolora.threat import Threat

MOST_SHOWN = 4  # checks that object


@dataclass(frozen=True)
class AttackResult:
    name: str
    robust_accuracy: float  # the share that is right after this attack and all before it
    broken: int  # images that this attack broke
    seconds: float
    processor_seconds: float  # of this process
    forwards: int  # in F: an input gradient counts as one more


@dataclass(repr=False)
class Report:
    threat: Threat
    version: str
    deviation: str | None  # in what this is not the standard version, in words
    seed: int
    ids: list[str]
    y: Tensor  # [n]
    clean: Tensor  # bool [n]
    robust: Tensor  # bool [n]
    predicted: Tensor  # [n] classes of the clean images
    adversarial: Tensor  # float [n,c,h,w]; the clean image where none was found
    fooled: Tensor  # [n] classes of the adversarial images
    attacks: list[AttackResult]
    checks: list[Check] = field(default_factory=list)  # every part of every check; the record joins them to sixteen
    precision: str = "float32"
    device: str = "cpu"
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def found(self) -> Tensor:
        """Right when clean, wrong in the ball: where `adversarial` differs from the image."""
        return self.clean & ~self.robust

    @property
    def clean_accuracy(self) -> float:
        return self.clean.double().mean().item()

    @property
    def robust_accuracy(self) -> float:
        return self.robust.double().mean().item()

    @property
    def ci95(self) -> tuple[float, float]:
        return wilson(int(self.robust.sum()), len(self.robust))

    @property
    def warnings(self) -> list[str]:
        return [f"{c.name}: {c.detail}" for c in self.checks if c.verdict == "warn"]

    @property
    def verdict(self) -> str:
        """One line for the record, with the names of the checks that object."""
        return self._sentence([f"{c.verdict}: {c.name}" for c in self._objecting])

    @property
    def in_words(self) -> str:
        """One line for people, with what is wrong."""
        return self._sentence([f"{c.verdict}: {c.title}" for c in self._objecting])

    @property
    def _objecting(self) -> list[Check]:
        return [c for c in self.checks if c.verdict in ("warn", "fail")]

    def _sentence(self, objections: list[str]) -> str:
        low, high = self.ci95
        what = f"{self.version} (not standard AutoAttack)"
        if self.version in ("standard", "strong"):
            what = "AutoAttack" if self.version == "standard" else "AutoAttack (standard, and then what strong adds)"
        return (
            f"{100 * self.robust_accuracy:.1f} % of {len(self.ids)} images stand {what} at {self.threat} "
            f"(95 %: {100 * low:.1f} to {100 * high:.1f}; clean {100 * self.clean_accuracy:.1f} %); "
            + ("; ".join(objections) or "no check objects")
        )

    def rows(self) -> list[tuple[str, str]]:
        """What people want to know, a line each."""
        low, high = self.ci95
        after = ", ".join(f"{a.name} {100 * a.robust_accuracy:.1f}" for a in self.attacks)
        checks = one_each(self.checks)
        count = {verdict: sum(c.verdict == verdict for c in checks) for verdict in GRAVITY}
        return [
            ("attack", f"{self.version} at {self.threat}" + (f" ({self.deviation})" if self.deviation else "")),
            ("images", f"{len(self.ids)}, seed {self.seed}, {self.precision} on {self.device}"),
            ("clean", f"{100 * self.clean_accuracy:.1f} %"),
            ("robust", f"{100 * self.robust_accuracy:.1f} % (95 %: {100 * low:.1f} to {100 * high:.1f})"),
            ("after", f"{after} %; {sum(a.seconds for a in self.attacks):.0f} s" if self.attacks else "no attack"),
            ("checks", ", ".join(f"{n} {verdict}" for verdict, n in count.items() if n)),
            *((c.verdict, f"{c.title}: {c.detail}") for c in self._objecting[:MOST_SHOWN]),
        ]

    def __repr__(self) -> str:
        """In lines, where the fields would be pages of tensors."""
        return "\n".join(["Report", *(f"  {name:<8}{said}" for name, said in self.rows())])

    def _repr_html_(self) -> str:
        """In a notebook."""
        cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(said)}</td></tr>" for name, said in self.rows())
        return f"<table>{cells}</table>"

    def as_record(self) -> dict[str, Any]:
        """The part of reports/robustness.json that one network determines; no times."""
        return {
            "threat": self.threat.as_record(),
            "version": self.version,
            "deviation": self.deviation,
            "clean_accuracy": self.clean_accuracy,
            "robust_accuracy": self.robust_accuracy,
            "ci95": list(self.ci95),
            "attacks": [{"name": a.name, "robust_accuracy": a.robust_accuracy} for a in self.attacks],
            "checks": [c.as_record() for c in one_each(self.checks)],
            "verdict": self.verdict,
            "warnings": self.warnings,
            "seed": self.seed,
            "device": self.device,
            "dtype": "float32",
            "precision": self.precision,
            "versions": self.versions,
        }


def by_class(report: Report, names: Sequence[str]) -> list[dict[str, Any]]:
    """Of each class that has images."""
    rows = []
    for label in report.y.unique().tolist():
        of = report.y == label
        shares = {"clean": report.clean[of], "robust": report.robust[of]}
        rows.append(
            {"class": named(names, label), "n": int(of.sum())}
            | {k: v.double().mean().item() for k, v in shares.items()}
        )
    return rows


def named(names: Sequence[str], label: int) -> str:
    """A model may answer for more classes than have names."""
    return names[label] if label < len(names) else str(label)
