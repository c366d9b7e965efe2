"""params.yaml, checked: one frozen model per section.

    params = check("params.yaml");  params.threat;  params.merge.alpha

An unknown key, a wrong type or an impossible value stops with one line naming the key, the value, and what is allowed.
What a stage sees of it is in views.py.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from autolora.attacks.also_flags import UNION, WORD
from autolora.common.command_line import nearest
from autolora.common.errors import BadArgument
from autolora.threat import Threat
from autolora.training.axes import RANK
from stages.common.contradictions import contradictions
from stages.common.errors import StageError
from stages.common.recipes import with_recipe
from stages.common.scrub import scrubbed
from stages.common.yaml_text import short

LISTED = 20  # faults told at once
Fraction = Annotated[float, Field(gt=0, lt=1)]


def none_in_words(word: str) -> BeforeValidator:
    """A word for null, which DVC would write back as an empty value when it sets another key of the file."""
    return BeforeValidator(lambda value: None if value == word else value)


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ImageSize(Section):
    image_size: int = Field(ge=8, le=1024)


class Drawn(ImageSize):
    """How large images are, and into which parts they are drawn."""

    stored_size: Annotated[Annotated[int, Field(ge=8, le=1024)] | None, none_in_words("auto")] = None
    validation_fraction: Fraction = 0.05
    test_fraction: Fraction = 0.2

    @field_validator("stored_size")
    @classmethod
    def _large_enough(cls, stored: int | None, info: ValidationInfo) -> int | None:
        if stored is not None and stored < info.data.get("image_size", 0):
            raise ValueError(f"expected auto, or at least data.image_size ({info.data['image_size']})")
        return stored


class Prepared(Drawn):
    source: Literal[
        "digits", "folder", "csv", "npz", "sheets", "cifar10", "cifar100", "dtd", "caltech256", "dogs", "cub200"
    ]
    path: str = "data/raw"


class Judged(Drawn):
    on_bad_image: Literal["stop", "skip"] = "stop"
    reference_manifest: Annotated[str | None, none_in_words("none")] = None


class Data(Prepared, Judged):
    """All of it: prepare sees one half, validate the other."""


class Backbone(Section):
    arch: str
    weights: str | None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    stem: Literal["timm", "lowres", "nopool"] = "timm"
    options: dict[str, Any] = {}
    network_size: int | None = Field(None, ge=8, le=1024)
    mean: list[float] | None = None
    std: list[float] | None = None
    trained_for: str | None = None

    @field_validator("weights")
    @classmethod
    def _holds_no_secret(cls, weights: str | None) -> str | None:
        if weights is not None and scrubbed(weights) != weights:
            raise ValueError("a name, password or token in an address ends up in records: leave it out")
        return weights

    @field_validator("trained_for")
    @classmethod
    def _is_a_threat(cls, text: str | None) -> str | None:
        return None if text is None else str(Threat.parse(text))


class ThreatSection(Section):
    """As it is written; everybody else sees the Threat that it means."""

    norm: Literal["linf", "l2", "l1"]
    eps: float | str | int

    @field_validator("eps")
    @classmethod
    def _parses(cls, eps: float | str | int, info: ValidationInfo) -> float | str | int:
        try:
            Threat(info.data.get("norm", "l2"), eps)
        except BadArgument as error:
            raise ValueError(error.reason) from None
        return eps

    def value(self) -> Threat:
        return Threat(self.norm, self.eps)


if TYPE_CHECKING:
    AsThreat = Threat
else:
    AsThreat = Annotated[ThreatSection, AfterValidator(ThreatSection.value)]


class Finetune(Section):
    recipe: Annotated[str | None, none_in_words("none")] = None
    method: Literal["autolora", "vanilla", "twins", "madry", "mart", "arow", "distill", "natural", "linear"] = (
        "autolora"
    )
    reference: Literal["auto", "paper", "released", "best", "slow_start"] = "auto"
    start: Literal["pretrained", "robust_head"] = "pretrained"
    attack: Literal["auto", "pgd", "single"] = "auto"
    teacher: Annotated[str | None, none_in_words("none")] = None
    natural_teacher: Annotated[str | None, none_in_words("none")] = None
    trains: Literal["all", "lora", "head", "blocks", "prominent"] = "all"
    rank: int = Field(RANK, ge=1)  # of AutoLoRa's branch, and of the change that lora trains
    weight_attack: Annotated[float, Field(ge=0, le=0.1)] | None = None
    smoothing: Annotated[float, Field(ge=0, le=0.3)] = 0.0
    eps_schedule: Literal["auto", "constant", "ramp"] = "auto"
    epochs: int = Field(60, ge=1)
    batch_size: int = Field(128, ge=2)
    augmentation: Literal["auto", "crop_flip", "crop", "rrc_flip", "idbh", "cutmix", "interpolate", "none"] = "auto"
    average: Fraction | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: Literal["auto"] | bool = "auto"
    channels_last: Literal["auto"] | bool = "auto"
    rate: float | None = Field(None, gt=0)
    decay: float | None = Field(None, ge=0)
    gamma: float = Field(1.0, ge=0)
    members: int = Field(1, ge=1)  # runs from one start that differ by seed, for merge.soup


class Merge(Section):
    alpha: Literal["auto"] | Annotated[float, Field(ge=0, le=1)] | Annotated[int, Field(ge=0, le=1)] = "auto"
    toward: Literal["branch", "natural", "critical"] = "branch"
    soup: Literal["none", "uniform", "greedy", "stock"] = "none"
    mix: Literal["none", "nuts"] = "none"


def other_threat(text: str) -> str:
    """A word of evaluate.also as everybody writes it."""
    if text == WORD:
        return text
    try:
        return str(Threat.parse(text))
    except BadArgument as error:
        raise ValueError(f"{text!r} is neither a threat such as l2:0.5 nor {WORD} ({error})") from None


class Evaluate(Section):
    version: Literal["standard", "plus", "strong", "rand", "fast"] = "standard"
    images: Literal["all"] | Annotated[int, Field(ge=1)] = "all"
    precision: Literal["float32", "mixed"] = "float32"
    also: list[str] = []  # more threats, and corruptions

    @property
    def also_threats(self) -> list[Threat]:
        return [Threat.parse(text) for text in self.also if text != WORD]

    @field_validator("also")
    @classmethod
    def _are_threats(cls, words: list[str]) -> list[str]:
        found = [other_threat(word) for word in words]
        if twice := sorted({word for word in found if found.count(word) > 1}):
            raise ValueError(f"{', '.join(twice)} stands there twice")
        return found

    @field_validator("precision", mode="before")
    @classmethod
    def _today(cls, word: Any) -> Any:
        earlier = {"full": "float32", "fast": "mixed"}
        if isinstance(word, str) and word in earlier:
            raise ValueError(f"it is now called {earlier[word]}")
        return word


class Export(Section):
    variants: list[Literal["fp16", "int8"]] = []
    max_robust_drop: float = Field(1.0, ge=0)
    check_images: int = Field(100, ge=0)
    input: Literal["float32", "uint8"] = "float32"
    license: str | None = None


class Gates(Section):
    """What a version must show before an alias moves to it (pipelines.promote)."""

    clean: float = Field(0.0, ge=0, le=1)
    robust: float = Field(0.0, ge=0, le=1)
    attack: Literal["standard", "plus", "strong", "rand", "fast"] = (
        "standard"  # for standard, plus and strong count too
    )
    threat: str | None = None  # "linf:8/255": this norm, and at least this eps
    images: int = Field(100, ge=1)  # that were attacked
    lower: float = Field(0.0, ge=0, le=1)  # end of the 95 % interval of the robust accuracy
    label_flips: int = Field(0, ge=0)  # between the ONNX file and the attacked network, beyond rounding
    significance: Fraction = 0.05  # of the paired test against the champion
    also: dict[str, Annotated[float, Field(ge=0, le=1)]] = {}  # by threat of evaluate.also, corruptions, union

    @field_validator("also")
    @classmethod
    def _of_threats(cls, least: dict[str, float]) -> dict[str, float]:
        return {word if word == UNION else other_threat(word): share for word, share in least.items()}

    @field_validator("threat")
    @classmethod
    def _is_a_threat(cls, text: str | None) -> str | None:
        return None if text is None else str(Threat.parse(text))


class Register(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_. -]*$")  # also a folder's name, and part of addresses
    gates: Gates = Gates()


# `register` is what people write in params.yaml; that pydantic's metaclass has a method of the same name is no harm.
warnings.filterwarnings("ignore", message='Field name "register"', category=UserWarning)


class Params(Section):
    seed: int = Field(0, ge=0, lt=2**63)
    data: Data
    backbone: Backbone
    threat: AsThreat
    finetune: Finetune = Finetune()
    merge: Merge = Merge()
    evaluate: Evaluate = Evaluate()
    export: Export = Export()
    register: Register


class Loader(yaml.SafeLoader):
    """A key that stands twice is refused: YAML would take the last one, in silence."""

    def construct_mapping(self, node: yaml.MappingNode, *deep: Any, **named: Any) -> dict[Any, Any]:
        seen = set[tuple[str, str]]()
        for key, _ in node.value:
            if (written := (key.tag, str(key.value))) in seen:
                said = f"the key {key.value} stands there twice"
                raise yaml.constructor.ConstructorError(None, None, said, key.start_mark)
            seen.add(written)
        return super().construct_mapping(node, *deep, **named)


def check(path: str | Path) -> Params:
    """The whole file: what is wrong in a section that is read last is found by the stage that runs first."""
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), Loader)
        params = Params.model_validate(with_recipe(content, {"finetune": Finetune, "merge": Merge}))
    except RecursionError:
        raise StageError(f"{path} is nested too deeply to be read") from None
    except UnicodeDecodeError as error:
        raise StageError(
            f"{path} is not text in UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8"
        ) from None
    except yaml.YAMLError as error:
        raise StageError(f"{path} is not YAML: {short(scrubbed(str(error)))}") from None
    except ValidationError as error:
        raise StageError("\n".join(f"{path}: {line}" for line in _readable(error)[:LISTED])) from None
    if wrong := list(contradictions(params)):
        raise StageError("\n".join(f"{path}: {line}" for line in wrong))
    return params


def _readable(error: ValidationError) -> list[str]:
    """One line a key; where a key may be one of several kinds, what each of them allows, joined by "or"."""
    problems: dict[str, list[Any]] = {}
    for problem in error.errors():
        problems.setdefault(_key(problem["loc"]), []).append(problem)
    return [_line(key, found) for key, found in problems.items()]


def _key(location: tuple[int | str, ...]) -> str:
    """section.key, without the names that pydantic gives to the members of a union."""
    section, *rest = location or ("the file",)
    return ".".join(str(part) for part in (section, *rest[: 2 if rest[:1] == ["gates"] else 1]))


def _line(key: str, problems: list[Any]) -> str:
    first = problems[0]
    if first["type"] == "extra_forbidden":
        section: Any = Params
        for part in first["loc"][:-1]:
            section = section.model_fields[part].annotation
        *above, name = map(str, first["loc"])
        near = nearest(name, section.model_fields)
        meant = f"did you mean {'.'.join([*above, near])}? " if near else ""
        return f"unknown key {short('.'.join([*above, name]))}: {meant}allowed are {', '.join(section.model_fields)}"
    if first["type"] == "missing":
        return f"{short(key)} is missing"
    reasons = dict.fromkeys(p["msg"].removeprefix("Value error, ").replace("Input should", "it must") for p in problems)
    near = nearest(str(first["input"]), [word for p in problems for word in _words(p)])
    meant = f"; did you mean {near}?" if near else ""
    return (
        f"{short(key)} is {short(scrubbed(repr(first['input'])))}: "
        + " or ".join(reasons).replace(" or it must be", " or")
        + meant
    )


def _words(problem: Any) -> list[str]:
    """What a key with a choice may be."""
    return (
        re.findall(r"'([^']+)'", problem.get("ctx", {}).get("expected", ""))
        if problem["type"] == "literal_error"
        else []
    )
