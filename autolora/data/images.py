"""Images that are attacked: read once, made floats once, moved to a device once, each known by an id.

    images = TestImages.of(x, y, ids)      images.pixels("cuda"), images.labels("cuda"), images.only(rows)

The id of an image is the hash of its content: two images of one id are the same image, and nobody hashes them again.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from autolora.common.errors import BadArgument, Words

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class TestImages:
    __test__ = False  # no test, whatever pytest thinks of the name

    x: np.ndarray  # [n,c,h,w]: uint8, or float32 in [0,1]
    y: np.ndarray  # int64 [n]
    ids: list[str]
    held: dict[str, Tensor] = field(default_factory=dict, repr=False)  # by device

    @classmethod
    def of(cls, x: Any, y: Any, ids: Sequence[str] | None = None) -> TestImages:
        """From arrays or tensors on any device; without ids each image is hashed here, and nowhere else."""
        pixels, labels = _pixels(x), _labels(y)
        if len(pixels) != len(labels) or len(pixels) == 0:
            raise ValueError(
                f"{len(pixels)} images and {len(labels)} labels: expected as many of each, and at least one"
            )
        pixels = np.require(pixels, None if pixels.dtype == np.uint8 else np.float32, ["C", "W"])
        names = (
            [i.decode() if isinstance(i, bytes) else str(i) for i in ids] if ids is not None else _content_ids(pixels)
        )
        if len(set(names)) != len(pixels):
            raise ValueError(
                f"{len(set(names))} different ids for {len(pixels)} images: every image needs one of its own"
            )
        return cls(pixels, labels, names)

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def floats(self) -> np.ndarray:
        """float32 in [0,1]: the memory of `pixels("cpu")`, for those who compute without torch."""
        return _floats(self.x)

    def pixels(self, device: torch.device | str = "cpu") -> Tensor:
        """float32 [n,c,h,w] in [0,1]; moved once to each device."""
        import torch  # not before: a flow that reads stored examples has no need of it

        name = str(device)
        if name not in self.held:
            self.held[name] = torch.from_numpy(self.floats).to(device)
        return self.held[name]

    def labels(self, device: torch.device | str = "cpu") -> Tensor:
        import torch

        name = f"labels on {device}"
        if name not in self.held:
            self.held[name] = torch.from_numpy(self.y).to(device)
        return self.held[name]

    def only(self, rows: Sequence[int] | np.ndarray) -> TestImages:
        """These images in this order; rows are numbers, or a bool for each image."""
        index = np.arange(len(self))[np.asarray(rows, None if len(rows) else np.int64)]
        return TestImages(np.asarray(self.x[index]), self.y[index], [self.ids[i] for i in index.tolist()])


def _pixels(x: Any) -> np.ndarray:
    pixels = _array(x, "x")
    shape = pixels.shape
    if pixels.ndim == 3:
        raise BadArgument(
            "x", Words(f"of shape {shape}"), "one image is a batch of one: give x[None], and y as [label]"
        )
    if pixels.ndim != 4:
        raise BadArgument("x", Words(f"of shape {shape}"), "expected images [n,channels,height,width]")
    if shape[3] in (1, 3) and shape[1] > 4:
        raise BadArgument(
            "x", Words(f"of shape {shape}"), "channels come first: give x.permute(0, 3, 1, 2) (numpy: transpose)"
        )
    return pixels


def _labels(y: Any) -> np.ndarray:
    labels = _array(y, "y")
    if labels.ndim == 2:
        cure = "one-hot labels: give class numbers, y.argmax(1)" if labels.shape[1] > 1 else "give y.squeeze(1)"
        raise BadArgument("y", Words(f"of shape {labels.shape}"), cure)
    if labels.ndim != 1:
        raise BadArgument("y", Words(f"of shape {labels.shape}"), "expected one class number for each image")
    if labels.dtype.kind == "f" and not np.array_equal(labels, np.rint(labels)):  # nan is not equal to itself
        raise BadArgument("y", Words(f"of {labels.dtype} with fractions"), "expected whole class numbers")
    return labels.astype(np.int64)


def _array(values: Any, argument: str) -> np.ndarray:
    data = sys.modules.get("torch.utils.data")
    if data is not None and isinstance(values, (data.DataLoader, data.Dataset)):
        loader = "loader" if isinstance(values, data.DataLoader) else "DataLoader(dataset, 256)"
        cure = f"give tensors: x, y = (torch.cat(parts) for parts in zip(*{loader}))"
        raise BadArgument(argument, Words(f"a {type(values).__name__}"), cure)
    array = values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise BadArgument(argument, Words(f"a {type(values).__name__}"), "expected a tensor or an array of numbers")
    return array


def _floats(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32) / 255 if x.dtype == np.uint8 else x


def _content_ids(x: np.ndarray) -> list[str]:
    """Of the float pixels, so that bytes and floats draw alike; equal images are told apart by their number."""
    names, seen = [], dict[str, int]()
    for image in x:
        name = hashlib.sha256(_floats(image).tobytes()).hexdigest()
        seen[name] = seen.get(name, 0) + 1
        again = hashlib.sha256(f"{name}#{seen[name]}".encode()).hexdigest()
        names.append(name if seen[name] == 1 else again)  # all of one length: they are stored in a column
    return names
