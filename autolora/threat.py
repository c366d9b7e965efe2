"""What the attacker may do: a norm, and a radius in the pixels of the image as given. Pixels stay in [0, 1].

    Threat("linf", "8/255")     Threat("l2", 0.5)     Threat.parse("linf:8/255")

One value travels from params.yaml to the metadata of the ONNX file; nothing passes two loose numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from autolora.common.errors import BadArgument

NORMS = ("linf", "l2", "l1")


@dataclass(frozen=True, init=False)
class Threat:
    norm: str
    eps: float

    def __init__(self, norm: str, eps: float | str) -> None:
        """The radius is given as "8/255", "0.03" or a number, and kept as the float that it means."""
        object.__setattr__(self, "norm", str(norm).lower())
        object.__setattr__(self, "eps", parse_eps(eps))
        if self.norm not in NORMS:
            raise BadArgument("norm", self.norm, f"expected one of {', '.join(NORMS)}")
        if self.norm == "linf" and self.eps > 1:
            raise BadArgument(
                "eps",
                self.eps,
                f"larger than the whole pixel range [0, 1]: for {self.eps:g} grey levels of 255 "
                f"write '{self.eps:g}/255'",
            )

    @classmethod
    def parse(cls, text: str) -> Threat:
        """The inverse of str(threat)."""
        norm, _, eps = text.partition(":")
        return cls(norm, eps)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Threat:
        """The inverse of as_record()."""
        return cls(record["norm"], record["eps"])

    @property
    def eps_text(self) -> str:
        """How people write the radius: "8/255" where it is exactly that, else the number with all its digits."""
        quarters = f"{round(self.eps * 255 * 4) / 4:g}/255"
        if self.norm == "linf" and quarters != "0/255" and parse_eps(quarters) == self.eps:
            return quarters
        return f"{self.eps:g}" if float(f"{self.eps:g}") == self.eps else repr(self.eps)

    def as_record(self) -> dict[str, Any]:
        """Both units, so that nobody reads 8 where 8/255 is meant."""
        return {"norm": self.norm, "eps": self.eps, "eps_255": round(self.eps * 255, 6), "text": str(self)}

    def __str__(self) -> str:
        return f"{self.norm}:{self.eps_text}"


def parse_eps(eps: float | str) -> float:
    try:
        above, _, below = str(eps).partition("/")
        if "/" in below:  # Fraction would take it for one more division
            raise ValueError(below)
        value = float(Fraction(above.strip()) / Fraction(below.strip() or 1))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise BadArgument("eps", eps, "expected a number or a fraction such as '8/255'") from None
    if not value > 0:
        raise BadArgument("eps", eps, "the radius must be larger than 0")
    return value


def require_threat(value: Any) -> None:
    """Whoever calls from Python may give a radius, or a threat as text."""
    if not isinstance(value, Threat):
        raise BadArgument("threat", value, "expected autolora.Threat('linf', '8/255'), for instance")
