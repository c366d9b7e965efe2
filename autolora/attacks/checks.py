"""The sixteen checks that make a robustness number believable: each one is data, and a failed one stops the evaluation.

Made by `autoattack` itself before and after the attacks; 12, 14 and 15 concern the files around it, which its caller
knows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autolora.attacks.apgd import start_point
from autolora.attacks.apgd_l1 import apgd_for
from autolora.attacks.engine.draws import image_keys
from autolora.attacks.engine.file_network import FileNetwork
from autolora.attacks.engine.network import Network, lengths
from autolora.attacks.engine.prepare import switches
from autolora.attacks.verdicts import NAMES, Check, Verdict, require
from autolora.common.files import weights_sha256
from autolora.common.statistics import wilson
from autolora.threat import Threat

if TYPE_CHECKING:
    from autolora.attacks.evaluation import Evaluation
    from autolora.attacks.report import Report

PROBED = 64  # images on which the checks before the attacks are made
PART = 256  # images that are looked at together, where all are
WIDE = 0.05  # half a confidence interval beyond which there are too few images


def shuffled(ids: Sequence[str]) -> list[int]:
    """An order that no caller chose: the first images of a sorted set would be of one class."""
    return sorted(range(len(ids)), key=lambda i: hashlib.sha256(ids[i].encode()).digest())


def in_advance(model: Callable[[Tensor], Tensor], *, gradients: bool) -> list[Check]:
    """What the caller's network must be before it is set at rest; a variant of a file may be of less than float32."""
    return [evaluating(model), *([weights_in_float32(model)] if gradients else [])]


def before(e: Evaluation) -> list[Check]:
    """What can be known without an attack, on a few images."""
    probe = shuffled(e.images.ids)[:PROBED]
    few, labels = e.x[probe], e.y[probe]
    checks = [evaluating(e.model), pixels(e.x), radius(e.threat)]
    require(checks)  # the rest would only say the same in other words
    logits = e.network.all_logits(few)
    require([logits_are_numbers(logits)])
    known_labels(e.y, logits.shape[1])
    checks += [
        logits_not_softmax(logits),
        deterministic(e.network, few, randomised=e.randomised),
        alone_as_in_batch(e.model, few[:8], randomised=e.randomised),
    ]
    if e.settings.gradients and not answers_with_gradient(e.model, few[:1]):
        cure = "take torch.no_grad(), inference_mode() or detach() out of it, or attack its scores alone with black_box"
        checks.append(Check(8, NAMES[8], "fail", f"the network's answer has no gradient: {cure}"))
    elif e.settings.gradients:
        checks += [] if isinstance(e.model, FileNetwork) else [computes_in_float32(e.model, few[:1])]
        checks.append(gradients_reach(e.network, few, labels, e.threat, e.settings.seed))
    return checks


def after(report: Report, x: Tensor) -> list[Check]:
    """What the result itself must satisfy."""
    return [
        inside(report.adversarial, x, report.threat),
        truly_broken(report),
        black_box_adds_nothing(report),
        enough_images(report),
        robust_means_clean(report.clean, report.robust),
        labels_belong(report),
        full_precision(x, report.precision),
    ]


def evaluating(model: Callable[[Tensor], Tensor]) -> Check:
    if not isinstance(model, nn.Module):
        return Check(1, NAMES[1], "not run", "a plain callable: its mode cannot be seen")
    training = [name or "the model" for name, module in model.named_modules() if module.training]
    return _check(
        1,
        NAMES[1],
        "every module is in eval",
        f"in train mode: {', '.join(training[:3])}; call .eval() first",
        fine=not training,
    )


def buffers_hash(model: Callable[[Tensor], Tensor]) -> str:
    return weights_sha256(dict(model.named_buffers())) if isinstance(model, nn.Module) else ""


def buffers_unmoved(model: Callable[[Tensor], Tensor], before: str) -> Check:
    if not isinstance(model, nn.Module):
        return Check(1, "buffers unmoved", "not run", "a plain callable: its buffers cannot be seen")
    fine = buffers_hash(model) == before
    bad = "the attack has changed the network's buffers"
    return _check(1, "buffers unmoved", "the same before and after", bad, fine=fine)


def alone_as_in_batch(model: Callable[[Tensor], Tensor], x: Tensor, *, randomised: bool) -> Check:
    name = NAMES[2]
    if randomised:
        return Check(2, name, "not run", "the network answers at random")
    if len(x) == 1:
        return Check(2, name, "not run", "one image has no neighbours")
    with torch.no_grad():
        together, alone = model(x).float(), torch.cat([model(image[None]).float() for image in x])
    worst = ((together - alone).abs().amax(1) / together.abs().amax(1).clamp_min(1)).max().item()
    same = worst <= 1e-4 and torch.equal(together.argmax(1), alone.argmax(1))
    text = f"{len(x)} images alone and within a batch differ by {worst:.1e}"
    return _check(2, name, text, text, fine=same)


def pixels(x: Tensor) -> Check:
    low, high = x.min().item(), x.max().item()
    name = NAMES[3]
    if not (low >= 0 and high <= 1):
        cure = ": divide them by 255" if 1 < high <= 255 and low >= 0 else ": give them as they are, in [0,1]"
        return Check(3, name, "fail", f"values from {low:g} to {high:g}{cure}")
    levels = max((part * 255 - (part * 255).round()).abs().max().item() for part in x.split(PART))
    if high < 0.1:
        return Check(3, name, "warn", f"the largest value is {high:g}: divided by 255 twice?")
    if levels > 1e-3:
        return Check(3, name, "warn", "values are not multiples of 1/255: resized or normalised before the attack?")
    return Check(3, name, "pass", f"values from {low:g} to {high:g}, multiples of 1/255")


def radius(threat: Threat) -> Check:
    fine = threat.norm != "linf" or threat.eps <= 1
    text = f"{threat.norm} {threat.eps:.6g}, which is {threat.eps * 255:.6g}/255"
    return _check(4, NAMES[4], text, text + ": larger than the whole pixel range", fine=fine)


def logits_are_numbers(logits: Tensor) -> Check:
    odd = int((~logits.isfinite()).any(1).sum())
    text = f"NaN or infinite at {odd} of {len(logits)} images"
    return _check(
        6, "logits are numbers", "all finite", text + ": a class that cannot be needs a finite logit", fine=odd == 0
    )


def known_labels(y: Tensor, classes: int) -> None:
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= classes:
        raise ValueError(f"labels from {low} to {high}, and the network answers for {classes} classes, from 0 on")


def logits_not_softmax(logits: Tensor) -> Check:
    sums = logits.sum(1)
    probabilities = bool((logits.min() >= 0) & (logits.max() <= 1 + 1e-5) & ((sums - 1).abs() < 1e-4).all())
    return _check(6, NAMES[6], "rows are no distribution", "every row sums to 1", fine=not probabilities)


def deterministic(network: Network, x: Tensor, *, randomised: bool) -> Check:
    runs = [network.all_logits(x) for _ in range(5)]
    worst = max((run - runs[0]).abs().max().item() for run in runs)
    name = NAMES[7]
    if randomised:
        return Check(7, name, "pass", f"they differ by {worst:.1e}; version rand averages over it")
    return _check(7, name, f"differ by {worst:.1e}", f"differ by {worst:.1e}: use version rand", fine=worst <= 1e-4)


def gradients_reach(network: Network, x: Tensor, y: Tensor, threat: Threat, seed: int) -> Check:
    """At these images, right or wrong."""
    keys = image_keys(seed, "gradients", [str(i) for i in range(len(x))], x.device)
    zero = {
        "the image": _zero_gradients(network, x, y),
        "a random start": _zero_gradients(network, start_point(x, keys, threat), y),
    }
    worst = max(zero.values())
    text = ", ".join(f"{100 * share:.1f} % without gradient at {place}" for place, share in zero.items())
    return _check(8, NAMES[8], text, text + ": masked gradients", fine=worst <= 0.01)


def answers_with_gradient(model: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    with torch.enable_grad(), suppress(RuntimeError):  # numpy refuses what has a gradient
        return model(x.clone().requires_grad_(True)).requires_grad
    return False


def _zero_gradients(network: Network, x: Tensor, y: Tensor) -> float:
    rows = torch.arange(-(-len(x) // network.batch) * network.batch, device=x.device) % len(x)

    def loss(z: Tensor, part: slice) -> Tensor:
        return F.cross_entropy(z, y[rows][part], reduction="none")

    _, _, gradients = network.gradient(x[rows], loss)
    return (gradients[: len(x)].flatten(1).abs().amax(1) == 0).double().mean().item()


def inside(adversarial: Tensor, x: Tensor, threat: Threat) -> Check:
    """Norms recomputed from the images as saved; float32 rounds a pixel by up to 6e-8, and a norm by 1e-6 of it."""
    pairs = zip(adversarial.split(PART), x.split(PART))
    longest = max(lengths(a.double() - b.double(), threat.norm).max().item() for a, b in pairs)
    low, high = adversarial.min().item(), adversarial.max().item()
    size = x[0].numel()
    slack = {"linf": 1e-6, "l2": 1e-7 * size**0.5, "l1": 1e-7 * size}[threat.norm]
    fine = longest <= threat.eps * (1 + 3e-6) + slack and low >= 0 and high <= 1
    fine = fine and not bool(adversarial.isnan().any())
    text = f"longest {threat.norm} perturbation {longest:.6f} of {threat.eps:.6f}, pixels from {low:g} to {high:g}"
    return _check(5, NAMES[5], text, text, fine=fine)


def truly_broken(report: Report) -> Check:
    """Every adversarial image, looked at again by the plain network."""
    still_right = int(((report.fooled == report.y) & report.found).sum())
    text = (
        f"{int(report.found.sum())} adversarial images, {still_right} of them classified correctly when looked at again"
    )
    name = "adversarial images are misclassified"
    if report.version == "rand" and still_right:
        text += " by the mean of many passes, so broken by chance: the number is rather too low"
        return Check(5, name, "warn", text)
    return _check(5, name, text, text, fine=still_right <= max(1, 0.002 * len(report.y)))


def black_box_adds_nothing(report: Report) -> Check:
    name = NAMES[9]
    names = [a.name for a in report.attacks]
    if "square" not in names or names == ["square"]:
        return Check(9, name, "not run", "this version has no black-box attack beside white-box ones")
    broken = report.attacks[names.index("square")].broken
    share = broken / len(report.y)
    text = f"Square broke {broken} images ({100 * share:.2f} %) that the attacks before it could not"
    verdict: Verdict = "warn" if share > 0.002 else "pass"
    return Check(9, name, verdict, text)


def robust_means_clean(clean: Tensor, robust: Tensor) -> Check:
    odd = int((robust & ~clean).sum())
    return _check(13, NAMES[13], "no exception", f"{odd} images are robust and wrong", fine=odd == 0)


def enough_images(report: Report) -> Check:
    low, high = report.ci95
    text = f"{len(report.y)} images: 95 % from {100 * low:.1f} to {100 * high:.1f} %"
    return Check(11, NAMES[11], "warn" if (high - low) / 2 > WIDE else "pass", text)


def labels_belong(report: Report) -> Check:
    """Labels of other images, or in another order: then the network does no better than one constant answer.

    Nor does a network that gives one: a head that was never trained, or pixels that it does not expect.
    """
    name, n = "labels are those of the images", len(report.y)
    right, largest = int(report.clean.sum()), int(report.y.bincount().max())
    text = f"{right} of {n} images are classified correctly; the largest class has {largest}"
    if right == 0:
        return Check(10, name, "fail", text)
    if len(report.predicted.unique()) == 1 < len(report.y.unique()):
        said = f"the network answers class {int(report.predicted[0])} for every image"
        return Check(10, "answers differ", "warn", f"{said}: {text}")
    return Check(10, name, "warn" if wilson(right, n)[1] < largest / n else "pass", text)


def weights_in_float32(model: Callable[[Tensor], Tensor]) -> Check:
    tensors = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
    return _in_float32({t.dtype for t in tensors})


def computes_in_float32(model: Callable[[Tensor], Tensor], x: Tensor) -> Check:
    """The logits, and every tensor on the way to them that the gradient needs: an autocast may be the network's own."""
    kinds: set[torch.dtype] = set()

    def seen(needed: Tensor) -> Tensor:
        kinds.add(needed.dtype)
        return needed

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(seen, lambda needed: needed):
        kinds.add(model(x.clone().requires_grad_(True)).dtype)
    return _in_float32(kinds)


def _in_float32(kinds: set[torch.dtype]) -> Check:
    low = sorted(str(kind).removeprefix("torch.") for kind in kinds if kind.is_floating_point and kind.itemsize < 4)
    good, bad = "weights, activations and logits are float32", f"{', '.join(low)}: give the float32 network"
    return _check(16, "the network computes in float32", good, bad, fine=not low)


def answers_in(model: Callable[[Tensor], Tensor], *, gradients: bool) -> list[Check]:
    """What ships may be narrower than float32, which is said. Where gradients are asked for, a module was looked at."""
    if isinstance(model, FileNetwork):
        kinds = " and ".join(model.narrow)
        text = f"the file computes in {kinds}: the number is its own, not that of a float32 network"
        name = "what the file computes in"
        return [Check(16, name, "warn", text) if kinds else Check(16, name, "pass", "float32, by its graph")]
    if gradients or not isinstance(model, nn.Module):
        return []
    found = weights_in_float32(model)
    return [replace(found, verdict="warn") if found.verdict == "fail" else found]


def full_precision(x: Tensor, precision: str) -> Check:
    tf32 = any(switch.fp32_precision in ("tf32", "bf16") for switch in switches())
    if precision != "float32" and not tf32:
        text = "attacked through a quicker copy; each success and all of the last attack are float32"
        return Check(16, NAMES[16], "warn", text)
    fine = x.dtype == torch.float32 and not tf32
    return _check(16, NAMES[16], "float32, TF32 off", f"{x.dtype}, TF32 {'on' if tf32 else 'off'}", fine=fine)


def attack_works(network: Network, x: Tensor, report: Report, *, randomised: bool = False) -> Check:
    """A white-box attack on a few images that are right: what it must do if it works at all, and whether the report
    knows of each image that it breaks."""
    threat, seed = report.threat, report.seed
    right = [i for i in shuffled(report.ids) if report.clean[i]][:PROBED]
    if not right:
        return Check(10, NAMES[10], "not run", "no image is classified correctly")
    few, labels = x[right], report.y[right].to(x.device)
    short, long = (climb(network, few, labels, threat, steps, seed) for steps in (20, 50))
    half, twice = (climb(network, few, labels, _scaled(threat, times), 20, seed) for times in (0.5, 2))
    far = climb(network, few, labels, Threat(threat.norm, huge(threat, x[0].numel())), 20, seed)
    slack = 1.0 / len(right) + (0.2 if randomised else 0.02)  # at random, shares also differ by chance
    missed = (report.robust[right] & (short.broken | long.broken).cpu()).double().mean().item()
    faults = [
        text
        for fault, text in (
            (far.left > 0.1, f"{100 * far.left:.0f} % stand a radius at which nothing can"),
            (
                short.left > half.left + slack or twice.left > short.left + slack,
                "a larger radius helps",
            ),
            (long.left < short.left - 0.05 - slack, "50 steps break much more than 20"),
            (long.gain <= 0, "the loss does not rise"),
            (missed > slack, f"{100 * missed:.0f} % are reported to stand, and fall to APGD-CE alone"),
        )
        if fault
    ]
    shares = " / ".join(f"{100 * c.left:.0f}" for c in (half, short, twice, far, long))
    good = f"{shares} % of {len(right)} images stand half, one and two eps, a huge radius, and 50 steps for 20"
    return _check(10, NAMES[10], good, "; ".join(faults), fine=not faults)


def curve_agrees(report: Report, curve: Sequence[tuple[float, float, str]]) -> Check:
    """(radius, accuracy, by what): the quick attack's accuracies fall, and no number here is above it at its radius."""
    shares = [accuracy for _, accuracy, _ in curve]
    slack = 1 / len(report.y) + (0.2 if report.version == "rand" else 0.02)
    quick = min((accuracy for eps, accuracy, _ in curve if eps <= report.threat.eps), default=1.0)
    faults = [
        text
        for fault, text in (
            (any(b > a + slack for a, b in pairwise(shares)), "accuracy rises with the radius"),
            (shares[-1] > 0.1, f"{100 * shares[-1]:.0f} % stand a radius at which nothing can"),
            (report.robust_accuracy > quick + slack, f"a quick attack leaves {100 * quick:.1f} %, this one more"),
        )
        if fault
    ]
    good = " / ".join(f"{100 * share:.0f}" for share in shares) + " % at growing radii"
    return _check(10, "the curve agrees", good, "; ".join(faults), fine=not faults)


def huge(threat: Threat, size: int) -> float:
    """From here every image reaches plain grey: Linf 0.5, L2 0.5 sqrt(d), L1 0.5 d."""
    return {"linf": 0.5, "l2": 0.5 * size**0.5, "l1": 0.5 * size}[threat.norm]


def _scaled(threat: Threat, times: float) -> Threat:
    return Threat(threat.norm, min(times * threat.eps, 1.0) if threat.norm == "linf" else times * threat.eps)


class Climb(NamedTuple):
    broken: Tensor  # [n]
    gain: float  # mean rise of the loss

    @property
    def left(self) -> float:
        """The share that is still right."""
        return 1 - self.broken.double().mean().item()


def climb(network: Network, x: Tensor, y: Tensor, threat: Threat, steps: int, seed: int) -> Climb:
    """APGD-CE without any of the machinery around it."""
    rows = torch.arange(-(-len(x) // network.batch) * network.batch, device=x.device) % len(x)
    attack = apgd_for(threat.norm)(network, threat, steps=steps)
    keys = image_keys(seed, "climb", [str(i) for i in range(len(rows))], x.device)
    state = attack.start(x[rows], y[rows], y[rows], keys, np.zeros(len(rows), dtype=np.int64))
    broken, first = torch.zeros(len(rows), dtype=torch.bool, device=x.device), torch.zeros(0)
    for age in range(attack.rounds):
        wrong, _ = attack.step(state, np.full(len(rows), age))
        first = state["best_loss"].clone() if age == 0 else first
        broken |= wrong
    gain = (state["best_loss"] - first)[: len(x)].mean().item()
    return Climb(broken[: len(x)], gain)


def _check(number: int, name: str, good: str, bad: str, *, fine: bool) -> Check:
    return Check(number, name, "pass" if fine else "fail", good if fine else bad)
