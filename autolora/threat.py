"""What the attacker may do: a norm, a radius in the pixels of the image as given, and the box that pixels live in.

    Threat("linf", "8/255")     Threat("l2", 0.5)     Threat.parse("linf:8/255")

One value travels from params.yaml to the metadata of the ONNX file; nothing passes four loose floats.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

NORMS = ("linf", "l2", "l1")


@dataclass(frozen=True, init=False)
class Threat:
    norm: str
    eps: float
    bounds: tuple[float, float]

    def __init__(self, norm: str, eps: float | str, bounds: tuple[float, float] = (0.0, 1.0)) -> None:
        """The radius is given as "8/255", "0.03" or a number, and kept as the float that it means."""
        object.__setattr__(self, "norm", str(norm).lower())
        object.__setattr__(self, "eps", parse_eps(eps))
        object.__setattr__(self, "bounds", bounds)
        if self.norm not in NORMS:
            raise ValueError(f"threat.norm is {self.norm!r}: expected one of {', '.join(NORMS)}")
        if self.norm == "linf" and self.eps > 1:
            raise ValueError(
                f"threat.eps is {self.eps:g}, larger than the whole pixel range [0, 1]: "
                f"for {self.eps:g} grey levels of 255 write '{self.eps:g}/255'"
            )

    @classmethod
    def parse(cls, text: str) -> Threat:
        """The inverse of str(threat)."""
        norm, _, eps = text.partition(":")
        return cls(norm, eps)

    @property
    def eps_text(self) -> str:
        """How people write the radius: "8/255" where it is a short fraction of 255, else the number."""
        quarters = round(self.eps * 255 * 4)
        if self.norm == "linf" and abs(quarters / 4 - self.eps * 255) < 1e-6:
            return f"{quarters / 4:g}/255"
        return f"{self.eps:.6g}"

    def as_record(self) -> dict:
        """Both units, so that nobody reads 8 where 8/255 is meant."""
        return {"norm": self.norm, "eps": self.eps, "eps_255": round(self.eps * 255, 6), "text": str(self)}

    def __str__(self) -> str:
        return f"{self.norm}:{self.eps_text}"


def parse_eps(eps: float | str) -> float:
    try:
        above, _, below = str(eps).partition("/")
        value = float(Fraction(above.strip()) / Fraction(below.strip() or 1))
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"threat.eps is {eps!r}: expected a number or a fraction such as '8/255'") from None
    if not value > 0:
        raise ValueError(f"threat.eps is {eps!r}: the radius must be larger than 0")
    return value
