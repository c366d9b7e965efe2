"""An ONNX file as a torch module: float32, float16 and 8 bits, so that any file has gradients.

    copy = TorchCopy("model.onnx");  copy(pixels)        # any attack that needs gradients

onnxruntime has none. This reads the file's own graph and weights, node by node; roundings pass gradients straight
through. It is the file up to rounding, and never the file: what an attack finds here counts once onnxruntime agrees.
Of a branch whose condition does not depend on pixels the one is taken that the file would take. Loops, other branches,
and shapes that depend on pixels are a NoRule, which names them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import torch
from onnx import numpy_helper
from onnx.inliner import inline_local_functions
from torch import Tensor, nn

from autolora.common.errors import first_line
from autolora.export.folding import Bounded
from autolora.export.operators import arithmetic, attention, layers, quantised, shapes
from autolora.export.operators.quantised import rounded
from autolora.export.operators.shapes import NARROW, NoRule, straight
from autolora.export.order import is_in_order, put_in_order

OPERATORS: dict[str, Callable[..., Any]] = (
    shapes.OPERATORS | arithmetic.OPERATORS | layers.OPERATORS | attention.OPERATORS | quantised.OPERATORS
)
SHAPES = shapes.SHAPES | layers.SHAPES
DOMAINS = ("", "ai.onnx", "com.microsoft")  # of ONNX itself, and of onnxruntime's quantiser
SEVERAL = ("Split", "TopK", "DynamicQuantizeLinear", "If")  # outputs; of the others all but the first are for training
QUANTISED = set(quantised.OPERATORS)


class Step(NamedTuple):
    """One node, ready to be called."""

    kind: str
    act: Callable[..., Any]
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any]
    done: list[str]  # values that nobody asks for afterwards


class TorchCopy(nn.Module):
    """From float [n,3,h,w] in [0,1], or what else the file takes, to its first output.

    A file of uint8 [n,h,w,3] gets its bytes from [n,3,h,w] in [0,1].
    """

    def __init__(self, model: str | Path | bytes | onnx.ModelProto) -> None:
        super().__init__()
        graph, opset = _graph_of(model)
        self.input, self.kind = _one_input(graph)
        self.output = graph.output[0].name
        self.fixed: dict[str, Tensor] = {}  # shapes and positions: they stay where Python reads them
        self.names: dict[str, str] = {}  # of a weight in the file -> of its buffer
        refuse(graph)
        constants = _constants(graph)
        with Bounded(sum(constant.numel() for constant in constants.values())):
            steps = self._folded(constants, _steps(graph, opset))
        self.steps = _with_ends(steps, self.output)
        self.quantised = any(node.op_type in QUANTISED for node in graph.node)
        self.narrow = self.kind in NARROW or any(t.data_type in NARROW for t in graph.initializer)
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        values = {self.input: self._taken(pixels)} | self.fixed
        values |= {name: self.get_buffer(buffer) for name, buffer in self.names.items()}
        for step in self.steps:
            values.update(zip(step.outputs, _called(step, values)))
            for name in step.done:
                values.pop(name, None)
        return values[self.output]

    def _taken(self, pixels: Tensor) -> Tensor:
        if self.kind == onnx.TensorProto.UINT8:
            return rounded(pixels * 255).permute(0, 2, 3, 1)
        if self.kind in NARROW:
            return straight(pixels, pixels.to(NARROW[self.kind]).float())
        return pixels

    def _folded(self, known: dict[str, Tensor], steps: list[Step]) -> list[Step]:
        """What is constant is computed once; what is left of the constants becomes buffers."""
        left = []
        for step in steps:
            if all(name in known for name in step.inputs if name):
                known.update(zip(step.outputs, _called(step, known)))
            else:
                left.append(step)
        needed = {name for step in left for name in step.inputs} | {self.output}
        for name, value in known.items():
            if name in needed:
                self._keep(name, value.contiguous())
        return left

    def _keep(self, name: str, value: Tensor) -> None:
        if not (value.is_floating_point() or value.dtype in (torch.uint8, torch.int8)):
            self.fixed[name] = value
            return
        self.names[name] = f"weight_{len(self.names)}"
        self.register_buffer(self.names[name], value)


def refuse(graph: onnx.GraphProto) -> None:
    """All that has no rule, in one line; then what depends on pixels and must not."""
    unknown = Counter(
        node.op_type
        for node in _nodes(graph)
        if node.op_type not in {*OPERATORS, "Constant", "If"} or node.domain not in DOMAINS
    )
    if unknown:
        named = ", ".join(f"{kind} (of {n} nodes)" if n > 1 else kind for kind, n in sorted(unknown.items()))
        raise NoRule(f"no rule for {named}")
    moved = {graph_input.name for graph_input in graph.input} - {tensor.name for tensor in graph.initializer}
    _refuse_forms(graph, moved, {output.name for output in graph.output[:1]})


def _refuse_forms(graph: onnx.GraphProto, moved: set[str], asked: set[str]) -> None:
    """`moved`: all that depends on pixels; what follows here is added. `asked`: values that somebody wants."""
    asked |= {name for node in graph.node for name in _read(node)}
    for node in graph.node:
        if node.op_type == "If" and node.input[0] in moved:
            raise NoRule(f"no rule for an If that depends on the pixels ({node.output[0]})")
        for branch in _branches(node):
            _refuse_forms(branch, moved, {output.name for output in branch.output})
        if node.op_type not in SEVERAL and any(name in asked for name in node.output[1:] if name):
            raise NoRule(f"no rule for the second output of {node.op_type}")
        for i in SHAPES.get(node.op_type, ()):
            if i < len(node.input) and node.input[i] in moved:
                raise NoRule(f"no rule for {node.op_type} whose shape depends on the pixels ({node.output[0]})")
        if node.op_type not in ("Shape", "Size") and moved.intersection(_read(node)):
            moved.update(node.output)


def _nodes(graph: onnx.GraphProto) -> Iterable[onnx.NodeProto]:
    """Those of branches too."""
    for node in graph.node:
        yield node
        for branch in _branches(node):
            yield from _nodes(branch)


def _branches(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The first is for true, the second for false."""
    if node.op_type != "If":
        return []
    by_name = {attribute.name: attribute.g for attribute in node.attribute}
    return [by_name["then_branch"], by_name["else_branch"]]


def _read(node: onnx.NodeProto) -> list[str]:
    """All values that a node is given; its branches take theirs from around them."""
    found = [name for name in node.input if name]
    for branch in _branches(node):
        inside = {tensor.name for tensor in branch.initializer} | {name for n in branch.node for name in n.output}
        found += [name for n in branch.node for name in _read(n) if name not in inside]
        found += [output.name for output in branch.output if output.name not in inside]
    return list(dict.fromkeys(found))


def _graph_of(model: str | Path | bytes | onnx.ModelProto) -> tuple[onnx.GraphProto, int]:
    if isinstance(model, onnx.ModelProto):
        read = model
    else:
        read = onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(str(model))
    if read.functions:
        read = inline_local_functions(read)
    if not is_in_order(read.graph):
        read = onnx.ModelProto.FromString(read.SerializeToString())  # the caller's stays as it is
        put_in_order(read.graph)
    opset = next((entry.version for entry in read.opset_import if entry.domain in ("", "ai.onnx")), 1)
    return read.graph, opset


def _one_input(graph: onnx.GraphProto) -> tuple[str, int]:
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [each for each in graph.input if each.name not in constants]
    if len(inputs) != 1:
        raise NoRule(f"{len(inputs)} inputs ({', '.join(i.name for i in inputs)}): expected one, the images")
    return inputs[0].name, inputs[0].type.tensor_type.elem_type


def _constants(graph: onnx.GraphProto) -> dict[str, Tensor]:
    found = {tensor.name: _tensor(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            (attribute,) = node.attribute
            found[node.output[0]] = torch.as_tensor(_attribute(attribute))
    return found


def _tensor(tensor: onnx.TensorProto) -> Tensor:
    """Half precision is computed in float32: what it can hold, float32 can."""
    array = numpy_helper.to_array(tensor)
    if tensor.data_type in NARROW:
        array = array.astype("float32")
    if tensor.data_type == onnx.TensorProto.STRING or not hasattr(torch, array.dtype.name):
        raise NoRule(f"a constant of {onnx.TensorProto.DataType.Name(tensor.data_type)} ({tensor.name})")
    return torch.from_numpy(array.copy())


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return _tensor(value)
    return value.decode() if isinstance(value, bytes) else value


def _step(node: onnx.NodeProto, opset: int) -> Step:
    if node.op_type == "If":
        return _choice(node, opset)
    attributes = {a.name: _attribute(a) for a in node.attribute}
    if node.op_type == "Split":
        attributes["outputs"] = len(node.output)
    act = OPERATORS[node.op_type]
    if opset < 13:
        act = arithmetic.OLDER.get(node.op_type, act)
    if opset < 11:
        act = layers.OLDER.get(node.op_type, act)
    return Step(node.op_type, act, list(node.input), list(node.output), attributes, [])


def _choice(node: onnx.NodeProto, opset: int) -> Step:
    """Which branch is taken is known when the condition is: it may hang on how many images there are."""
    inputs = _read(node)
    ways = [(_constants(b), _steps(b, opset), [output.name for output in b.output]) for b in _branches(node)]

    def take(condition: Tensor, *around: Tensor) -> tuple[Tensor, ...]:
        known, steps, outputs = ways[0 if bool(condition) else 1]
        values = dict(zip(inputs, (condition, *around))) | known
        for step in steps:
            values.update(zip(step.outputs, _called(step, values)))
        return tuple(values[name] for name in outputs)

    return Step("If", take, inputs, list(node.output), {}, [])


def _steps(graph: onnx.GraphProto, opset: int) -> list[Step]:
    return [_step(node, opset) for node in graph.node if node.op_type != "Constant"]


def _with_ends(steps: list[Step], output: str) -> list[Step]:
    """Backwards, the first to ask for a value is the last."""
    seen, ended = {output}, []
    for step in reversed(steps):
        done = [name for name in dict.fromkeys([*step.inputs, *step.outputs]) if name and name not in seen]
        seen.update(done)
        ended.append(step._replace(done=done))
    return ended[::-1]


def _called(step: Step, values: dict[str, Tensor]) -> Iterable[Tensor]:
    given = [values[name] if name else None for name in step.inputs]
    while given and given[-1] is None:
        given.pop()
    try:
        found = step.act(*given, **step.attributes)
    except NoRule as error:
        raise NoRule(f"no rule for {error}") from None
    except (TypeError, KeyError) as error:  # an attribute of a newer opset
        raise NoRule(f"no rule for this {step.kind} ({step.outputs[0]}): {first_line(error)}") from error
    return found if isinstance(found, tuple) else (found,)
