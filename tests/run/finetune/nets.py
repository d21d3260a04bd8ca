"""A small convolutional net and a small transformer block that their budgets bind."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from brevitas import nn as qnn
from brevitas.quant import Int8ActPerTensorFloat, Uint8ActPerTensorFloat
from torch import Tensor, nn

from brevitas_axe.model.layers import Layer, find_layers, integer_weight
from brevitas_axe.model.quantizers import Int8WeightPerChannelFloatAXE
from brevitas_axe.plan import LayerPrecision, Plan
from tests.calibration import calibrated

WIDTH = 12


def options(act: type, quantizer: type = Int8WeightPerChannelFloatAXE) -> dict:
    return {
        "weight_quant": quantizer,
        "weight_bit_width": 4,
        "weight_accumulator_bit_width": WIDTH,
        "input_quant": act,
    }


def conv_net(quantizer: type = Int8WeightPerChannelFloatAXE) -> Layer:
    """[n, 2, 6, 6] to 4 logits, with a batch norm and a depthwise layer."""
    torch.manual_seed(0)
    kind = options(Uint8ActPerTensorFloat, quantizer)
    return calibrated(
        nn.Sequential(
            qnn.QuantConv2d(2, 8, 3, bias=False, **kind),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            qnn.QuantConv2d(8, 8, 3, groups=8, padding=1, **kind),
            nn.ReLU(),
            nn.Flatten(),
            qnn.QuantLinear(8 * 16, 4, **kind),
        ),
        torch.rand(16, 2, 6, 6),
    )


class Block(nn.Module):
    """Attention and an MLP over [n, time, 16], then 4 logits."""

    def __init__(self, quantizer: type) -> None:
        super().__init__()
        kind = options(Int8ActPerTensorFloat, quantizer)
        self.norm = nn.LayerNorm(16)
        self.qkv, self.proj = qnn.QuantLinear(16, 48, **kind), qnn.QuantLinear(16, 16, **kind)
        self.up, self.down = qnn.QuantLinear(16, 32, **kind), qnn.QuantLinear(32, 16, **kind)
        self.head = qnn.QuantLinear(16, 4, **kind)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v))
        return self.head((x + self.down(F.relu(self.up(x)))).mean(1))


def block(quantizer: type = Int8WeightPerChannelFloatAXE) -> Layer:
    torch.manual_seed(0)
    return calibrated(Block(quantizer), torch.randn(16, 5, 16))


NETS = {"conv": conv_net, "block": block}
SHAPES = {"conv": (2, 6, 6), "block": (5, 16)}


def batches(kind: str, number: int = 4, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    """Batches of 16 whose labels can be learned."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for _ in range(number):
        labels = torch.randint(4, (16,), generator=generator)
        x = 0.5 * torch.rand(16, *SHAPES[kind], generator=generator)
        # The label is which quarter of the first rows is bright.
        quarters = x.view(16, SHAPES[kind][0], -1)[:, 0].chunk(4, 1)
        for label, quarter in enumerate(quarters):
            quarter[labels == label] += 0.5
        result.append((x, labels))
    return result


def uniform(model: nn.Module, **precision) -> Plan:
    return Plan.uniform(find_layers(model), LayerPrecision(**precision))


def steps(model: nn.Module, kind: str, number: int, rate: float = 0.02) -> Iterator[float]:
    """Steps of Adam; yields the loss after each."""
    optimizer = torch.optim.Adam(model.parameters(), rate)
    data = batches(kind)
    model.train()
    for step in range(number):
        x, y = data[step % len(data)]
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        yield float(loss.detach())


def all_integers(model: nn.Module) -> dict[str, Tensor]:
    return {name: integer_weight(name, layer)[0] for name, layer in find_layers(model).items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )
