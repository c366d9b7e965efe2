"""What every evaluation does first: images and ids checked, the network at rest, float32 meaning float32."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any, Generic, NamedTuple, TypeVar

import onnxruntime
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from autolora.attacks.network import from_session
from autolora.attacks.pgd import frozen
from autolora.export import ExportError, as_onnx
from autolora.folding import Folded, has_bfloat16
from autolora.runtime import BadModel, open_session

BUSY = 1e9  # floating point operations of a forward, about: beyond it a CPU does no more of them a second


def prepared(x: Tensor, y: Tensor, ids: Sequence[str] | None) -> tuple[Tensor, Tensor, list[str]]:
    x, y = torch.as_tensor(x), torch.as_tensor(y).long().cpu()
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(f"{len(x)} images and {len(y)} labels: expected as many of each, and at least one")
    x = (x.cpu().float().div(255) if x.dtype == torch.uint8 else x.detach().cpu().float()).contiguous()
    names = [str(i) for i in ids] if ids is not None else _content_ids(x)
    if len(set(names)) != len(x):
        raise ValueError(f"{len(set(names))} different ids for {len(x)} images: every image needs one of its own")
    return x, y, names


def _content_ids(x: Tensor) -> list[str]:
    names, seen = [], dict[str, int]()
    for image in x:
        name = hashlib.sha256(image.numpy().tobytes()).hexdigest()
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return names


def likely(logits: Tensor, y: Tensor) -> Tensor:
    """The wrong classes of each image, most likely first: [n,classes-1]."""
    return logits.scatter(1, y[:, None], -torch.inf).argsort(dim=1, descending=True, stable=True)[:, :-1]


def device_of(model: Any, x: Tensor) -> torch.device:
    """Where the model lives; where it has no parameters, where the images are."""
    if isinstance(model, nn.Module):
        for tensor in [*model.parameters(), *model.buffers()]:
            return tensor.device
    return x.device


def at_rest(model: Any) -> Any:
    """Parameters without gradients, for the length of an attack."""
    return frozen(model) if isinstance(model, nn.Module) else nullcontext()


@contextmanager
def full_precision() -> Iterator[None]:
    """No TF32 and no bfloat16 inside float32, for the length of the attack: the reported number is of float32.

    cuDNN's older switch moves along: while the two say different things, torch's own exporter fails on asking for it.
    """
    kept, older = [(switch, switch.fp32_precision) for switch in switches()], _older_switch()
    try:
        _older_switch(older and False)
        for switch, _ in kept:
            switch.fp32_precision = "ieee"
        yield
    finally:
        _older_switch(older)
        for switch, value in kept:
            switch.fp32_precision = value


def _older_switch(value: bool | None = None) -> bool | None:
    """What it says now; None where the caller has set the newer ones beside it. It is set to `value`, unless None."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are newer ones
        try:
            now = torch.backends.cudnn.allow_tf32
        except RuntimeError:
            now = None
        if value is not None:
            torch.backends.cudnn.allow_tf32 = value
    return now


def switches() -> list[Any]:
    """Where torch keeps in what precision float32 is multiplied."""
    cudnn, mkldnn = torch.backends.cudnn, torch.backends.mkldnn
    parts = ((cudnn, "conv"), (cudnn, "rnn"), (mkldnn, "conv"), (mkldnn, "rnn"), (mkldnn, "matmul"))
    return [torch.backends.cuda.matmul, *(getattr(library, part) for library, part in parts)]


def default_batch(device: torch.device, model: Callable[[Tensor], Tensor], example: Tensor) -> int:
    """Images per forward, one constant per network and kind of device: the flags belong to it.

    At the end of an attack it is filled up with copies. So on a CPU it is no larger than keeps the processor busy: 64
    for a network of a few MFLOP (or of which nothing is known), 8 for one of hundreds.
    """
    if device.type != "cpu":
        return 512
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(example[:1])
    return next((batch for batch in (8, 16, 32) if batch * counter.get_total_flops() >= BUSY), 64)


Answers = Callable[[Tensor], Tensor]
T = TypeVar("T")


class Copies(NamedTuple, Generic[T]):
    """The network's function, faster: which copy an attack may use depends on what it asks for."""

    half: T  # up to bfloat16 where the processor has it
    full: T  # up to float32's rounding
    scores: T  # the same, without gradients


def quick_copies(model: Answers, example: Tensor) -> Copies[Answers]:
    """All have the batch norms folded into the convolutions; torch's keep their channels last."""
    if not isinstance(model, nn.Module):
        raise ValueError("evaluate.precision is 'fast': that needs a torch module, whose batch norms can be folded")
    try:
        view = copy.deepcopy(Folded(model, example).view)  # of its own memory, whose layout may change
    except Exception as error:  # parametrised weights, traced modules: what torch cannot copy or look into
        raise ValueError(f"evaluate.precision is 'fast': the network cannot be copied and folded ({error})") from error
    view.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def full(x: Tensor) -> Tensor:
        return view(x.contiguous(memory_format=torch.channels_last))

    def half(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return full(x).float()

    device, (c, h, w) = example.device, example.shape[1:]
    scores = full if device.type != "cpu" else InOnnxruntime(view, (c, h, w), full)
    return Copies(half if has_bfloat16(device) else full, full, scores)


class InOnnxruntime:
    """The network as onnxruntime runs it: on a CPU up to 1.5 times as fast, since a convolution takes its activation
    with it and finds its weights packed. It is converted (seconds) when it is first asked; `otherwise` answers where
    it has no ONNX form."""

    def __init__(self, model: nn.Module, shape: tuple[int, int, int], otherwise: Answers) -> None:
        self.model, self.shape, self.otherwise = model, shape, otherwise
        self.version = ""  # of onnxruntime, once it answers

    def __call__(self, x: Tensor) -> Tensor:
        return self.answers(x)

    @cached_property
    def answers(self) -> Answers:
        try:
            session = open_session(as_onnx(self.model, self.shape), threads=torch.get_num_threads())
        except (ExportError, BadModel):
            return self.otherwise
        self.version = onnxruntime.__version__
        return from_session(session)
