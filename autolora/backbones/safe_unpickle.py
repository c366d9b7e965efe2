"""Files of weights that came from anywhere: opened without running anything that they name.

    kind = file_kind(path)                       # what it is, or why it is none: a web page, a Git LFS pointer, ...
    tree, inert = read_objects(path, kind)       # tensors in plain containers; every other object is Inert

A pickle may name any class and any function. Ours rebuilds tensors and gives hollow stand-ins for all else.
"""

from __future__ import annotations

import pickle
import types
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from autolora.common.errors import first_line


def file_kind(path: Path) -> str:
    """zip, safetensors or pickle: by content, never by the file's name."""
    with open(path, "rb") as file:
        head = file.read(512)
    if head[:4] == b"PK\x03\x04":
        return "zip"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000:
        return "safetensors"
    if head[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        return "pickle"
    raise ValueError(f"{path} is no file of weights: {_what_it_is(head)}")


def read_objects(path: Path, kind: str) -> tuple[Any, list[str]]:
    """(what the file holds, the names of classes and functions that were not run)."""
    return _read_safetensors(path) if kind == "safetensors" else _read_torch(path, kind)


def _what_it_is(head: bytes) -> str:
    text = head.lstrip().lower()
    if not head:
        return "it is empty"
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml", b"<!--")):
        return "it is a web page, saved by a download that met a login, an error or a confirmation page"
    if text.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; run `git lfs pull` where it came from"
    if head[:2] == b"\x1f\x8b":
        return "it is gzip; unpack it first"
    if head[257:262] == b"ustar":
        return (
            "it is a tar archive (also torch before 0.1.10 wrote those); unpack it, or save it again with a newer torch"
        )
    if head[:8] == b"\x89HDF\r\n\x1a\n":
        return "it is HDF5 (Keras?); only torch and safetensors files are read"
    return f"it begins with {head[:16]!r}; expected safetensors, or what torch.save writes"


def _read_safetensors(path: Path) -> tuple[Any, list[str]]:
    try:
        return safetensors.torch.load_file(path), []
    except (safetensors.SafetensorError, ValueError, OSError) as error:
        raise ValueError(f"{path} is a damaged or truncated safetensors file ({error})") from None


def _read_torch(path: Path, kind: str) -> tuple[Any, list[str]]:
    """torch's own tensors-only reader; where it refuses a file for its other objects, ours that leaves them inert."""
    if kind == "zip":
        _refuse_foreign_zip(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return torch.load(path, map_location="cpu", weights_only=True), []
            except pickle.UnpicklingError:
                return _read_inert(path)
    except Exception as error:  # foreign bytes have them raise what they like: OverflowError, AssertionError, ...
        reason = first_line(error)[:200]
        raise ValueError(f"{path} is damaged, truncated, or not written by torch.save ({reason})") from None


def _refuse_foreign_zip(path: Path) -> None:
    try:
        fault = _zip_fault(path)
    except Exception as error:  # BadZipFile, NotImplementedError, OSError, struct.error, ...
        fault = f"is a damaged or truncated archive ({first_line(error)[:200]})"
    if fault:
        raise ValueError(f"{path} {fault}")


def _zip_fault(path: Path) -> str | None:
    if not zipfile.is_zipfile(path):
        return "is truncated: the end of the archive is missing"
    with zipfile.ZipFile(path) as archive:
        names = [name.rpartition("/")[2] for name in archive.namelist()]
        if "constants.pkl" in names:
            return "is a TorchScript archive, which carries code: save its state_dict() instead"
        if "data.pkl" not in names:
            return "is a zip archive that torch.save did not write: unpack it, and name a file in it"
        if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
            return "is compressed, which torch.save never does: unpack it, and save it again"
        bad = archive.testzip()  # torch does not look at the checksums; 0 is what it writes when told to leave them out
        if bad is not None and archive.getinfo(bad).CRC:
            return f"is damaged: the checksum of {bad} in it is wrong"
    return None


# --- a pickle that rebuilds tensors and nothing else ------------------------------------------------------------------


class Inert:
    """Stands where a foreign object stood: takes everything, does nothing, remembers its state."""

    dump_patches = False  # torch asks for it in old files that hold whole modules

    def __new__(cls, *arguments: Any, **named: Any) -> Inert:
        return object.__new__(cls)

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any = None) -> None:
        self.state = state

    def __call__(self, *arguments: Any, **named: Any) -> Inert:
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, *items: Any) -> None:
        pass

    extend = add = update = append


class _Rebuild:
    """A function that a checkpoint may call. An instance without attributes, so that no pickle can tamper with it."""

    __slots__ = ("_function",)
    _function: Any

    def __init__(self, function: Any) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("the pickle tries to change a function")

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError("the pickle tries to change a function")


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """A view into a stored block: hooks, flags and metadata of the saved tensor are dropped."""
    return torch.empty(0, dtype=storage.dtype).set_(storage._untyped_storage, offset, size, stride)


def _first(value: Any, *_: Any) -> Any:
    return value


def _of_type(function: Any, _type: Any, arguments: tuple[Any, ...], _state: Any = None) -> Any:
    """A subclass of Tensor, as a plain tensor."""
    return function(*arguments) if isinstance(function, _Rebuild) else None


KNOWN: dict[str, Any] = {
    "torch._utils._rebuild_tensor": _Rebuild(_tensor),
    "torch._utils._rebuild_tensor_v2": _Rebuild(_tensor),
    "torch._utils._rebuild_tensor_v3": _Rebuild(_tensor),
    "torch._utils._rebuild_parameter": _Rebuild(_first),
    "torch._utils._rebuild_parameter_with_state": _Rebuild(_first),
    "torch._tensor._rebuild_from_type_v2": _Rebuild(_of_type),
    "collections.OrderedDict": OrderedDict,
    "torch.Size": tuple,
    **{
        f"{module}.{kind.__name__}": kind for module in ("builtins", "__builtin__") for kind in (dict, list, set, tuple)
    },
}


def _read_inert(path: Path) -> tuple[Any, list[str]]:
    """Read with a pickle that knows how to rebuild tensors and nothing else."""
    seen: set[str] = set()

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            full = f"{module}.{name}"
            if full in KNOWN:
                return KNOWN[full]
            if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
                return getattr(torch, name)
            seen.add(full)
            return type(name, (Inert,), {})  # a class of its own: a pickle may set attributes on what it names

    def load(file: Any, **options: Any) -> Any:
        return Unpickler(file, **options).load()

    reader = types.SimpleNamespace(Unpickler=Unpickler, load=load, __name__="inert")
    tree = torch.load(path, map_location="cpu", weights_only=False, pickle_module=reader)
    return tree, sorted(seen)
