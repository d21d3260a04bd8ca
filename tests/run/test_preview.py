"""A look before the work: the widths at which rows clip, and what a run would refuse."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from brevitas_axe.accumulator import required_bit_width
from brevitas_axe.errors import AccumulatorTooNarrow
from brevitas_axe.model.layers import integer_weight
from brevitas_axe.model.prepare import as_batches, to_brevitas
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.run.preview import preview
from tests.walk import nets


def needed(net: nn.Module, name: str, tile: int | None = None) -> list[int]:
    """From the rule itself: the positive and the negative weights of a row at the largest input."""
    layer = dict(net.named_modules())[name]
    integers, _ = integer_weight(name, layer)
    found = []
    for row in integers.tolist():
        tiles = [row[i : i + (tile or len(row))] for i in range(0, len(row), tile or len(row))]
        sums = [sum(q * 255 for q in t if q > 0) for t in tiles]
        sums += [sum(-q * 255 for q in t if q < 0) for t in tiles]
        found.append(max(required_bit_width(0, s) for s in sums))
    return found


def test_rows_clip_where_their_weights_rounded_to_nearest_need_more() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 6), nn.ReLU(), nn.Linear(6, 3))
    data = [torch.rand(16, 10)] * 2
    before = [p.clone() for p in net.parameters()]
    found = preview(net, data, accumulator_bit_width=13)
    quantized = to_brevitas(net, as_batches(data, net))
    for layer in found.layers:
        assert list(layer.needed) == needed(quantized, layer.name)
        assert layer.clipped == sum(p > 13 for p in layer.needed)
        assert layer.input == (0, 255)
        assert layer.seconds >= 0
    assert found.layers[0].clipped > 0
    assert found.memory > 3 * 4 * sum(p.numel() for p in net.parameters())
    assert found.finn == ()
    assert not found.floats
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    tiled = preview(net, data, accumulator_bit_width=13, tile_size=4)
    assert list(tiled.layers[0].needed) == needed(quantized, "0", 4)
    assert max(tiled.layers[0].needed) < max(found.layers[0].needed)


def test_what_a_plan_says_is_looked_at() -> None:
    net, data = nets.seeded(nets.cnn), [nets.data(nets.cnn)]
    plan = Plan({"0": LayerPrecision(3, 4, 12), "5": LayerPrecision(2, 4)})
    first, second = preview(net, data, plan).layers
    assert (first.weight, first.accumulator) == ((-3, 3), 12)
    assert (second.weight, second.accumulator, second.clipped) == ((-1, 1), None, 0)
    without = preview(net, data, exclude=["5"], accumulator_bit_width=14)
    assert [layer.name for layer in without.layers] == ["0"]
    assert without.floats["5"] == "left out by name or by a rule"


def test_layers_in_formats_are_looked_at_as_integers_on_their_grid() -> None:
    net, data = nets.seeded(nets.cnn), [nets.data(nets.cnn)]
    plan = Plan({"0": LayerPrecision("e2m1", "e2m3", 9), "5": LayerPrecision("e5m2", "e5m2")})
    first, second = preview(net, data, plan).layers
    assert (first.weight, first.input, first.accumulator) == ((-12, 12), (-60, 60), 9)
    # One product of 12 and 60 needs 11 bits.
    assert first.clipped == len(first.needed) > 0
    assert second.clipped == 0
    assert max(second.needed) > 64


def test_blocks_say_what_stays_in_float() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.fc = nn.LayerNorm(8), nn.Linear(8, 8)

        def forward(self, x):
            return x + self.fc(self.norm(x))

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Sequential(Block(), Block()), nn.Linear(8, 2))
    found = preview(net, [torch.randn(4, 3, 4)], accumulator_bit_width=12)
    assert [layer.name for layer in found.layers] == ["1.0.fc", "1.1.fc"]
    assert set(found.floats) == {"0", "2"}
    assert found.finn is None
    assert all(layer.input == (-128, 127) for layer in found.layers)


def test_what_a_run_refuses_is_refused_at_once() -> None:
    net, data = nets.seeded(nets.mlp), [nets.data(nets.mlp)]
    with pytest.raises(AccumulatorTooNarrow, match="cannot store one input"):
        preview(net, data, accumulator_bit_width=6)


def test_finn_s_findings_are_all_told() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Conv2d(4, 2, 3))
    found = preview(net, [torch.rand(4, 3, 8, 8)], accumulator_bit_width=16)
    assert found.finn
    assert found.to_dict()["finn"][0]["problem"]
