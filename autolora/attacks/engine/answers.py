"""What a network must answer to be attacked, asked once before anything else: each fault in one line, with its cure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autolora.common.errors import BadArgument, Words


def require_logits(model: Callable[[Tensor], Any], image: Tensor) -> None:
    """On one image [1,c,h,w]: a tensor [1,classes] of floats."""
    if hasattr(model, "branch") and not callable(model):  # what finetune gives
        raise BadArgument("model", _name(model), "merge it first: autolora.merge(tuned)")
    try:
        with torch.no_grad():
            answer = model(given := image.clone())
    except (TypeError, AttributeError, ValueError) as error:  # a function that expects an array, for one
        raise BadArgument("model", _name(model), f"it does not take a tensor [n,c,h,w] ({error}). {NUMPY}") from error
    if not torch.equal(given.nan_to_num(), image.nan_to_num()):  # it would change the caller's images, and the attack's
        raise BadArgument("model", _name(model), "its forward changes its input in place: write x - m, not x.sub_(m)")
    if isinstance(answer, np.ndarray):
        raise BadArgument("model", _name(model), f"it answers with a numpy array. {NUMPY}")
    if not isinstance(answer, Tensor):
        raise BadArgument("model", _name(model), f"it answers with a {type(answer).__name__}: {CURE}")
    if answer.dim() != 2 or len(answer) != 1 or not answer.is_floating_point():
        shape = f"{str(answer.dtype).removeprefix('torch.')} of shape {tuple(answer.shape)}"
        raise BadArgument("model", _name(model), f"for one image it answers {shape}: {CURE}")
    if answer.shape[1] < 2:
        raise BadArgument("model", _name(model), f"it answers with one number: {ONE}")


CURE = "expected logits, floats [n,classes], as they are before argmax or softmax"
ONE = "expected one logit for each of two classes or more, for instance torch.cat([-z, z], 1)"
NUMPY = "Attack it by its scores: black_box(lambda x: torch.from_numpy(f(x.cpu().numpy())), ...)"


def _name(model: Any) -> Words:
    return Words(getattr(model, "__name__", type(model).__name__))
