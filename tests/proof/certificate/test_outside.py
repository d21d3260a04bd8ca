"""Sums outside layers: each is an entry by name, and what adds nothing up is none."""

from __future__ import annotations

from collections.abc import Callable

import brevitas.nn as qnn
import pytest
import torch
import torch.nn.functional as F
from brevitas.quant import Int8WeightPerChannelFloat, Uint8ActPerTensorFloat
from torch import Tensor, nn

from brevitas_axe.proof.certificate import Certificate, certify

_W6 = torch.tensor([1.0, -2.0, 3.0, 1.0, 5.0, 1.0])


class After(nn.Module):
    """A proven layer, and then anything."""

    def __init__(self, then: Callable[[Tensor], Tensor], image: bool = False) -> None:
        super().__init__()
        self.act = qnn.QuantIdentity(Uint8ActPerTensorFloat, bit_width=8, return_quant_tensor=True)
        kind = {"weight_quant": Int8WeightPerChannelFloat, "bias": False}
        self.layer = qnn.QuantConv2d(6, 6, 1, **kind) if image else qnn.QuantLinear(6, 6, **kind)
        self.then = then

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self.layer(self.act(x)))


def proof(then: Callable[[Tensor], Tensor], image: bool = False) -> Certificate:
    torch.manual_seed(0)
    x = torch.rand(8, 6, 4, 4) if image else torch.rand(8, 6)
    model = After(then, image)
    with torch.no_grad():
        model(x)
        return certify(model.eval(), 32, args=x)


def by_hand(x: Tensor) -> Tensor:
    weighted = x * _W6
    return weighted[:, 0] + weighted[:, 1]


def unrolled(x: Tensor) -> Tensor:
    return x[:, 0] * 3 + x[:, 1] * 5 + x[:, 2]


def in_place(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, :3].mul_(_W6[:3])
    return x.sum(1)


@pytest.mark.parametrize(
    "then",
    [
        lambda x: torch.sparse.mm(torch.eye(6).to_sparse(), x.T),
        lambda x: (x * _W6).sum(-1),
        lambda x: (x * _W6).mean(-1),
        lambda x: (x / _W6).mean(),
        lambda x: (x * _W6).view(8, 2, 3).permute(0, 2, 1).sum((1, 2)),
        lambda x: torch.relu(x * _W6).sum(-1),
        lambda x: F.adaptive_avg_pool1d((x * _W6).unsqueeze(1), 1),
        lambda x: torch._grouped_mm(
            F.pad(x, (0, 10)).repeat(2, 1),
            torch.ones(2, 16, 16),
            offs=torch.tensor([8, 16], dtype=torch.int32),
        ),
        lambda x: torch.einsum("ij,kj->ik", x, x),
        lambda x: x.cumsum(-1),
        lambda x: x.square().sum(-1),
        lambda x: (x * x).mean(-1),
        lambda x: x * x.pow(2).mean(-1, keepdim=True),
        lambda x: torch.linalg.vector_norm(x, dim=-1),
        lambda x: torch.cdist(x, x),
        lambda x: torch.zeros(2, 6).index_add(0, torch.tensor([0, 1] * 4), x),
        lambda x: torch.zeros(2, 6).scatter_add(0, torch.zeros(8, 6, dtype=torch.int64), x),
        lambda x: torch.zeros(6).index_put((torch.arange(6) % 2,), x[0], accumulate=True),
        lambda x: (x.to(torch.int64) * _W6.to(torch.int64)).sum(-1),
        lambda x: F.conv1d(x[:, None], torch.ones(1, 1, 3)),
        lambda x: F.bilinear(x, x, torch.ones(2, 6, 6)),
        lambda x: F.interpolate(x[:, None], scale_factor=2, mode="linear"),
        lambda x: torch.addcmul(torch.zeros(8, 6), x, _W6.expand(8, 6)).sum(-1),
        lambda x: torch.fft.fft(x).real,
        lambda x: torch.tensor([float(x[0, 0]) * 3 + float(x[0, 1])]),
        by_hand,
        unrolled,
        in_place,
    ],
)
def test_what_adds_up_is_an_entry(then) -> None:
    certificate = proof(then)
    assert [e.name for e in certificate.failures] == ["After.forward"]
    assert "outside a Brevitas layer" in certificate.failures[0].reason


@pytest.mark.parametrize(
    "then",
    [
        lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1),
        lambda x: x.mean((2, 3)),
        lambda x: (x * torch.sigmoid(x)).mean((2, 3)),
        lambda x: (x * F.relu6(x + 3) / 6).mean((2, 3)),
        lambda x: (x * torch.sigmoid(x.mean((2, 3), keepdim=True))).mean((2, 3)),
        lambda x: (x + _W6[:, None, None] * torch.tanh(x)).mean((-2, -1)),
        lambda x: F.batch_norm(x, torch.zeros(6), torch.ones(6), _W6).mean((2, 3)),
        lambda x: F.layer_norm(x.flatten(2).transpose(1, 2), (6,), _W6).mean(1),
        lambda x: F.gelu(F.max_pool2d(x, 2)),
        lambda x: torch.cat([x, x.relu()], 1)[:, ::2],
        lambda x: F.interpolate(x, scale_factor=2, mode="nearest"),
        lambda x: x.reshape(8, 2, 3, 16).transpose(1, 2).reshape(8, 6, 4, 4),
        lambda x: 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.04 * torch.pow(x, 3)))),
        lambda x: x.softmax(1).argmax(1),
        lambda x: x * (x.pow(2).mean(1, keepdim=True) + 1e-6).rsqrt(),
        lambda x: x / (x * x).mean(1, keepdim=True).sqrt(),
    ],
)
def test_what_adds_nothing_up_is_none(then) -> None:
    certificate = proof(then, image=True)
    assert certificate.ok, certificate.failures
    assert [e.name for e in certificate.entries] == ["layer"]
