"""Blocks that learn their rounding together."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from brevitas_axe import LayerPrecision, quantize
from brevitas_axe.model.layers import find_layers, integer_weight
from brevitas_axe.proof.certificate import certify
from brevitas_axe.run.quantize_blocks import quantize_blocks
from tests.run.tiny import batches, tiny


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(channels, channels, 3, padding=1)
        self.two = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return F.relu(x + self.two(F.relu(self.one(x))))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.body = nn.Sequential(Residual(4), Residual(4))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.body(F.relu(self.stem(x))).mean((2, 3)))


def net() -> tuple[nn.Module, list[torch.Tensor]]:
    torch.manual_seed(0)
    return Net().eval(), [*torch.randn(48, 2, 8, 8).split(16)]


@cache
def solved(spec: str, bits: int | None = None):
    model, data = net()
    options = {"quality": "fast", "progress": False, "plan": LayerPrecision(3, 4, bits)}
    return quantize(model, data, solver=spec, **options), model, data


def outputs_error(result, model, data) -> float:
    with torch.no_grad():
        return sum(float((result.model(x) - model(x)).square().mean()) for x in data) / len(data)


@pytest.mark.parametrize("scope", ["block", "model"])
@pytest.mark.parametrize("bits", [None, 11])
def test_what_is_learned_is_never_worse_than_its_start(scope: str, bits: int | None) -> None:
    spec = f"learned_rounding:scope={scope},start=gptq,steps=40"
    found, model, data = solved(spec, bits)
    start, *_ = solved("gptq", bits)
    assert found.certificate.ok
    assert certify(found.model, plan=found.plan, args=(data[0],)).ok
    blocks = [entry["block"] for entry in found.learned]
    assert blocks[-1] == "model"
    if scope == "block":
        assert blocks[:-1] == ["stem", "body.0.one, body.0.two", "body.1.one, body.1.two", "head"]
    assert all(entry["kept"] <= entry["start"] for entry in found.learned)
    assert any(entry["kept"] < entry["start"] for entry in found.learned)
    assert outputs_error(found, model, data) < outputs_error(start, model, data)
    # The loss of the last line, here by definition: squares summed over the outputs.
    assert found.learned[-1]["kept"] == pytest.approx(
        3 * outputs_error(found, model, data), rel=1e-4
    )


def test_integers_move_to_a_neighbour_at_most_and_the_model_says_what_can_be_trained() -> None:
    found, *_ = solved("learned_rounding:scope=block,start=gptq,steps=40")
    start, *_ = solved("gptq")
    moved = 0
    for (name, one), other in zip(
        find_layers(found.model).items(), find_layers(start.model).values(), strict=True
    ):
        difference = integer_weight(name, one)[0] - integer_weight(name, other)[0]
        assert int(difference.abs().max()) <= 1
        moved += int((difference != 0).sum())
        assert torch.equal(integer_weight(name, one)[1], integer_weight(name, other)[1])
    assert moved > 0
    gradients = [[p.requires_grad for p in each.model.parameters()] for each in (found, start)]
    assert gradients[0] == gradients[1]


@pytest.mark.parametrize(
    "options", ["variable=both", "variable=scale", "drop=0.5", "loss=kl", "loss=fisher"]
)
def test_every_factor_can_be_varied(options: str) -> None:
    spec = "learned_rounding:scope=block,start=gptq,steps=20"
    plain, *_ = solved(spec)
    found, *_ = solved(f"{spec},{options}")
    assert found.certificate.ok
    assert all(entry["kept"] <= entry["start"] for entry in found.learned)
    weights = [[*map(torch.clone, each.model.parameters())] for each in (plain, found)]
    assert not all(map(torch.equal, *weights))


def test_a_stack_of_blocks_learns_block_by_block() -> None:
    data = batches("llama")
    options = {"accumulator_bit_width": 14, "weight_bit_width": 3, "quality": "fast"}
    spec = "learned_rounding:scope=block,start=gptq,steps=30"
    found = quantize_blocks(tiny("llama"), data, solver=spec, progress=False, **options)
    assert found.certificate.ok
    assert len(found.learned) == 2
    assert all(entry["kept"] <= entry["start"] for entry in found.learned)
    assert any(entry["kept"] < entry["start"] for entry in found.learned)
