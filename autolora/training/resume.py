"""Where a killed run goes on: one file, named after all that determines the run, replaced after each epoch."""

from __future__ import annotations

import errno
import hashlib
import inspect
import os
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from autolora.common import distributed
from autolora.common.code import code_sha256
from autolora.common.errors import BadArgument, first_line
from autolora.common.files import locked, naming, replacing, weights_sha256
from autolora.data.ragged import Rectangles
from autolora.training.controllers import Scalars
from autolora.training.learner import Learner
from autolora.training.objectives import METHODS, REFERENCES, chosen_objective
from autolora.training.settings import Settings, Split
from autolora.training.speed import speed
from autolora.training.teachers import Balance, Teachers

Record = dict[str, Any]
# of a saved state
PARTS = {"modules", "optimiser", "controller", "attacker", "variety", "weights", "balance", "progress"}
PASSING = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.ESTALE}
ASIDE = {*vars(nn.Module()), "loading"}  # attributes of modules: torch's own, and where weights were found
LIBRARIES = ("torch", "torchvision", "timm", "autolora")  # told by their version, or by the files here


@dataclass
class RunState:
    """Where a run stands after an epoch."""

    epoch: int = 0
    steps: int = 0
    stopped: bool = False
    best_epoch: int = 0
    best: dict[str, Any] = field(default_factory=dict)
    kept: list[bool] = field(default_factory=list)  # which validation images that state has right
    history: list[Record] = field(default_factory=list)


def checkpoint_file(
    folder: str | Path | None,
    model: nn.Module,
    train: Split,
    val: Split,
    settings: Settings,
    device: torch.device,
    *,
    teachers: Teachers | None = None,
) -> Path | None:
    """A stale file is never picked up: other settings, network, weights, teachers, images, labels, code, kind of device
    or torch are another name."""
    if folder is None:
        return None
    digest = hashlib.sha256(f"{code_sha256()} {settings} {speed(settings, device)} {device.type}".encode())
    networks = [model, *(teachers.networks() if teachers else ())]
    digest.update(written_elsewhere(networks, settings))
    for network in networks:
        digest.update(computed_by(network).encode())
    for images, labels in (train, val):
        for start in range(0, len(images), 1024):
            chunk: Any = images[start : start + 1024]
            digest.update(np.ascontiguousarray(chunk.cpu().numpy() if isinstance(chunk, Tensor) else chunk).data)
        digest.update(labels.numpy().tobytes())
        if isinstance(images, Rectangles):
            digest.update(images.shapes.numpy().tobytes())
    return Path(folder) / f"{settings.method}-{digest.hexdigest()[:16]}.pt"


def computed_by(model: nn.Module, *above: int) -> str:
    """Its layers, what each of them holds, weights and constants: two networks that differ in it may answer otherwise.

    No layer need print what it holds: torch's TransformerEncoderLayer tells neither its heads nor where it normalises.
    What a layer keeps of its last images counts too: a network that was used meanwhile is trained anew.
    """
    held = [(name, {k: v for k, v in sorted(vars(m).items()) if k not in ASIDE}) for name, m in model.named_modules()]
    told = _told(held, *above, *map(id, model.modules()))
    return f"{layers(model)} {told} {weights_sha256(model.state_dict() | dict(model.named_buffers()))}"


def layers(model: nn.Module) -> str:
    """As it prints itself, but for where functions lie in memory: another place in each process."""
    return _without_places(model)


def written_elsewhere(networks: Sequence[nn.Module], settings: Settings) -> bytes:
    """What others wrote: the networks' own layers, the method's objective, the rule of the rate. With the files they
    lie in, whose functions they may call, and the numbers that they hold."""
    method, reference = METHODS[settings.method], REFERENCES[settings.reference]
    rules = [method.objective, chosen_objective(settings), method.controller, reference.controller]
    kinds = {type(module) for network in networks for module in network.modules()}
    written: list[Any] = [*kinds, *(rule for rule in rules if rule)]
    digest = hashlib.sha256(f"{method.rate} {method.decay} {method.parts}".encode())
    for thing in sorted(filter(_foreign, written), key=_name):
        digest.update(_told(thing).encode())
        digest.update(_source(thing))
    return digest.digest()


def _name(thing: Any) -> str:
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', type(thing).__qualname__)}"


def _foreign(thing: Any) -> bool:
    return _name(thing).split(".")[0] not in LIBRARIES


def _source(thing: Any) -> bytes:
    thing = getattr(thing, "func", thing)  # of functools.partial
    with suppress(OSError, TypeError):
        return Path(inspect.getsourcefile(thing) or "").read_bytes()
    with suppress(OSError, TypeError):  # of a notebook's cell; typed into a shell, or compiled, there is none
        return inspect.getsource(thing).encode()
    return b""


def _held(thing: Any, *above: int) -> str:
    """By a function made within another one, or by functools.partial."""
    made = getattr(thing, "func", thing)
    cells = []
    for cell in getattr(made, "__closure__", None) or ():
        with suppress(ValueError):  # nothing is in it yet
            cells.append(cell.cell_contents)
    values = [
        cells,
        getattr(made, "__defaults__", None),
        getattr(thing, "args", None),
        getattr(thing, "keywords", None),
    ]
    return _told(values, *above)


def _told(value: Any, *above: int) -> str:
    """By value, in the same words in each process; `above` are the places of what it lies in, which may be itself."""
    if isinstance(value, Tensor) and value.is_meta:
        return f"{value.dtype} {tuple(value.shape)}"
    if isinstance(value, Tensor):
        return weights_sha256({"": value.detach().to_dense()})
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return f"{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    if id(value) in above:
        return "itself"
    above = (id(value), *above)
    if isinstance(value, dict | list | tuple | set | frozenset):
        told = [_told(part, *above) for part in (value.items() if isinstance(value, dict) else value)]
        return f"[{', '.join(sorted(told) if isinstance(value, set | frozenset) else told)}]"
    if inspect.isroutine(value) or isinstance(value, type | partial):
        return f"{_name(getattr(value, 'func', value))} {_held(value, *above)}"
    if isinstance(value, nn.Module):
        return computed_by(value, *above)
    own = _foreign(type(value)) and type(value).__module__.split(".")[0] not in sys.stdlib_module_names
    if own and hasattr(value, "__dict__"):
        return f"{_name(type(value))} {_told(vars(value), *above)}"
    return _without_places(value)


def _without_places(values: Any) -> str:
    return re.sub(" at 0x[0-9a-f]+", "", repr(values))


@contextmanager
def alone(file: Path | None) -> Iterator[None]:
    """Two runs never train the same key at once; of processes that train it together the first holds the lock."""
    with locked(file.with_suffix(".lock")) if file is not None and distributed.process_number() == 0 else nullcontext():
        yield


def keep(learner: Learner, done: RunState, file: Path | None) -> None:
    """The first process writes; all wait for it."""
    if file is not None and distributed.process_number() == 0:
        saved = {
            "modules": learner.state(),
            "optimiser": learner.optimiser.state_dict(),
            "controller": learner.controller.state(),
            "attacker": learner.attacker.state(),
            "variety": learner.variety.state(),
            "weights": tuple(learner.weights),
            "balance": learner.balance.state() if learner.balance else None,
            "progress": {**vars(done)},
        }
        with naming(file), replacing(file) as part:
            with open(part, "wb") as handle:
                _save(saved, handle)
            if file.exists():
                os.replace(file, before(file))
    distributed.agree(done.epoch)


def _save(saved: dict[str, Any], handle: IO[bytes]) -> None:
    """torch tells of a full disk as "unexpected pos 4655232 vs 4655120", on top of the system's own words."""
    try:
        torch.save(saved, handle)
    except RuntimeError as error:
        raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def restore(learner: Learner, file: Path | None) -> RunState:
    saved = _read(file, learner.device) if file is not None else {}
    done = RunState(**saved["progress"]) if saved else RunState()
    if not distributed.agree(done.epoch):
        raise BadArgument(
            "checkpoints", str(file), "the processes do not all read this file: the folder must be shared"
        )
    if file is not None and distributed.process_number() == 0:
        for left in file.parent.glob(f".{file.name}.*.part"):  # a kill in the middle of writing
            left.unlink(missing_ok=True)
    if saved:
        learner.load(saved["modules"])
        learner.optimiser.load_state_dict(saved["optimiser"])
        learner.controller.load(saved["controller"])
        learner.attacker.load(saved["attacker"])
        learner.variety.load(saved["variety"])
        learner.weights = Scalars(*saved["weights"])
        learner.balance = Balance(**saved["balance"]) if saved["balance"] else None
    return done


def forget(file: Path | None) -> None:
    """Of a run that is over and whose outcome is kept elsewhere: the first process removes it."""
    if file is not None and distributed.process_number() == 0:
        for state in (file, before(file)):
            state.unlink(missing_ok=True)


def before(file: Path) -> Path:
    """The state of the epoch before: what is left where the newest file cannot be read."""
    return file.with_name(f"{file.name}.before")


def _read(file: Path, device: torch.device) -> Mapping[str, Any]:
    """The newest state that can be read. What cannot is set aside, with one line; all processes read the same."""
    found: list[str] = []
    if distributed.process_number() == 0:
        found = [str(path) for path in (file, before(file)) if path.exists() and _readable(path)][:1]
    found = distributed.of_the_first(found)
    return torch.load(found[0], map_location=device, weights_only=True) if found else {}


def _passes(error: Exception) -> bool:
    """The machine is short of something, or the storage away: the state itself may be whole. torch says so in words."""
    said = isinstance(error, RuntimeError) and any(word in str(error) for word in ("unable to mmap", "allocate memory"))
    return said or isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in PASSING)


def _readable(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()  # torch does not look at the checksums
        if not damaged and torch.load(file, map_location="cpu", weights_only=True, mmap=True).keys() == PARTS:
            return True
        reason = f"the checksum of {damaged} is wrong" if damaged else "it is no state of a run"
    except Exception as error:  # of the disk, of zip, of pickle: torch has no common one
        if _passes(error):
            raise
        reason = first_line(error)[:100]
    aside = file.with_name(f"{file.name}.unreadable")
    os.replace(file, aside)
    tqdm.write(f"{file.name} cannot be read ({reason}): set aside as {aside.name}", file=sys.stderr)
    return False
