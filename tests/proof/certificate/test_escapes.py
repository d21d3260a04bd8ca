"""Numbers that leave what a certificate follows: another forward, numpy, a thread, other values."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import brevitas.nn as qnn
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerTensorFloat
from brevitas.quant_tensor import IntQuantTensor
from torch import Tensor, nn

from brevitas_axe.proof.certificate import Certificate, certify

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
_W = torch.tensor([[1.0, 2.0, 3.0, 4.0]])


class Net(nn.Module):
    """A quantizer, whatever is done to its output, a layer, and whatever is done beside it."""

    def __init__(
        self,
        between: Callable[[IntQuantTensor], Any] = lambda q: q,
        beside: Callable[[Tensor], Any] = lambda value: None,
        layer: type[nn.Module] = qnn.QuantLinear,
    ) -> None:
        super().__init__()
        self.act = qnn.QuantIdentity(Int8ActPerTensorFloat, return_quant_tensor=True)
        self.fc: Any = layer(4, 3, bias=False, weight_quant=Int8WeightPerTensorFloat)
        self.between, self.beside = between, beside

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        q = self.act(x)
        y, other = self.fc(self.between(q)), self.beside(q.value)
        return y if other is None else (y, other)


def proof(net: Net) -> Certificate:
    torch.manual_seed(0)
    with torch.no_grad():
        net.train()(torch.rand(64, 4) - 0.5)  # calibrated on more than the certificate sees
        return certify(net.eval(), 32, args=torch.rand(2, 4) / 100)


def changed(value: Callable[[IntQuantTensor], Tensor]) -> Callable[[IntQuantTensor], Any]:
    """Other values under the scale, zero point and bit width of the quantizer."""
    return lambda q: IntQuantTensor(
        value(q), q.scale, q.zero_point, q.bit_width, bool(q.signed), False
    )


def narrower(q: IntQuantTensor) -> IntQuantTensor:
    """The small values that the certificate sees would fit."""
    return IntQuantTensor(q.value, q.scale, q.zero_point, torch.tensor(4.0), bool(q.signed), False)


def written(q: IntQuantTensor) -> Tensor:
    value = q.value.clone()
    value[:, 1:].mul_(3)
    return value


def in_a_thread(value: Tensor) -> Tensor:
    found = []
    thread = threading.Thread(target=lambda: found.append(value @ _W.T))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.parametrize(
    "between",
    [
        changed(lambda q: q.value * 2),
        changed(lambda q: q.value + q.scale),
        changed(lambda q: -q.value),
        changed(lambda q: torch.where(q.value > 1e9, 2 * q.value, q.value) - q.scale),
        changed(lambda q: q.value.masked_fill(q.value > 1e9, 1e6 * float(q.scale))),
        changed(lambda q: torch.cat([q.value[:1], 3 * q.value[1:]])),
        changed(lambda q: F.pad(q.value, (0, 0, 1, 0)) * 2),
        changed(lambda q: q.value.clamp(min=0) * 2),
        changed(lambda q: q.value.sum(0, keepdim=True)),
        changed(lambda q: q.value**3 / q.scale**2),
        changed(written),
        lambda q: -q,
        narrower,
    ],
)
def test_values_that_their_bit_width_does_not_hold(between) -> None:
    (entry,) = proof(Net(between)).entries
    assert not entry.proven
    assert "quantize it once more" in entry.reason or "outside its declared" in entry.reason


@pytest.mark.parametrize(
    "between",
    [
        lambda q: q,
        lambda q: q + q,
        lambda q: q + 5 * q.scale,
        lambda q: F.relu(q),
        changed(lambda q: q.value[:, [3, 2, 1, 0]].view(-1, 2, 2).flatten(1)),
        changed(lambda q: torch.cat([q.value[:1], torch.zeros(1, 4)])),
        changed(lambda q: q.value.clamp(max=0).abs().neg()),
        changed(lambda q: F.dropout(q.value.clone(), training=False)),
        changed(lambda q: q.value.amax(1, keepdim=True).expand(-1, 4)),
    ],
)
def test_values_that_it_holds(between) -> None:
    (entry,) = proof(Net(between)).entries
    assert entry.proven, entry.reason


@pytest.mark.parametrize(
    "beside",
    [
        lambda value: torch.from_numpy(value.numpy() @ _W.numpy().T),
        lambda value: torch.from_numpy(np.asarray(value) @ _W.numpy().T),
        lambda value: torch.from_numpy(np.from_dlpack(value) @ _W.numpy().T),
        lambda value: torch.tensor([sum(row) for row in value.tolist()]),
        in_a_thread,
    ],
)
def test_products_that_no_operation_of_torch_computes(beside) -> None:
    certificate = proof(Net(beside=beside))
    (stray,) = certificate.failures
    assert stray.name == "Net.forward"


class Forward(qnn.QuantLinear):
    def forward(self, x: Any) -> Tensor:
        return F.linear(super().forward(x), torch.ones(2, 3))


class Inner(qnn.QuantLinear):
    def inner_forward_impl(self, x: Any, weight: Any, bias: Any) -> Tensor:
        return F.linear(x.value * 7, weight.value, bias)


class Plain(qnn.QuantLinear):
    """Only says more about itself."""

    def extra_repr(self) -> str:
        return "plain"


@pytest.mark.parametrize("kind", [Forward, Inner])
def test_a_layer_with_a_forward_of_its_own(kind) -> None:
    (entry,) = proof(Net(layer=kind)).entries
    assert "nobody knows by what" in entry.reason


def test_a_layer_of_another_name() -> None:
    assert proof(Net(layer=Plain)).ok


def test_an_object_with_a_forward_of_its_own() -> None:
    net = Net()
    net.fc.forward = lambda x: F.linear(x.value, torch.full((3, 4), 1000.0))
    (entry,) = proof(net).entries
    assert "replaces 'forward'" in entry.reason


def test_the_own_forward_of_an_object_that_was_offloaded() -> None:
    net = Net()
    net.fc.forward = net.fc.forward  # as accelerate leaves it
    assert proof(net).ok


def test_a_product_in_a_hook_of_a_layer() -> None:
    net = Net()
    net.fc.register_forward_hook(lambda module, args, output: F.linear(output, torch.ones(2, 3)))
    (stray,) = proof(net).failures
    assert stray.name == "Net.forward"


def pieces(value: Tensor, net: Net) -> Tensor:
    """Each piece goes through the quantizer on its own before it is multiplied."""
    parts = [net.act(value).value[:, index] * (index + 1) for index in range(4)]
    return parts[0] + parts[1] + parts[2] + parts[3]


@pytest.mark.parametrize(
    "beside",
    [
        lambda value, net: net.act(value * _W).value.sum(-1),
        lambda value, net: net.act(F.relu(value * _W)).value.mean(-1),
        lambda value, net: net.act(value[:, :1] * 3).value + net.act(value[:, 1:2]).value,
        lambda value, net: value[:, [0, 0, 0, 1, 2]].sum(-1),
        lambda value, net: torch.index_select(value, 1, torch.tensor([0, 1, 1])).mean(-1),
        pieces,
    ],
)
def test_products_that_a_quantizer_rounds(beside) -> None:
    net = Net()
    net.beside = lambda value: beside(value, net)
    (stray,) = proof(net).failures
    assert stray.name == "Net.forward"


@pytest.mark.parametrize(
    "beside",
    [
        lambda value, net: net.act(value * 3).value.sum(-1),
        lambda value, net: net.act(value).value + net.act(F.relu(value)).value,
        lambda value, net: net.act(value).value[:, [3, 1]].mean(-1),
        lambda value, net: net.act(F.silu(value)).value.mean(-1),
        lambda value, net: net.act(torch.cat([value, F.relu(value)], 1)).value.amax(1),
        lambda value, net: net.act(F.layer_norm(value * _W, (4,))).value.mean(-1),
    ],
)
def test_quantizers_of_other_things(beside) -> None:
    net = Net()
    net.beside = lambda value: beside(value, net)
    assert proof(net).ok
