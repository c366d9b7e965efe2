"""The card's first section: what the model is, what it started from, how it was tuned, what it takes to be promoted."""

from __future__ import annotations

from typing import Any

from autolora.training.axes import NO_ATTACK
from stages.card.sections import short_name
from stages.card.svg import percent, plain
from stages.common.recipes import in_one_line
from stages.evidence.files import FINETUNED, Evidence
from stages.evidence.provenance import locked_params


def model(evidence: Evidence, gates: dict[str, Any]) -> list[tuple[str, str]]:
    r, tuned = evidence.robustness, evidence.optional(FINETUNED)
    size, names = evidence.examples.images.x.shape[-1], evidence.classes
    start = "a pre-trained backbone" if _pretrained(evidence) else "fresh weights"
    pixels = "bytes from 0 to 255" if evidence.exported.get("input") == "uint8" else "floats from 0 to 1"
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return [
        ("What it is", f"an image classifier, {_tuned_how(tuned)} from {start}{_published(tuned)}"),
        ("Reads", f"{size} × {size} pixels in colour, {pixels}; it normalises them itself"),
        ("Answers", f"{len(names)} logits: {', '.join(names[:12])}{more}"),
        ("Method", f"{tuned['method']}, reference {tuned['reference']}{_axes(tuned)}" if tuned else ""),
        ("Trained on", _trained_on(tuned)),
        ("Recipe", _recipe(tuned.get("recipe", {}), r.get("recipe_but", ""))),
        ("Dial", f"alpha = {plain(r['alpha'])}{_made_of(r)}"),
        ("File", f"model.onnx, {evidence.exported['bytes'] / 1e6:.2f} MB, opset {evidence.exported['opset']}"),
        (
            "To be promoted",
            f"{_gates(gates)}; no failed check; surely more robust than a champion that reigns",
        ),
    ]


PUBLISHED = {
    "autolora": "AutoLoRa, ICLR 2024",
    "vanilla": "TRADES, ICML 2019",
    "twins": "TWINS, CVPR 2023",
    "madry": "PGD training, ICLR 2018",
    "mart": "MART, ICLR 2020",
    "arow": "ARoW, ICML 2023",
    "distill": "RSLAD, ICCV 2021",
}


def _tuned_how(tuned: dict[str, Any]) -> str:
    return "tuned without an attack" if tuned.get("method") in NO_ATTACK else "tuned adversarially"


def _pretrained(evidence: Evidence) -> bool:
    return locked_params(evidence.folder).get("backbone", {}).get("weights", "") is not None


def _published(tuned: dict[str, Any]) -> str:
    paper = PUBLISHED.get(tuned.get("method", "autolora"))
    axes = tuned.get("axes", {})
    if "natural_teacher" in axes:
        paper = "MTARD, ECCV 2022"
    if tuned.get("method") == "madry" and axes.get("augmentation") == "interpolate":
        paper = "IAT, AISec 2019"
    return f" ({paper})" if paper else ""


def _recipe(recipe: dict[str, Any], of_merge: str) -> str:
    """Its name, what of it was set otherwise, and its paper."""
    if not recipe:
        return ""
    otherwise = ", ".join(filter(None, [in_one_line(recipe.get("but", {})), of_merge]))
    return f"{recipe['name']}{f', but with {otherwise}' if otherwise else ''}. {recipe['paper']}"


def _axes(tuned: dict[str, Any]) -> str:
    """What differs from the method's plain form, what came before, and whether one gradient an image was given up."""
    said = "".join(f", {key.replace('_', ' ')} {value}" for key, value in tuned.get("axes", {}).items())
    if head := tuned.get("head"):
        looked = [record for record in head if record["val_robust"] is not None]
        kept = [record for record in looked if "best" in record["event"]][-1:] or looked[-1:]
        first, last = (percent(record["val_robust"]) for record in (looked[0], kept[0]))
        epochs = f"{len(head)} epochs: {first} of the validation images withstood PGD, then {last}"
        said += f"; the head alone first, {epochs}"
    if blocks := tuned.get("blocks"):
        said += f"; trained: {', '.join([*blocks['chosen'], 'head'])}, after {len(blocks['tried'])} short runs"
    gave_up = [f"after epoch {_epochs(tuned['collapsed'])}"] if "collapsed" in tuned else []
    for phase, epochs in tuned.get("collapsed_before", {}).items():
        gave_up.append(f"in the {phase.replace('_', ' ')} after epoch {_epochs(epochs)}")
    for number, run in enumerate(tuned.get("members", {}).get("runs", [])[1:], start=2):
        gave_up += [f"by member {number} after epoch {_epochs(run['collapsed'])}"] if "collapsed" in run else []
    said += f"; one gradient an image was given up {', '.join(gave_up)}" if gave_up else ""
    return said + (
        f"; training images, learnt by heart, were varied harder (IDBH) {harder}" if (harder := _harder(tuned)) else ""
    )


def _harder(tuned: dict[str, Any]) -> str:
    """When, of the network and of each further member."""
    runs = enumerate(tuned.get("members", {}).get("runs", [])[1:], start=2)
    named = [("", tuned), *((f"by member {number} ", run) for number, run in runs)]
    return ", ".join(f"{who}after epoch {_epochs(run['harder'])}" for who, run in named if "harder" in run)


def _epochs(numbers: list[int]) -> str:
    return " and ".join(map(str, numbers))


def _trained_on(tuned: dict[str, Any]) -> str:
    if "first_rate" not in tuned:  # a record of before
        return ""
    gradients = "ten gradients" if tuned["attack"] == "pgd" else "one gradient"
    attack = "" if tuned["method"] in NO_ATTACK else f"{gradients} of the attack an image, "
    again = ", a part of the one that was found, at which training diverged" if tuned.get("diverged") else ""
    return f"{attack}first learning rate {tuned['first_rate']:g}{again}{_schedule(tuned)}"


def _schedule(tuned: dict[str, Any]) -> str:
    """Why eps grew, or did not, where the run chose."""
    if (moved := tuned.get("features_moved")) is None:
        return ""
    grew = tuned.get("axes", {}).get("eps_schedule") == "ramp"
    said = "not robust before, so eps grew from 0" if grew else "robust before, so eps was the whole one throughout"
    return (
        f"; the backbone was {said} (an attacker moved its features by {plain(moved)} "
        "of the squared distance between two images)"
    )


def _made_of(r: dict[str, Any]) -> str:
    soup = f", from a {r['soup']} soup of member {r['soup_members']}" if "soup" in r else ""
    layer = f", toward a natural {r['critical_layer']}" if "critical_layer" in r else ""
    return soup + layer + (", mixed with the natural twin (MixedNUTS)" if "mix" in r else "")


def _gates(gates: dict[str, Any]) -> str:
    lower = f" (the interval's lower end {percent(gates['lower'])})" if gates.get("lower") else ""
    images = f" of {gates['images']:,} images or more" if gates.get("images") else ""
    at = f" at {gates['threat']} or a larger radius" if gates.get("threat") else ""
    asked = f"at least {percent(gates['clean'])} clean and {percent(gates['robust'])} robust{lower}{images}"
    more = "".join(f", {percent(least)} {short_name(what)}" for what, least in gates.get("also", {}).items())
    return f"{asked}, by the {gates['attack']} attack{at}{more}"
