"""The torch copy of a file: operator by operator against onnxruntime, whole networks against torch."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from autolora.export.conversion import FromBytes
from autolora.export.operators import quantised
from autolora.export.operators.shapes import NoRule
from autolora.export.order import is_in_order, put_in_order
from autolora.export.runtime import logits, onnxruntime, open_session
from autolora.export.torch_copy import OPERATORS, TorchCopy
from tests.export.quantiser import quantised_file

SHAPE = (2, 4, 6, 6)


def one_node(kind: str, inputs: list, attributes: dict, opset: int = 20, outputs: int = 1) -> onnx.ModelProto:
    """`image` first; arrays become constants, None is left out."""
    domain, dims = attributes.pop("domain", ""), attributes.pop("shape", SHAPE)
    names = ["image", *("" if array is None else f"c{i}" for i, array in enumerate(inputs))]
    constants = [numpy_helper.from_array(np.asarray(a), f"c{i}") for i, a in enumerate(inputs) if a is not None]
    made = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(kind, names, made, domain=domain, **attributes)
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, dims)
    told = [helper.make_empty_tensor_value_info(name) for name in made]
    graph = helper.make_graph([node], "g", [image], told, constants)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, ir_version=10 if opset > 6 else 4, opset_imports=opsets)


def f(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def i(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def bits(*shape: int, kind: type = np.int8) -> np.ndarray:
    return np.random.default_rng(1).integers(-100 if kind is np.int8 else 0, 100, shape).astype(kind)


SIMPLE = [
    "Abs", "Ceil", "Cos", "Elu", "Erf", "Exp", "Floor", "Gelu",
    "HardSigmoid", "HardSwish", "Hardmax", "Identity", "IsInf", "IsNaN", "LeakyRelu", "LogSoftmax",
    "Mish", "Neg", "Reciprocal", "Relu", "Round", "Selu", "Shape", "Sigmoid",
    "Sign", "Sin", "Softmax", "Softplus", "Softsign", "Tanh", "ThresholdedRelu", "Celu",
    "Atan", "Sinh", "Cosh", "GlobalAveragePool", "GlobalMaxPool", "Flatten", "Transpose", "LpNormalization",
    "Dropout", "Size", "Tan",
]  # fmt: skip
REDUCE = [
    "ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
    "ReduceSumSquare",
]  # fmt: skip
TWO = [
    "Add", "Sub", "Mul", "Div", "Max", "Min", "Equal", "Greater",
    "GreaterOrEqual", "Less", "LessOrEqual", "Mean", "Sum",
]  # fmt: skip
PYTORCH = {"coordinate_transformation_mode": "pytorch_half_pixel"}
NEW: dict[str, int] = {"opset": 23}
FOUR = {"q_num_heads": 4, "kv_num_heads": 4, "opset": 23}
CASES = [
    *((kind, [], {}) for kind in SIMPLE),
    *((kind, [i(1, -1)], {"keepdims": 0}) for kind in REDUCE),
    *((kind, [draw(4, 1, 6)], {}) for kind in TWO),
    ("ReduceMean", [], {"axes": [2, 3], "opset": 13}),
    ("ReduceSum", [], {"noop_with_empty_axes": 1}),
    ("ReduceMax", [], {"keepdims": 1}),
    ("Gelu", [], {"approximate": "tanh"}),
    ("PRelu", [draw(4, 1, 1)], {}),
    ("Pow", [f(2.0)], {}),
    ("Mod", [f(2.0)], {"fmod": 1}),
    ("Clip", [f(-0.5)[0], f(0.5)[0]], {}),
    ("Clip", [None, f(0.5)[0]], {}),
    ("Clip", [], {"min": 0.0, "max": 6.0, "opset": 6}),
    ("Softmax", [], {"axis": 1}),
    ("Softmax", [], {"axis": 1, "opset": 11}),
    ("LogSoftmax", [], {"axis": 2, "opset": 11}),
    ("Where", [draw(4, 1, 1) > 0, draw(4, 6, 6)], {"order": [0, "image", 1]}),
    ("CumSum", [np.array(2)], {"exclusive": 1, "reverse": 1}),
    ("MatMul", [draw(6, 5)], {}),
    ("Gemm", [draw(3, 4), draw(3)], {"transB": 1, "shape": (2, 4)}),
    ("Gemm", [draw(2, 3), draw(4, 3)], {"transA": 1, "alpha": 0.5, "beta": 2.0, "shape": (2, 4)}),
    ("Einsum", [draw(6, 5)], {"equation": "nchw,wk->nckh"}),
    ("FusedMatMul", [draw(5, 6)], {"transB": 1, "alpha": 0.5, "domain": "com.microsoft"}),
    ("QuickGelu", [], {"domain": "com.microsoft"}),
    ("FastGelu", [draw(6)], {"domain": "com.microsoft"}),
    ("BiasGelu", [draw(6)], {"domain": "com.microsoft"}),
    # layers
    ("Conv", [draw(6, 4, 3, 3), draw(6)], {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    ("Conv", [draw(4, 2, 3, 3)], {"group": 2, "dilations": [2, 1], "pads": [2, 0, 1, 3]}),
    ("Conv", [draw(6, 4, 3, 3)], {"auto_pad": "SAME_UPPER", "strides": [2, 2], "shape": (2, 4, 7, 6)}),
    ("Conv", [draw(6, 4, 2, 2)], {"auto_pad": "SAME_LOWER"}),
    ("Conv", [draw(6, 4, 3, 3)], {"auto_pad": "VALID"}),
    ("Conv", [draw(6, 4, 3)], {"shape": (2, 4, 9), "pads": [1, 1]}),
    ("Conv", [draw(6, 4, 1, 2, 2)], {"shape": (2, 4, 3, 5, 5)}),
    ("ConvTranspose", [draw(4, 3, 3, 3), draw(3)], {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
    ("MaxPool", [], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("MaxPool", [], {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1], "dilations": [2, 1]}),
    ("MaxPool", [], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    ("AveragePool", [], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    ("AveragePool", [], {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("AveragePool", [], {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1], "count_include_pad": 1}),
    ("LpPool", [], {"kernel_shape": [2, 2]}),
    ("BatchNormalization", [draw(4), draw(4), draw(4), np.abs(draw(4))], {"epsilon": 1e-3}),
    ("InstanceNormalization", [draw(4), draw(4)], {}),
    ("LayerNormalization", [draw(6), draw(6)], {"epsilon": 1e-3}),
    ("LayerNormalization", [draw(6, 6)], {"axis": 2}),
    ("GroupNormalization", [draw(4), draw(4)], {"num_groups": 2, "opset": 21}),
    ("GroupNormalization", [draw(2), draw(2)], {"num_groups": 2, "opset": 18}),
    ("SimplifiedLayerNormalization", [draw(6)], {"axis": -1}),
    ("LRN", [], {"size": 3}),
    ("Upsample", [f(1, 1, 2, 2)], {"opset": 9}),
    ("Resize", [f(1, 1, 1.5, 2)], {"opset": 10}),
    ("Resize", [None, f(1, 1, 2, 0.5)], {"mode": "nearest"}),
    ("Resize", [None, None, i(2, 4, 9, 4)], {"mode": "nearest", "nearest_mode": "ceil"}),
    ("Resize", [None, None, i(2, 4, 9, 4)], {"mode": "linear"}),
    ("Resize", [None, None, i(2, 4, 9, 4)], {"mode": "linear", "coordinate_transformation_mode": "align_corners"}),
    ("Resize", [None, None, i(2, 4, 9, 4)], {"mode": "cubic"}),
    ("Resize", [None, None, i(2, 4, 9, 4)], {"mode": "cubic", "exclude_outside": 1, "cubic_coeff_a": -0.5}),
    ("Resize", [None, None, i(1, 7)], {"mode": "linear", "axes": [2, 3], **PYTORCH}),
    ("Resize", [None, None, i(2, 4, 3, 4)], {"mode": "linear", "antialias": 1}),
    ("Resize", [None, None, i(2, 4, 2, 9)], {"mode": "cubic", "antialias": 1}),
    ("Resize", [None, f(1, 1, 0.4, 0.7)], {"mode": "cubic", "antialias": 1, "exclude_outside": 1}),
    # attention: several heads, or all in one row; a mask of numbers or of truth; heads that share keys
    ("Attention", [draw(2, 4, 5, 6), draw(1, 4, 5, 6).repeat(2, 0)], {"shape": (2, 4, 3, 6), "opset": 23}),
    ("Attention", [draw(2, 2, 5, 6), draw(2, 2, 5, 6)], {"shape": (2, 4, 3, 6), "scale": 0.3, "softcap": 2.0, **NEW}),
    ("Attention", [draw(2, 2, 5, 6), draw(2, 2, 5, 6), draw(3, 5)], {"shape": (2, 4, 3, 6), "opset": 23}),
    ("Attention", [draw(2, 5, 12), draw(2, 5, 8), draw(3, 5) > -1], {"shape": (2, 3, 12), **FOUR}),
    ("Attention", [draw(2, 5, 12), draw(2, 5, 12)], {"shape": (2, 3, 12), **FOUR, "is_causal": 1}),
    # shapes
    ("ArgMax", [], {"axis": 1}),
    ("ArgMin", [], {"axis": -1, "keepdims": 0, "select_last_index": 1}),
    ("Cast", [], {"to": TensorProto.INT32}),
    ("Cast", [], {"to": TensorProto.BOOL}),
    ("Cast", [], {"to": TensorProto.DOUBLE}),
    ("Concat", [draw(2, 3, 6, 6)], {"axis": 1}),
    ("DepthToSpace", [], {"blocksize": 2}),
    ("DepthToSpace", [], {"blocksize": 2, "mode": "CRD"}),
    ("SpaceToDepth", [], {"blocksize": 3}),
    ("Expand", [i(3, 1, 4, 1, 1)], {"shape": (2, 1, 6, 6), "opset": 20}),
    ("Flatten", [], {"axis": -1}),
    ("Gather", [np.array([[0, -1], [2, 1]])], {"axis": 1}),
    ("Gather", [np.array(1)], {"axis": -1}),
    ("GatherElements", [i(*[0, 1, -1] * 48).reshape(2, 2, 6, 6)], {"axis": 1}),
    ("GatherND", [np.array([[0, 1], [1, -1]])], {}),
    ("ScatterND", [np.array([[0, 1], [1, 2]]), draw(2, 6, 6)], {}),
    ("Pad", [i(0, 0, 1, 2, 0, 0, 3, 0), f(0.5)[0]], {}),
    ("Pad", [i(1, -1, 0, 2), None, i(2, -1)], {}),
    ("Pad", [i(0, 0, 1, 2, 0, 0, 3, 0)], {"mode": "reflect"}),
    ("Pad", [i(0, 0, 1, 2, 0, 0, 3, 0)], {"mode": "edge"}),
    ("Pad", [i(0, 0, 1, 2, 0, 0, 3, 0)], {"mode": "wrap"}),
    ("Reshape", [i(0, -1, 3)], {}),
    ("Shape", [], {"start": 1, "end": -1}),
    ("Slice", [i(1, -2), i(4, 100), i(1, 3)], {}),
    ("Slice", [i(-1), i(-(2**60)), i(2), i(-2)], {}),
    ("Slice", [], {"starts": [1], "ends": [-1], "axes": [2], "opset": 9}),
    ("Split", [i(1, 3)], {"axis": 1, "outputs": 2}),
    ("Split", [], {"axis": 1, "num_outputs": 2, "outputs": 2}),
    ("Split", [], {"axis": -1, "split": [2, 4], "outputs": 2, "opset": 11}),
    ("Squeeze", [i(1)], {"shape": (2, 1, 6)}),
    ("Squeeze", [], {"axes": [1], "shape": (2, 1, 6), "opset": 11}),
    ("Tile", [i(1, 2, 1, 1)], {}),
    ("TopK", [i(2)], {"axis": 1, "outputs": 2}),
    ("Transpose", [], {"perm": [0, 2, 3, 1]}),
    ("Trilu", [np.array(1)], {"upper": 0}),
    ("Unsqueeze", [i(0, -1)], {}),
    # 8 bits
    ("QuantizeLinear", [f(0.05)[0], np.uint8(120)], {}),
    ("QuantizeLinear", [f(0.1, 0.2, 0.3, 0.4), np.zeros(4, np.int8)], {"axis": 1}),
    ("DynamicQuantizeLinear", [], {"outputs": 3}),
]  # fmt: skip


def cases() -> list:
    return [pytest.param(*case, id=f"{n}-{case[0]}") for n, case in enumerate(CASES)]


def compare(model: onnx.ModelProto, dims: tuple[int, ...], largest: float = 1e-4) -> None:
    x = draw(*dims)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    answered = session.run(None, {"image": x})
    for name, expected in zip((o.name for o in model.graph.output), answered, strict=True):
        copy = TorchCopy(model)
        copy.output = name
        copy.steps = [step._replace(done=[]) for step in copy.steps]
        for pixels in (torch.from_numpy(x), torch.from_numpy(x).requires_grad_(True)):
            found = copy(pixels).detach().numpy()
            assert found.shape == expected.shape
            np.testing.assert_allclose(found.astype(np.float64), expected.astype(np.float64), atol=largest, rtol=1e-4)


@pytest.mark.parametrize(("kind", "inputs", "attributes"), cases())
def test_an_operator_is_what_onnxruntime_makes_of_it(kind: str, inputs: list, attributes: dict) -> None:
    attributes = dict(attributes)
    opset, outputs, order = (attributes.pop(k, d) for k, d in (("opset", 20), ("outputs", 1), ("order", None)))
    dims = attributes.get("shape", SHAPE)
    model = one_node(kind, inputs, attributes, opset, outputs)
    if order:
        model.graph.node[0].input[:] = ["image" if place == "image" else f"c{place}" for place in order]
    compare(model, dims)


CHAINS = [
    *(
        (first, second, {})
        for first, second in [("Abs", "Sqrt"), ("Abs", "Log"), ("Sigmoid", "Asin"), ("Sigmoid", "Acos")]
    ),
    ("Abs", "ReduceLogSum", {"keepdims": 0}),
    ("Sigmoid", "RMSNormalization", {}),
]


@pytest.mark.parametrize(("first", "second", "attributes"), CHAINS)
def test_operators_that_take_only_some_numbers(first: str, second: str, attributes: dict) -> None:
    model = one_node(second, [draw(6)] if second == "RMSNormalization" else [], attributes, opset=23)
    model.graph.node[0].input[0] = "some"
    model.graph.node.insert(0, helper.make_node(first, ["image"], ["some"]))
    compare(model, SHAPE)


def test_truth_and_what_is_made_of_shapes() -> None:
    """What has no image as its input: comparisons joined, a shape from which numbers are made."""
    text = """<ir_version: 9, opset_import: ["" : 20]>
    g (float[2,4,6,6] image) => (float[2,4,6,6] y0, int64[k] y1, float[a,b,c,d,e] y2)
    <float zero = {0}, float one = {1}, int64 first = {0}, int64 step = {1}, int64 five = {5},
     float[2] offon = {-1, 2}> {
        above = Greater(image, zero)
        below = Less(image, one)
        both = And(above, below)
        none = Not(above)
        either = Or(none, below)
        odd = Xor(both, either)
        as_one = CastLike(odd, one)
        y0 = Mul(image, as_one)
        sides = Shape(image)
        full = ConstantOfShape <value = int64[1] {3}> (sides)
        ranks = Shape(sides)
        rank = Squeeze(ranks)
        counted = Range(first, rank, step)
        ones = ConstantOfShape(sides)
        y1 = Mul(counted, sides)
        largest = ArgMax <axis = 1> (image)
        y2 = OneHot <axis = 1> (largest, five, offon)
    }"""
    compare(onnx.parser.parse_model(text), SHAPE)


QUANTISED = [
    ("QLinearAdd", "x, s, z, c, s, z, t, z", ""),
    ("QLinearMul", "x, s, z, c, s, z, t, z", ""),
    ("QLinearSigmoid", "x, s, z, t, z", ""),
    ("QLinearLeakyRelu", "x, s, z, t, z", "<alpha = 0.2>"),
    ("QLinearSoftmax", "x, s, z, t, z", "<axis = 1, opset = 13>"),
    ("QLinearAveragePool", "x, s, z, t, z", "<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>"),
    ("QLinearGlobalAveragePool", "x, s, z, t, z", "<channels_last = 0>"),
    ("QLinearConcat", "t, z, x, s, z, x, s, z", "<axis = 1>"),
]


@pytest.mark.parametrize(("kind", "inputs", "attributes"), QUANTISED)
def test_an_operator_in_whole_numbers(kind: str, inputs: str, attributes: str) -> None:
    """To and from 8 bits around it; a rounding may fall otherwise, by one step."""
    text = f"""<ir_version: 9, opset_import: ["" : 20, "com.microsoft" : 1]>
    g (float[2,4,6,6] image) => (float[a,b,c,d] y)
    <float s = {{0.05}}, uint8 z = {{100}}, float t = {{0.02}}, float[1,4,1,1] other = {{-1, 0.5, 0.7, 2}}> {{
        x = QuantizeLinear(image, s, z)
        c = QuantizeLinear(other, s, z)
        whole = com.microsoft.{kind} {attributes} ({inputs})
        y = DequantizeLinear(whole, t, z)
    }}"""
    compare(onnx.parser.parse_model(text), SHAPE, 0.0201)


def test_products_in_whole_numbers() -> None:
    """With a bias, with and without a scale of what comes out."""
    text = """<ir_version: 9, opset_import: ["" : 20, "com.microsoft" : 1]>
    g (float[2,4] image) => (float[2,3] y0, float[2,3] y1, float[2,3] y2, float[2,3] y3)
    <float s = {0.05}, uint8 z = {100}, float t = {0.1}, float v = {0.02}, int8 n = {3}, float[3] f = {1, -1, 0.5},
     int8[4,3] w = {1, 2, -30, 4, 50, 6, -7, 80, 9, 10, -11, 12}, int32[3] b = {100, -200, 300}> {
        x = QuantizeLinear(image, s, z)
        y0 = com.microsoft.QGemm (x, s, z, w, v, n, b)
        whole = com.microsoft.QGemm (x, s, z, w, v, n, b, t, z)
        y1 = DequantizeLinear(whole, t, z)
        y2 = com.microsoft.MatMulIntegerToFloat (x, w, s, v, z, n, f)
        y3 = com.microsoft.DynamicQuantizeMatMul (image, w, v, n, f)
    }"""
    compare(onnx.parser.parse_model(text), (2, 4), 0.101)


def test_of_a_branch_what_the_file_would_take() -> None:
    """How many images there are decides, as where torch exports a squeeze; what lies around is seen within."""
    text = """<ir_version: 9, opset_import: ["" : 20]>
    g (float[n,4] image) => (float[k,4] y)
    <int64 zero = {0}, int64 two = {2}, float half = {0.5}, float[1] left = {1}> {
        twice = Add(image, image)
        sides = Shape(image)
        many = Gather(sides, zero)
        pair = Equal(many, two)
        chosen = If (pair) <
            then_branch = small () => (float[a,4] inner) {
                three = Constant <value_float = 3.0> ()
                inner = Mul(twice, three)
            },
            else_branch = large () => (float[c,4] other) { other = Mul(image, half) }
        >
        y = Relu(chosen)
    }"""
    model = onnx.parser.parse_model(text)
    for n in (2, 3):
        compare(model, (n, 4))
    fixed = onnx.parser.parse_model(text.replace("pair = Equal(many, two)", "pair = Greater(two, zero)"))
    compare(fixed, (3, 4))


def test_every_operator_has_its_case() -> None:
    """Of the quantised ones those that onnxruntime's quantiser writes for the network below."""
    tested = {case[0] for case in CASES} | {kind for chain in CHAINS for kind in chain[:2]}
    tested |= {"And", "CastLike", "ConstantOfShape", "Not", "OneHot", "Or", "Range", "Xor"}
    assert set(OPERATORS) - set(quantised.OPERATORS) == tested - set(quantised.OPERATORS)


# --- networks ---------------------------------------------------------------------------------------------------------


class Mixed(nn.Module):
    """What the quantiser has an operator for."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2)
        self.head, self.last = nn.Linear(16, 12), nn.Parameter(torch.randn(12, 10) / 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.first(x), 0.1)
        x = F.relu(self.second(x) + F.max_pool2d(x, 2))
        x = torch.cat([x * torch.sigmoid(x), F.avg_pool2d(x, 3, 1, 1)], 1)
        return torch.relu(self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))) @ self.last


def exported(model: nn.Module, example: Tensor) -> onnx.ModelProto:
    """By torch's older exporter, which takes a second where the newer one takes ten."""
    written, axes = io.BytesIO(), {"image": {0: "n"}, "logits": {0: "n"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (example,), written, dynamo=False, input_names=["image"], output_names=["logits"], dynamic_axes=axes
        )
    return onnx.load_from_string(written.getvalue())


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("mixed") / "model.onnx"
    onnx.save(exported(Mixed().eval(), torch.rand(2, 3, 12, 12)), path)
    return path


def pixels(n: int = 16) -> np.ndarray:
    return np.random.default_rng(3).random((n, 3, 12, 12)).astype(np.float32)


@pytest.mark.parametrize(
    ("form", "written"),
    [
        ("QDQ", {"QuantizeLinear", "DequantizeLinear"}),
        ("QOperator", {"QLinearConv", "QLinearAdd", "QLinearMul", "QLinearSigmoid", "QLinearConcat", "QLinearMatMul"}),
        ("dynamic", {"ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"}),
    ],
)
def test_a_quantised_file_is_what_onnxruntime_makes_of_it(mixed: Path, form: str, written: set[str]) -> None:
    """A rounding may fall otherwise here and there: one step of one activation."""
    path = quantised_file(mixed, pixels(), form)
    assert written <= {node.op_type for node in onnx.load(path).graph.node}
    x = torch.from_numpy(pixels(64)).requires_grad_(True)
    copied, answered = TorchCopy(path)(x), logits(open_session(path), pixels(64), 64)
    assert np.median(np.abs(copied.detach().numpy() - answered)) < 1e-3 * np.abs(answered).max()
    exact = torch.from_numpy(pixels(64)).requires_grad_(True)
    slopes = [
        torch.autograd.grad(y[:, 0].sum(), point)[0] for y, point in ((copied, x), (TorchCopy(mixed)(exact), exact))
    ]
    assert torch.cosine_similarity(*(slope.flatten() for slope in slopes), dim=0) > 0.9


def test_half_precision(mixed: Path) -> None:
    """A file whose input and output are float16, too."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    half = convert_float_to_float16(onnx.load(mixed))
    copied = TorchCopy(half)(torch.from_numpy(pixels()))
    session = onnxruntime.InferenceSession(half.SerializeToString(), providers=["CPUExecutionProvider"])
    answered = logits(session, pixels())
    assert copied.dtype == torch.float32
    assert np.abs(copied.numpy() - answered).max() < 5e-3 * np.abs(answered).max()
    assert np.abs(copied.numpy() - TorchCopy(mixed)(torch.from_numpy(pixels())).numpy()).max() > 0


def test_nodes_in_any_order(mixed: Path) -> None:
    """As a converter leaves them that appends; onnxruntime sorts. The caller's own file stays as it is."""
    model = onnx.load(str(mixed))
    x = torch.from_numpy(pixels())
    expected = TorchCopy(model)(x)
    assert is_in_order(model.graph)
    backwards = [onnx.NodeProto.FromString(node.SerializeToString()) for node in reversed(model.graph.node)]
    del model.graph.node[:]
    model.graph.node.extend(backwards)
    before = model.SerializeToString()
    assert torch.equal(TorchCopy(model)(x), expected)
    assert model.SerializeToString() == before
    put_in_order(model.graph)
    onnx.checker.check_model(model)


def test_bytes_in_the_last_place() -> None:
    model = exported(FromBytes(Mixed().eval()), torch.zeros(2, 12, 12, 3, dtype=torch.uint8))
    x = np.rint(pixels() * 255).astype(np.float32) / 255
    answered = logits(open_session(model.SerializeToString()), x)
    np.testing.assert_allclose(TorchCopy(model)(torch.from_numpy(x)).numpy(), answered, atol=1e-4)


TINY_VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 48, "depth": 2, "num_heads": 3}
NETWORKS = [
    ("resnet10t", {"channels": [8, 8, 16, 16]}, 32),
    ("vit_tiny_patch16_224", TINY_VIT, 16),
    ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}, 32),
    ("mobilenetv3_small_050", {}, 32),
    ("lcnet_035", {}, 32),
    ("densenet121", {"growth_rate": 4, "block_config": (1, 1, 1, 1)}, 32),
]


@pytest.mark.parametrize(("name", "options", "size"), NETWORKS)
def test_a_network_is_what_torch_makes_of_it(name: str, options: dict, size: int) -> None:
    """Logits and input gradients; `benchmarks/onnx_copies.py` asks the same of thirty in full size."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **options).eval()
    x = torch.rand(3, 3, size, size, requires_grad=True)
    expected, found = model(x), TorchCopy(exported(model, x.detach()))(x)
    weights = torch.linspace(-1, 1, 10)
    slopes = [torch.autograd.grad((y * weights).sum(), x)[0] for y in (expected, found)]
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (slopes[1] - slopes[0]).norm() < 1e-3 * slopes[0].norm()


def test_views_of_a_constant_take_no_memory() -> None:
    """A mask that is spread in each of many layers."""
    nodes = [helper.make_node("Expand", ["mask", "wide"], [f"w{k}"]) for k in range(8)]
    nodes += [helper.make_node("ReduceMax", [f"w{k}"], [f"r{k}"], keepdims=0) for k in range(8)]
    nodes += [helper.make_node("Sum", ["image", *(f"r{k}" for k in range(8))], ["y"])]
    held = [numpy_helper.from_array(np.ones((1, 1), np.float32), "mask")]
    held.append(numpy_helper.from_array(i(5000, 10_000), "wide"))
    image, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in ("image", "y"))
    graph = helper.make_graph(nodes, "g", [image], [y], held)
    found = TorchCopy(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))(torch.zeros(SHAPE))
    assert (found == 8).all()


# --- what has no rule -------------------------------------------------------------------------------------------------


def refused(text: str, says: str) -> None:
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]> g {text}')
    with pytest.raises(NoRule, match=says):
        TorchCopy(model)


@pytest.mark.parametrize("kind", ["ConstantOfShape", "Expand", "Range", "Add", "Tile"])
def test_a_small_file_asks_for_no_large_memory(kind: str) -> None:
    """160 GB, in a file of some hundred bytes."""
    side = 200_000
    long, row = np.zeros((side, 1), np.float32), np.zeros((1, side), np.float32)
    inputs: list = {
        "ConstantOfShape": [i(side, side)],
        "Expand": [f(1), i(side, side)],
        "Range": [np.float32(0), np.float32(4e10), np.float32(1)],
        "Add": [long, row],
        "Tile": [f(1), i(side * side)],
    }[kind]
    names = [f"c{k}" for k in range(len(inputs))]
    nodes = [helper.make_node(kind, names, ["big"]), helper.make_node("ReduceMax", ["big"], ["r"], keepdims=0)]
    nodes.append(helper.make_node("Add", ["image", "r"], ["y"]))
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, SHAPE)
    held = [numpy_helper.from_array(np.asarray(array), name) for name, array in zip(names, inputs)]
    graph = helper.make_graph(nodes, "g", [image], [helper.make_empty_tensor_value_info("y")], held)
    with pytest.raises(NoRule, match="no rule for constants that are far larger than the file"):
        TorchCopy(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)]))


def test_what_has_no_rule_is_named() -> None:
    refused(
        "(float[2,4] image) => (float[2,4] y) { a = Det(image) b = Det(a) y = Bernoulli(b) }",
        r"no rule for Bernoulli, Det \(of 2 nodes\)$",
    )
    refused(
        "(float[2,4] image) => (float[k] y) { s = ArgMax <axis = 1, keepdims = 0> (image) y = Reshape(image, s) }",
        "no rule for Reshape whose shape depends on the pixels",
    )
    refused(
        "(float[2,4,6,6] image) => (float[2,4,6,6] y, int64[2,4,6,6] k) "
        "{ y, k = MaxPool <kernel_shape = [1, 1]> (image) z = Add(k, k) }",
        "no rule for the second output of MaxPool",
    )
    refused(
        "(float[2,4] image) => (float[2,4] y) { s = ReduceSum <keepdims = 0> (image) b = Cast <to = 9> (s) "
        "y = If (b) <then_branch = t () => (float[2,4] u) { u = Relu(image) }, "
        "else_branch = e () => (float[2,4] v) { v = Neg(image) }> }",
        "no rule for an If that depends on the pixels",
    )
    refused("(float[2,4] a, float[2,4] b) => (float[2,4] y) { y = Add(a, b) }", r"2 inputs \(a, b\): expected one")
