"""The derivative of an ONNX graph against torch's autograd on the network that it came from."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from autolora.attacks.engine import fast_copies as copies
from autolora.attacks.engine import onnx_network as in_onnxruntime
from autolora.attacks.engine.fast_copies import quick_copies
from autolora.attacks.engine.network import Network
from autolora.attacks.engine.onnx_network import Derivable, session
from autolora.export import gradient_graph as derivative
from autolora.export.conversion import converted, traced
from autolora.export.gradient_graph import Underivable, derived
from tests.attacks.nets import images

SHAPE = (3, 12, 10)  # not square: height and width are not to be mixed up


class Net(nn.Module):
    """Layers, and what comes between them."""

    def __init__(self, act: Callable[[Net, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.act, self.layers = act, nn.ModuleDict(layers)
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1))
        draw = torch.Generator().manual_seed(0)
        for p in (*self.parameters(), *(b for b in self.buffers() if b.is_floating_point() and b.numel() > 3)):
            p.data = torch.rand(p.shape, generator=draw) + 0.5 if p.dim() == 1 else torch.randn(p.shape, generator=draw)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self, x)

    def __getattr__(self, name: str):
        layers = self.__dict__["_modules"].get("layers")
        return layers[name] if layers is not None and name in layers else super().__getattr__(name)


def head(channels: int) -> nn.Module:
    return nn.Linear(channels, 5)


def pooled(t: Tensor) -> Tensor:
    return t.mean((2, 3))


def conv(out: int, size: int, into: int = 3, **how) -> nn.Module:
    return nn.Conv2d(into, out, size, **how)


NETS = {
    "a convolution with its ReLU": Net(
        lambda n, x: n.fc(pooled(n.c(x).relu())), c=conv(8, 3, padding=1), fc=head(8)
    ),
    "pixels shifted and scaled": Net(
        lambda n, x: n.fc(pooled(n.c((x - n.mean) / (n.mean + 1) * 2.5).relu())), c=conv(8, 3), fc=head(8)
    ),
    "uneven padding": Net(lambda n, x: n.fc(pooled(n.c(x).relu())), c=conv(8, (3, 5), padding=(0, 2)), fc=head(8)),
    "strides": Net(
        lambda n, x: n.fc(pooled(n.d(n.c(x).relu()).relu())),
        c=conv(8, 3, padding=1, stride=2), d=conv(6, 3, 8, padding=1, stride=(3, 2)), fc=head(6),
    ),
    "a stride that leaves pixels over": Net(
        lambda n, x: n.fc(pooled(n.c(x).relu())), c=conv(8, 1, stride=3), fc=head(8)
    ),
    "more padding than a window": Net(lambda n, x: n.fc(pooled(n.c(x).relu())), c=conv(8, 1, padding=1), fc=head(8)),
    "dilation": Net(lambda n, x: n.fc(pooled(n.c(x).relu())), c=conv(8, 3, dilation=2, padding=1), fc=head(8)),
    "groups": Net(
        lambda n, x: n.fc(pooled(n.e(n.d(n.c(x).relu()).relu()).relu())),
        c=conv(8, 3, padding=1), d=conv(8, 3, 8, groups=4, stride=2), e=conv(8, 3, 8, groups=2, padding=1), fc=head(8),
    ),
    "a residual": Net(
        lambda n, x: n.fc(pooled((n.d((t := n.c(x).relu())).relu() + t).relu())),
        c=conv(8, 3, padding=1), d=conv(8, 3, 8, padding=1), fc=head(8),
    ),
    "norm before activation": Net(
        lambda n, x: n.fc(pooled(n.b(t := n.c(x)).relu() + t)), c=conv(8, 3), b=nn.BatchNorm2d(8), fc=head(8)
    ),
    "average pools": Net(
        lambda n, x: n.fc(n.q(n.p(n.c(x).relu()).relu()).flatten(1)),
        c=conv(8, 3, padding=1), p=nn.AvgPool2d(3, 2), q=nn.AdaptiveAvgPool2d(1), fc=head(8),
    ),
    "a padded average pool": Net(
        lambda n, x: n.fc(n.p(n.c(x).relu()).flatten(1)), c=conv(2, 3), p=nn.AvgPool2d(4, padding=1), fc=head(12)
    ),
    "all pixels to a linear layer": Net(
        lambda n, x: n.fc(n.e(n.c(x).relu().flatten(1)).relu()), c=conv(2, 3), e=nn.Linear(160, 8), fc=head(8)
    ),
    "a view": Net(
        lambda n, x: n.fc(n.e((t := n.c(x).relu()).view(t.size(0), -1)).relu()),
        c=conv(2, 3), e=nn.Linear(160, 8), fc=head(8),
    ),
    "tokens": Net(
        lambda n, x: n.fc(n.e(n.c(x).reshape(-1, 8, 10)).relu().reshape(-1, 72)),
        c=conv(1, 3), e=nn.Linear(10, 9, bias=False), fc=head(72),
    ),
}  # fmt: skip


def slope(way: Callable[[Tensor], Tensor], x: Tensor, d: Tensor) -> Tensor:
    point = x.clone().requires_grad_(True)
    (way(point) * d).sum().backward()
    assert point.grad is not None
    return point.grad


def alike(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= 1e-5 * expected.abs().max())


def some(n: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    return torch.rand(n, *SHAPE, generator=draw), torch.randn(n, 5, generator=draw)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("way", [traced, converted])
def test_equals_torchs(name: str, way: Callable) -> None:
    net, (x, d) = NETS[name], some(5)
    found = Derivable(*(session(graph.SerializeToString()) for graph in derived(way(net, SHAPE))))
    expected = slope(net, x, d)
    assert expected.abs().amax() > 0
    assert alike(found(x), net(x))
    assert alike(slope(found, x, d), expected)


def test_a_product_that_torch_does_not_write() -> None:
    """With another factor than 1, and the weight as it stands."""
    weight, (x, d) = torch.randn(360, 5, generator=torch.Generator().manual_seed(1)), some(4)
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight"], ["logits"], alpha=0.5),
    ]
    image = helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["batch", *SHAPE])
    logits = helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 5])
    graph = helper.make_graph(nodes, "product", [image], [logits], [numpy_helper.from_array(weight.numpy(), "weight")])
    opset = helper.make_opsetid("", 17)
    files = [f.SerializeToString() for f in derived(helper.make_model(graph, opset_imports=[opset], ir_version=8))]
    found = slope(Derivable(*map(session, files)), x, d)
    assert alike(found.flatten(1), 0.5 * d @ weight.T)


REFUSED = {
    "MaxPool": Net(lambda n, x: n.fc(pooled(n.p(n.c(x)))), c=conv(8, 3), p=nn.MaxPool2d(3, 2), fc=head(8)),
    "a sum": Net(
        lambda n, x: n.fc(pooled((t := n.c(x).relu()) + t.mean((2, 3), keepdim=True))), c=conv(8, 3), fc=head(8)
    ),
    "no constant": Net(lambda n, x: n.fc(pooled((t := n.c(x)) * t)), c=conv(8, 3), fc=head(8)),
    "whose windows differ": Net(
        lambda n, x: n.fc(n.p(n.c(x)).flatten(1)),
        c=conv(2, 3), p=nn.AvgPool2d(4, padding=1, count_include_pad=False), fc=head(12),
    ),
    "Softmax": Net(lambda n, x: n.fc(pooled(n.c(x).softmax(1))), c=conv(8, 3), fc=head(8)),
}  # fmt: skip


@pytest.mark.parametrize("said", REFUSED)
def test_what_it_does_not_know_torch_answers(said: str) -> None:
    net, (x, d) = REFUSED[said], some(4)
    with pytest.raises(Underivable, match=said):
        derived(traced(net, SHAPE))
    full = quick_copies(net, x[:2]).full
    assert full.differentiable is full.otherwise
    assert full.version
    assert alike(slope(full, x, d), slope(net, x, d))


def test_a_weight_that_is_written_once() -> None:
    """Two convolutions of the same numbers: the older exporter writes one, and an Identity."""
    net = Net(
        lambda n, x: n.fc(pooled(n.e(n.d(n.c(x).relu()).relu()).relu())),
        c=conv(8, 3), d=conv(8, 3, 8), e=conv(8, 3, 8), fc=head(8),
    )  # fmt: skip
    net.layers["e"].load_state_dict(net.layers["d"].state_dict())
    exported, (x, d) = traced(net, SHAPE), some(4)
    assert "Identity" in {node.op_type for node in exported.graph.node}
    found = Derivable(*(session(graph.SerializeToString()) for graph in derived(exported)))
    assert alike(slope(found, x, d), slope(net, x, d))


def test_a_derivative_that_is_another_ones_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(derivative.RULES, "Relu", derivative._same)
    net, (x, d) = NETS["a residual"], some(4)
    full = quick_copies(net, x[:2]).full
    assert full.differentiable is full.otherwise
    assert alike(slope(full, x, d), slope(net, x, d))


def test_the_attacks_ask_onnxruntime_for_slopes() -> None:
    """The same wherever an image lies in the batch; also each logit's slope, from one forward."""
    net, x = NETS["a residual"], some(8)[0]
    full = quick_copies(net, x[:2]).full
    assert isinstance(full.differentiable, Derivable)
    mine, torchs, order = Network(full, 8), Network(net, 8), torch.tensor([3, 7, 0, 1, 6, 2, 5, 4])
    for found, expected in zip(mine.gradients(x), torchs.gradients(x)):
        assert alike(found, expected)
    for found, moved in zip(mine.gradients(x), mine.gradients(x[order])):
        assert torch.equal(found[order], moved)


@pytest.mark.parametrize("supported", [True, False])
@pytest.mark.parametrize("least", [0, 1e12])
def test_bfloat16_where_it_pays(monkeypatch: pytest.MonkeyPatch, supported: bool, least: float) -> None:
    monkeypatch.setattr(copies, "has_bfloat16", lambda device: supported)
    monkeypatch.setattr(copies, "WIDE", least)
    found = quick_copies(NETS["strides"], some(2)[0])
    assert (found.half is not found.full) == (supported and least == 0)


def test_nothing_is_derived_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(in_onnxruntime, "derived", lambda model: asked.append(1) or derived(model))
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)).eval()
    full, x = quick_copies(net, images(2)).full, images(4)
    for _ in range(2):
        full(x)
        slope(full, x, torch.ones(4, 4))
    assert asked == [1]
