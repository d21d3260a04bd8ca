"""Operands of sums: one bit for a sign, and norms that read what was not rounded for a sum."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from brevitas_axe.export.finn.prepare import made_for_finn
from brevitas_axe.methods.ranges import USUAL_FITTER, fit_ranges_to
from brevitas_axe.model import sums
from brevitas_axe.model.apply.activations import activation_quantizers, set_bits, set_input_bits
from brevitas_axe.model.apply.ranges import current_bits
from brevitas_axe.model.prepare import to_brevitas
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.run.quantize import quantize
from tests.model.test_prepare import Residual

X = torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))
BATCHES = [((X,), {})]


class ReadTwice(nn.Module):
    """A layer reads the signed operand of a sum too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1)
        self.last = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last((x + self.second(x).relu()).relu())


class NormFirst(nn.Module):
    """A stream whose blocks begin with a norm, as in a pre-activation net."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6) for _ in range(3))
        self.blocks = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1) for _ in range(3))
        for index, norm in enumerate(self.norms):
            norm.running_mean = torch.linspace(-0.1, 0.1, 6) * index

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + block(norm(x).relu())
        return self.last(x.relu())


def float_net(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


def made(kind: type[nn.Module], bits: int = 8) -> nn.Module:
    return to_brevitas(float_net(kind), BATCHES, weight_bit_width=8, input_bit_width=bits)


def operands(model: nn.Module) -> dict[bool, Any]:
    """The quantizers that share a scale, by whether they are signed."""
    [shared] = [proxies for proxies in activation_quantizers(model).values() if len(proxies) > 1]
    return {proxy.is_signed: proxy for proxy in shared}


@torch.no_grad()
def facts(model: nn.Module) -> dict[bool, tuple[float, float]]:
    """Bits and scale of both operands."""
    found = operands(model)
    return {sign: (float(p.bit_width()), float(p.scale())) for sign, p in found.items()}


def error(model: nn.Module, kind: type[nn.Module]) -> float:
    with torch.no_grad():
        expected, found = float_net(kind)(X), model(X)
    return float((getattr(found, "value", found) - expected).norm() / expected.norm())


def calls(model: nn.Module) -> dict[str, Any]:
    """The nodes of a graph that call modules, by these."""
    graph: Any = model.graph
    return {node.target: node for node in graph.nodes if node.op == "call_module"}


def test_a_signed_operand_reaches_as_far_as_an_unsigned_one_at_its_scale() -> None:
    found = facts(made(Residual))
    assert (found[True][0], found[False][0]) == (9, 8)
    assert found[True][1] == found[False][1]


@pytest.mark.parametrize("bits", [4, 7])
def test_below_8_bits_both_are_as_brevitas_makes_them(bits, monkeypatch) -> None:
    ours = facts(made(Residual, bits))
    assert {found[0] for found in ours.values()} == {bits}
    monkeypatch.setattr(sums, "give_signed_operands_a_bit", lambda _: None)
    assert ours == facts(made(Residual, bits))


def test_bits_that_are_set_are_read_back() -> None:
    model = made(Residual)
    for bits in (4, 8, 9, 7, 8):
        set_bits(operands(model).values(), bits)
        assert [current_bits(proxy) for proxy in operands(model).values()] == [bits, bits]
        assert int(operands(model)[True].bit_width()) == bits + (bits >= 8)
        assert int(operands(model)[False].bit_width()) == bits


def test_a_range_that_is_fitted_follows_the_bits() -> None:
    model = made(Residual)
    before = facts(model)
    fit_ranges_to(model, BATCHES, (4, 8), USUAL_FITTER)
    assert {sign: found[0] for sign, found in facts(model).items()} == {True: 9, False: 8}
    at_8 = facts(model)
    set_bits(operands(model).values(), 4)
    assert {found[0] for found in facts(model).values()} == {4}
    set_bits(operands(model).values(), 8)
    assert facts(model) == at_8
    assert before.keys() == at_8.keys()


def test_the_bit_halves_the_steps_of_a_sum(monkeypatch) -> None:
    ours = facts(made(Residual))
    monkeypatch.setattr(sums, "give_signed_operands_a_bit", lambda _: None)
    before = facts(made(Residual))
    assert before[True][0] == before[False][0] == 8
    assert ours[True][1] == pytest.approx(before[True][1] / 2, rel=0.05)


def test_an_operand_that_a_layer_reads_keeps_its_bits() -> None:
    assert {found[0] for found in facts(made(ReadTwice)).values()} == {8}


def test_a_plan_that_is_read_back_gives_the_same_again() -> None:
    options: dict[str, Any] = {"quality": "fast", "progress": False}
    widths = LayerPrecision(weight=8, input=8, accumulator=18)
    once = quantize(float_net(Residual), [X], widths, **options)
    assert {precision.input for precision in once.plan.layers.values()} == {8}
    again = quantize(float_net(Residual), [X], once.plan, **options)
    assert again.plan == once.plan
    assert {sign: found[0] for sign, found in facts(again.model).items()} == {True: 9, False: 8}
    before = facts(once.model)
    for bits in (4, 8):
        widths = {name: LayerPrecision(input=bits) for name in ("body", "head")}
        set_input_bits(once.model, Plan(widths), (X,))
    assert facts(once.model) == before


def test_norms_read_a_stream_before_it_is_rounded_for_its_sum(monkeypatch) -> None:
    model = made(NormFirst)
    ours = error(model, NormFirst)
    called = calls(model)
    assert str(called["norms.0"].args[0]) == "first"
    assert str(called["norms.1"].args[0]) == "add"
    monkeypatch.setattr(sums, "read_streams_unrounded", lambda _: None)
    assert ours < error(made(NormFirst), NormFirst)


def test_narrow_streams_are_read_as_they_are_rounded() -> None:
    assert "quant" in str(calls(made(NormFirst, 4))["norms.0"].args[0])


@pytest.mark.parametrize("kind", [Residual, NormFirst])
def test_what_is_prepared_for_finn_keeps_8_bits_and_one_quantizer_behind_a_sum(kind) -> None:
    model = made_for_finn(float_net(kind), BATCHES, 8, 8)
    proxies = [proxy for found in activation_quantizers(model).values() for proxy in found]
    assert {current_bits(proxy) for proxy in proxies} == {8}
    assert {int(proxy.bit_width()) for proxy in proxies} == {8}
