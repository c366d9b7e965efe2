"""Weights as they exist in the world, read safely and laid onto a network key by key.

    checkpoint = read_checkpoint("imagenet_l2_3_0.pt")       # tensors only; every other object is left inert
    fitted = fit_state(checkpoint.state, network.state_dict())
    fitted.state, fitted.missing, fitted.unexpected, fitted.duplicates, fitted.normaliser

Nothing of a foreign file is ever run: safe_unpickle.py reads it; here the weights in it are found and named.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from autolora.backbones.safe_unpickle import KNOWN as KNOWN  # part of what this room offers
from autolora.backbones.safe_unpickle import Inert, file_kind, read_objects
from autolora.common.files import file_sha256

# Where people put the weights, the averaged ones first: those are what papers report.
CONTAINERS = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema",
    "state_dict", "model_state_dict", "model_state", "model", "net", "network", "params", "weights",
)  # fmt: skip
MEANS = ("mean", "new_mean", "mu", "_mean")
MOST, DEPTH = 10_000, 4  # objects that are looked at for weights, and how deep they may lie
STDS = ("std", "new_std", "sigma", "_std")


@dataclass
class Checkpoint:
    """The tensors of a file by name, and what was seen beside them."""

    state: dict[str, Tensor]
    path: Path
    sha256: str  # of the file
    container: str = ""  # the keys that led to the weights: "model", "state_dict/model"
    inert: list[str] = field(default_factory=list)  # classes and functions that were not run
    others: list[str] = field(default_factory=list)  # further sets of weights in the file, not taken
    notes: dict[str, Any] = field(default_factory=dict)  # of save_classifier, or of a timm config.json beside the file


def read_checkpoint(path: str | Path) -> Checkpoint:
    """The weights in a safetensors file or in what torch.save wrote; one clear error for anything else."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of weights")
    kind = file_kind(path)
    tree, inert = read_objects(path, kind)
    container, state, others = _find_weights(tree)
    if not state:
        raise ValueError(f"{path} holds no tensors by name: expected a state dict, found {_describe(tree)}")
    _refuse_hollow(path, state)
    _refuse_unfinite(path, state)
    return Checkpoint(state, path, file_sha256(path), container, inert, others, _notes(path, kind))


def _refuse_hollow(path: Path, state: Mapping[str, Tensor]) -> None:
    """A tensor of stride 0 repeats what is stored: a file of 2 kB could ask for any amount of memory."""
    size = path.stat().st_size
    hollow = [name for name, value in state.items() if value.numel() * value.element_size() > size]
    if hollow:
        raise ValueError(
            f"{path}: {hollow[0]} is larger than the whole file: it was saved as a view that repeats itself"
        )


def _refuse_unfinite(path: Path, state: Mapping[str, Tensor]) -> None:
    bad = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise ValueError(f"{path}: {len(bad)} of {len(state)} tensors hold NaN or infinity, the first is {bad[0]}")


def _notes(path: Path, kind: str) -> dict[str, Any]:
    if kind == "safetensors":
        with safetensors.safe_open(str(path), framework="pt") as file:
            if own := json.loads((file.metadata() or {}).get("autolora", "{}")):
                return own
    config = path.with_name("config.json")
    try:
        beside = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return beside if isinstance(beside, dict) and "pretrained_cfg" in beside else {}


# --- objects -> one state dict ----------------------------------------------------------------------------------------


def _find_weights(tree: Any) -> tuple[str, dict[str, Tensor], list[str]]:
    """(the keys that led there, the tensors by name, the other sets of weights in the file)."""
    found = [(path, state) for path, state in _state_dicts(tree) if state]
    if not found:
        return "", {}, []
    found.sort(key=lambda item: _preference(item[0]))
    (path, state), *rest = found
    return path, {**_normaliser_beside(tree, path), **state}, [other for other, _ in rest]


def _normaliser_beside(tree: Any, path: str) -> dict[str, Tensor]:
    """{"state_dict": ..., "mean": ..., "std": ...}: part of the network, though it lies beside the weights."""
    if not (isinstance(tree, Mapping) and path in tree):
        return {}
    return {key: v.detach() for key, v in tree.items() if key in (*MEANS, *STDS) and isinstance(v, Tensor)}


def _preference(path: str) -> tuple[int, int]:
    """The top first (a bare state dict), then the known containers in their order; never the optimiser's."""
    ranks = [CONTAINERS.index(part) if part in CONTAINERS else len(CONTAINERS) for part in path.split("/") if part]
    return (min(ranks, default=-1), len(ranks))


def _state_dicts(tree: Any) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Depth first, in the order of the file; a file may lead back into itself, or to one thing along many ways."""
    waiting: list[tuple[str, Any, tuple[int, ...]]] = [("", tree, ())]
    for _ in range(MOST):
        if not waiting:
            return
        path, here, above = waiting.pop()
        if isinstance(here, Inert):  # a whole module was pickled: its tensors are in its dictionaries
            yield path, dict(_module_tensors(here))
        elif isinstance(here, Mapping) and len(above) < DEPTH and id(here) not in above:
            named = {key: v.detach() for key, v in here.items() if isinstance(key, str) and isinstance(v, Tensor)}
            held = any(key in CONTAINERS and isinstance(value, Inert | Mapping) for key, value in here.items())
            if named and len(named) * 2 > len(here) and not held:
                yield path, named
            inside = [
                (f"{path}/{key}".strip("/"), value, (*above, id(here)))
                for key, value in here.items()
                if isinstance(value, Inert | Mapping) and not (isinstance(key, str) and "optim" in key.lower())
            ]
            waiting += reversed(inside)
    raise ValueError(f"more than {MOST:,} objects lie within one another: that is no file of weights")


def _module_tensors(module: Any, prefix: str = "", above: tuple[int, ...] = ()) -> Iterator[tuple[str, Tensor]]:
    state = getattr(module, "state", None)
    if not isinstance(state, dict) or id(module) in above or len(above) > 50:
        return
    for group in ("_parameters", "_buffers"):
        for name, value in dict(state.get(group) or {}).items():
            if isinstance(value, Tensor):
                yield prefix + str(name), value.detach()
    for name, child in dict(state.get("_modules") or {}).items():
        yield from _module_tensors(child, f"{prefix}{name}.", (*above, id(module)))


def _describe(tree: Any) -> str:
    if isinstance(tree, Mapping):
        return f"a dictionary with the keys {', '.join(map(str, list(tree)[:10])) or '(none)'}"
    return f"an object of type {type(tree).__name__}"


# --- one state dict -> the names of a network -------------------------------------------------------------------------


@dataclass
class Fitted:
    """A state dict under the network's own names, and what became of every other key."""

    state: dict[str, Tensor]  # name and shape agree
    prefix: str  # what stood before the names in the file
    missing: list[str]
    unexpected: list[str]
    reshaped: dict[str, Tensor]  # the name agrees, the shape does not
    duplicates: list[str]  # equal copies under another prefix
    normaliser: tuple[tuple[float, ...], tuple[float, ...]] | None  # (mean, std) found among the buffers
    converted: str = ""  # by whom, where the names had to be


# Other names for the same networks: the CIFAR ResNets that most of the robustness literature trains.
RENAMES: tuple[tuple[tuple[str, str], ...], ...] = (
    (),
    ((".shortcut.", ".downsample."), ("linear.", "fc.")),
    ((".shortcut.", ".downsample."),),
    (("linear.", "fc."),),
)


def fit_state(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Fitted:
    """Under the prefix (and spelling) with which most names agree; equal copies and normalisers are set aside."""
    _, spelling, prefix = max(
        (
            (score, rename, prefix)
            for rename in RENAMES
            for prefix, score in _prefixes(_respell(state, rename), expected)
        ),
        key=lambda item: (item[0], -RENAMES.index(item[1]), -len(item[2])),
        default=(0, (), ""),
    )
    state = _respell(state, spelling)
    named = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    fits = {key: value for key, value in named.items() if key in expected}
    rest = [key for key in state if not (key.startswith(prefix) and key[len(prefix) :] in expected)]
    duplicates = [key for key in rest if _copy_of(key, state, fits)]
    _refuse_two_networks({key: state[key] for key in rest}, duplicates, prefix, expected, len(fits))
    normaliser, buffers = _normaliser({key: state[key] for key in rest if key not in duplicates})
    return Fitted(
        state={key: value for key, value in fits.items() if value.shape == expected[key].shape},
        prefix=prefix,
        missing=[key for key in expected if key not in fits and not key.endswith("num_batches_tracked")],
        unexpected=[key.removeprefix(prefix) for key in rest if key not in duplicates and key not in buffers],
        reshaped={key: value for key, value in fits.items() if value.shape != expected[key].shape},
        duplicates=duplicates,
        normaliser=normaliser,
    )


def _respell(state: Mapping[str, Tensor], rename: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
    renamed = dict(state)
    for old, new in rename:
        if old.startswith("."):
            renamed = {key.replace(old, new): value for key, value in renamed.items()}
        else:  # a whole part of the name, the last but one
            renamed = {_swap_parent(key, old[:-1], new[:-1]): value for key, value in renamed.items()}
    return renamed


def _swap_parent(key: str, old: str, new: str) -> str:
    parts = key.split(".")
    if len(parts) > 1 and parts[-2] == old:
        parts[-2] = new
    return ".".join(parts)


def _suffixes(key: str) -> Iterator[str]:
    """a.b.c -> a.b.c, b.c, c"""
    parts = key.split(".")
    return (".".join(parts[i:]) for i in range(len(parts)))


def _prefixes(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[tuple[str, int]]:
    """Each prefix under which names of the network are found, with their number."""
    found = (key[: -len(suffix)] for key in state for suffix in _suffixes(key) if suffix in expected)
    return Counter(found).most_common()


def _copy_of(key: str, state: Mapping[str, Tensor], fits: Mapping[str, Tensor]) -> bool:
    return any(suffix in fits and torch.equal(state[key], fits[suffix]) for suffix in _suffixes(key))


def _refuse_two_networks(
    rest: Mapping[str, Tensor], duplicates: list[str], prefix: str, expected: Mapping[str, Tensor], fits: int
) -> None:
    """A second, different copy of nearly the whole network: which one is meant is not ours to guess."""
    for other, count in _prefixes(rest, expected):
        inside = [key for key in rest if key.startswith(other) and key[len(other) :] in expected]
        if count > 0.9 * fits and not set(inside) <= set(duplicates):
            raise ValueError(
                f"the checkpoint holds two different networks, under {prefix!r} and under {other!r}: "
                "save the one that is meant as a state dict of its own"
            )


def _normaliser(rest: Mapping[str, Tensor]) -> tuple[tuple[tuple[float, ...], tuple[float, ...]] | None, list[str]]:
    """((mean, std), the keys that hold them) where a normalising layer was saved with the network."""
    small = {key: value for key, value in rest.items() if value.numel() in (1, 3) and value.is_floating_point()}
    means = [key for key in small if key.rpartition(".")[2] in MEANS]
    stds = [key for key in small if key.rpartition(".")[2] in STDS]
    if not means or not stds:
        return None, []
    mean, std = (tuple(round(v, 6) for v in small[keys[0]].flatten().tolist()) for keys in (means, stds))
    if not (all(0 <= v <= 1 for v in mean) and all(0 < v <= 1 for v in std)):
        return None, []
    return (mean, std), means + stds


def grouped(keys: Iterable[str], shown: int = 6) -> str:
    """layer1.0 (6), layer1.1 (6), fc (2): keys by the module they belong to, for people to read."""
    names = list(keys)
    groups = Counter(".".join(key.split(".")[:2]) if key.count(".") > 1 else key.split(".")[0] for key in names)
    listed = [f"{name} ({count})" for name, count in groups.items()]
    more = f", and {len(listed) - shown} more groups" if len(listed) > shown else ""
    return f"{len(names)} in {', '.join(listed[:shown])}{more}" if names else "none"
