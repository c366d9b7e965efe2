"""MODEL: where a network comes from, and what it takes.

model.onnx | model.pt2 (torch.export) | package.module:factory | timm:NAME | hf:ID | models:/NAME@alias
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import torch
from onnx.external_data_helper import _get_all_tensors
from torch import Tensor, nn

from autolora.attacks.engine.file_network import FileNetwork
from autolora.backbones.checkpoints import fit_state, grouped, read_checkpoint
from autolora.common.downloads import fetch
from autolora.common.errors import BadArgument, first_line
from autolora.common.files import file_sha256, weights_sha256
from autolora.export.conversion import LARGEST
from autolora.export.notes import notes_in
from autolora.export.operators.shapes import NoRule

Normalise = tuple[Sequence[float], Sequence[float]]
KINDS = "an .onnx file, a .pt2 archive of torch.export, package.module:factory, timm:NAME, hf:ID or models:/NAME@alias"
SOFT = ("Softmax", "LogSoftmax", "Sigmoid")


class Asked(NamedTuple):
    """What the command line says of the model."""

    model: str
    weights: str | None = None
    normalise: Normalise | None = None
    channels_last: bool = False
    before_softmax: bool = False
    scores_only: bool = False
    size: int | None = None
    trust: bool = False


@dataclass
class Target:
    """A network that can be attacked, on pixels in [0,1]."""

    name: str
    kind: str
    network: nn.Module
    sha256: str  # of the file, or of the weights
    shape: tuple[int, int, int] | None  # of one image [c,h,w]; None: any size
    classes: list[str] | None = None  # names that the file gives itself
    graph: onnx.ModelProto | None = None
    notes: dict[str, Any] = field(default_factory=dict)  # what the report says beyond that


def target(asked: Asked) -> Target:
    text = asked.model
    if text.startswith("models:/"):
        return _registered(asked)
    if text.startswith(("timm:", "hf:")):
        return _from_timm(asked)
    path = Path(text)
    if path.suffix in (".onnx", ".pt2") or path.is_file():
        if not path.is_file():
            raise BadArgument("model", text, "there is no such file")
        return _archive(path, asked) if path.suffix == ".pt2" else _onnx(path, asked)
    if ":" in text:
        return _factory(asked)
    raise BadArgument("model", text, f"there is no such file, and it is none of these: {KINDS}")


# --- ONNX -------------------------------------------------------------------------------------------------------------


def _onnx(path: Path, asked: Asked) -> Target:
    graph = read_onnx(path)
    if asked.before_softmax:
        _cut(graph, path)
    if "mix" in notes_in(graph) and not asked.scores_only:
        cure = "autolora.autoattack takes the classifier file it was made of, --version square the scores of this one"
        raise ValueError(f"{path} is a mixture, whose own gradients lead nowhere and would flatter it: {cure}")
    image = _image(graph, path)
    if _is_bytes(image) and asked.normalise is not None:
        raise BadArgument(
            "mean", asked.normalise[0], f"{path} takes bytes: what they stand for the file decides itself"
        )
    channels_last = _layout(image, path, wanted=asked.channels_last)
    try:
        network = FileNetwork(
            graph, normalise=asked.normalise, channels_last=channels_last, gradients=not asked.scores_only
        )
    except NoRule as error:
        raise no_gradients(str(path), error) from None
    names = notes_in(graph).get("classes", "")
    return Target(
        path.stem,
        "ONNX",
        network,
        _sha256(path),
        _sized(_dims_of(image, channels_last=channels_last or _is_bytes(image)), asked.size),
        _listed(names) or None,
        graph,
        {"input": onnx.TensorProto.DataType.Name(image.type.tensor_type.elem_type)}
        | ({"before_softmax": True} if asked.before_softmax else {}),
    )


def no_gradients(model: str, error: NoRule) -> ValueError:
    cure = "its scores alone can be attacked: --version square"
    return ValueError(f"{model}: {error} in torch, so there are no gradients; {cure}")


def _listed(text: str) -> list[str]:
    """As we write them; what others write under this name may be no JSON."""
    try:
        return [str(name) for name in json.loads(text)] if text.startswith("[") else []
    except ValueError:
        return []


def read_onnx(path: Path) -> onnx.ModelProto:
    """With the weights that lie beside it."""
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path} holds {path.stat().st_size / 1e9:.1f} GB: one ONNX file holds 2.1 GB at most")
    try:
        graph = onnx.load(str(path), load_external_data=False)
        beside = sum(_beside(path, tensor) for tensor in _get_all_tensors(graph))
        if beside + path.stat().st_size > LARGEST:
            raise ValueError(f"{path} has {beside / 1e9:.1f} GB of weights beside it: 2.1 GB at most are attacked here")
        return onnx.load(str(path))
    except ValueError:
        raise
    except Exception as error:  # protobuf's, and files that are missing
        raise ValueError(f"{path} is no ONNX file, or it is damaged: {first_line(error)}") from error


def _sha256(path: Path) -> str:
    """Of the file; where weights lie beside it, of both together."""
    every_tensor = _get_all_tensors(onnx.load(str(path), load_external_data=False))  # initializers, and those of nodes
    names = {entry.value for tensor in every_tensor for entry in tensor.external_data if entry.key == "location"}
    if not names:
        return file_sha256(path)
    every = [file_sha256(file) for file in (path, *(path.parent / name for name in sorted(names)))]
    return hashlib.sha256(" ".join(every).encode()).hexdigest()


def _beside(path: Path, tensor: onnx.TensorProto) -> int:
    return next((int(entry.value) for entry in tensor.external_data if entry.key == "length"), 0)


def _cut(model: onnx.ModelProto, path: Path) -> None:
    """The file's output becomes what its last softmax is given: the same classes, and slopes that do not vanish."""
    output = model.graph.output[0]
    makers = {name: node for node in model.graph.node for name in node.output}
    node = makers.get(output.name)
    while node is not None and node.op_type in ("Identity", "Cast", "Reshape", "Squeeze"):
        node = makers.get(node.input[0])
    if node is None or node.op_type not in SOFT:
        raise BadArgument("before-softmax", str(path), f"its output is made by {node.op_type if node else 'nothing'}")
    given, kind = node.input[0], onnx.TensorProto.FLOAT
    inferred = onnx.shape_inference.infer_shapes(model).graph.value_info
    inside = {each.name: each.type.tensor_type.elem_type for each in inferred}
    if inside.get(given, kind) != kind:  # of a file in float16 whose answers are cast
        cast = onnx.helper.make_node("Cast", [given], [f"{given} as float32"], to=kind)
        model.graph.node.append(cast)
        given = cast.output[0]
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info(given, kind, None))


def _image(model: onnx.ModelProto, path: Path) -> onnx.ValueInfoProto:
    constants = {tensor.name for tensor in model.graph.initializer}
    images = [each for each in model.graph.input if each.name not in constants]
    if len(images) != 1:
        named = ", ".join(each.name for each in images)
        raise ValueError(f"{path} takes {len(images)} inputs ({named}): expected one, the images")
    if len(images[0].type.tensor_type.shape.dim) != 4:
        raise ValueError(f"{path} takes {_dims(images[0])}: expected images [n,3,h,w]")
    return images[0]


def _dims(image: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_value or dim.dim_param or "?" for dim in image.type.tensor_type.shape.dim]


def _is_bytes(image: onnx.ValueInfoProto) -> bool:
    return image.type.tensor_type.elem_type == onnx.TensorProto.UINT8


def _layout(image: onnx.ValueInfoProto, path: Path, *, wanted: bool) -> bool:
    """Whether float images lie as [n,h,w,c]; said by the user, and held against the file."""
    kind = image.type.tensor_type.elem_type
    dims = _dims(image)
    last, first = dims[3] in (1, 3), dims[1] in (1, 3)
    if kind == onnx.TensorProto.UINT8:
        if not last:
            raise ValueError(f"{path} takes bytes {dims}: expected uint8 [n,h,w,3]")
        return False
    if kind not in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16):
        raise ValueError(f"{path} takes {onnx.TensorProto.DataType.Name(kind)}: expected float32, float16 or uint8")
    if last and not first and not wanted:
        raise ValueError(f"{path} takes images {dims}, channels last: say so with --layout nhwc")
    if wanted and first and not last:
        raise ValueError(f"{path} takes images {dims}, channels first: leave --layout nhwc out")
    return wanted


def _dims_of(image: onnx.ValueInfoProto, *, channels_last: bool) -> tuple[int, int, int]:
    """[c,h,w]; 0 where the file leaves it free."""
    dims = _dims(image)[1:]
    sides = [dims[2], dims[0], dims[1]] if channels_last else dims
    c, h, w = (side if isinstance(side, int) else 0 for side in sides)
    return c or 3, h, w


def _sized(dims: tuple[int, int, int], asked: int | None) -> tuple[int, int, int] | None:
    c, h, w = dims
    if asked and (h or asked, w or asked) != (asked, asked):
        raise BadArgument("size", asked, f"the model takes {h or 'any'}x{w or 'any'}")
    h, w = h or asked or 0, w or asked or 0
    return (c, h, w) if h and w else None


# --- torch ------------------------------------------------------------------------------------------------------------


class Normalised(nn.Module):
    """A network on pixels in [0,1], which are normalised here."""

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, normalise: Normalise) -> None:
        super().__init__()
        self.body = body
        for name, values in zip(("mean", "std"), normalise):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.body((x - self.mean) / self.std)


class Archive(nn.Module):
    """What torch.export made: a graph that knows no train mode."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "graph", module)  # no submodule: it refuses .eval()
        for name, tensor in {**dict(module.named_parameters()), **dict(module.named_buffers())}.items():
            self.register_buffer(name.replace(".", "/"), tensor.detach())
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.graph(x)  # type: ignore[operator]


def _archive(path: Path, asked: Asked) -> Target:
    """Parts of an archive may be pickles, which torch.export.load runs: it is code, as a factory is."""
    if not asked.trust:
        cure = "--trust, if you know who made it, or give an ONNX file, which runs none"
        raise BadArgument("model", asked.model, f"an archive of torch.export can run code on this machine: {cure}")
    try:
        module = torch.export.load(str(path)).module()
    except Exception as error:
        raise ValueError(f"{path} is no archive of torch.export, or it is damaged: {first_line(error)}") from error
    return Target(path.stem, "torch.export", _wrapped(Archive(module), asked), file_sha256(path), _square(asked))


def _factory(asked: Asked) -> Target:
    """`package.module:factory` is called without arguments; the current folder is looked into first."""
    module_name, _, name = asked.model.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        factory = getattr(importlib.import_module(module_name), name)
        module = factory()
    except Exception as error:
        raise BadArgument("model", asked.model, f"it cannot be called ({first_line(error)})") from error
    finally:
        sys.path.pop(0)
    if not isinstance(module, nn.Module):
        raise BadArgument("model", asked.model, f"it gives a {type(module).__name__}: expected a torch.nn.Module")
    if asked.weights is not None:
        _load(module, asked.weights)
    return _module(asked.model, "torch", module.eval(), asked)


def _load(module: nn.Module, weights: str) -> None:
    """Every weight of the network comes from the file, under whatever prefix."""
    fitted = fit_state(read_checkpoint(fetch(weights)).state, module.state_dict())
    if lacking := [*fitted.missing, *fitted.reshaped]:
        raise BadArgument("weights", weights, f"it does not fit: no weights for {grouped(lacking)}")
    module.load_state_dict(fitted.state, strict=False)  # counters of batch norms may be missing


def _from_timm(asked: Asked) -> Target:
    """With its published weights, its own mean, deviation and size; never with random ones, which nobody wants to know.

    `--weights` needs no network for a timm name: of an hf: id the hub says what the network is.
    """
    import timm
    from huggingface_hub.utils import logging

    kind, _, name = asked.model.partition(":")
    logging.set_verbosity_error()  # its five attempts to reach the hub are told in our one line
    try:
        module = timm.create_model(f"hf_hub:{name}" if kind == "hf" else name, pretrained=asked.weights is None)
    except Exception as error:
        cure = "" if asked.weights else "; --weights FILE takes them from elsewhere"
        raise BadArgument("model", asked.model, f"timm does not give it ({first_line(error)}){cure}") from error
    if asked.weights is not None:
        _load(module, asked.weights)
    config: Any = module.pretrained_cfg
    normalise = asked.normalise or (config["mean"], config["std"])
    size = asked.size or config["input_size"][1]
    made = asked._replace(normalise=normalise, size=size)
    return _module(name.replace("/", "-"), kind, module.eval(), made)


def _module(name: str, kind: str, module: nn.Module, asked: Asked) -> Target:
    network = _wrapped(module, asked)
    return Target(name, kind, network, weights_sha256(module.state_dict()), _square(asked))


def _wrapped(module: nn.Module, asked: Asked) -> nn.Module:
    return module if asked.normalise is None else Normalised(module, asked.normalise)


def _square(asked: Asked) -> tuple[int, int, int] | None:
    return (3, asked.size, asked.size) if asked.size else None


def _registered(asked: Asked) -> Target:
    """By MLflow's own command, where it is installed: MLFLOW_TRACKING_URI says which server."""
    where = os.environ.get("MLFLOW_TRACKING_URI")
    if where is None and not Path("mlflow.db").exists():  # MLflow would make an empty one here
        raise BadArgument("model", asked.model, "MLFLOW_TRACKING_URI names no server, and here lies no mlflow.db")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "mlflow", "artifacts", "download", "-u", asked.model, "-d", folder]
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
        ended = subprocess.run(command, capture_output=True, text=True, env=quiet | os.environ)
        found = sorted(Path(folder).rglob("*.onnx"))
        if ended.returncode or not found:
            said = (ended.stderr.strip().splitlines() if ended.returncode else []) or ["it holds no .onnx file"]
            told = said[-1].replace(where, "MLFLOW_TRACKING_URI") if where else said[-1]  # it may hold a password
            raise BadArgument("model", asked.model, f"MLflow does not give it ({told})")
        made = _onnx(found[0], asked)
        made.name = asked.model.removeprefix("models:/").replace("@", "-").replace("/", "-")
        return made
