"""Models stay on the graph, and every quantizer has the sign of what it quantizes."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from brevitas import nn as qnn
from torch import Tensor, nn
from torch.nn import functional as F

from brevitas_axe.model.prepare import to_brevitas

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(64, 12, generator=GENERATOR)


class Residual(nn.Module):
    """A stream that starts at the model's input and takes nothing negative in."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(12, 12) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + F.relu(layer(x))
        return x


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(24, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.last(F.relu(self.first(torch.cat([x, y], 1))))


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.first, self.last = nn.Embedding(20, 12), nn.Linear(12, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        h = self.table(x) * keep[..., None]
        return self.last(F.relu(self.first(h))).mean(1)


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.last = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.attention(x, x, x)[0])


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gates, self.last = nn.LSTM(12, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.gates(x)[0][:, -1])


class Twice(nn.Module):
    """One layer reads a quantized input, and later a product of plain numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(12, 12), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x) * self.last(x))


WORDS = torch.randint(0, 20, (64, 6), generator=GENERATOR)
CASES: dict[type[nn.Module], tuple[Any, ...]] = {
    Residual: (X,),
    Joined: (X, X.flip(0).abs()),
    Words: (WORDS, WORDS > 3),
    Attending: (X.view(-1, 4, 12),),
    Recurrent: (X.view(-1, 4, 12),),
    Twice: (X,),
}


def quantized(kind: type[nn.Module], args: tuple[Any, ...]) -> tuple[nn.Module, nn.Module]:
    """The float model and the 8-bit one, which must be made on the graph."""
    torch.manual_seed(0)
    model = kind().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message=".*layer by layer")
        return model, to_brevitas(model, [(args, {})], weight_bit_width=8)


@pytest.mark.parametrize("kind", CASES, ids=lambda kind: kind.__name__)
def test_it_stays_on_the_graph_and_near_the_float_model(kind) -> None:
    model, made = quantized(kind, CASES[kind])
    with torch.no_grad():
        expected, found = model(*CASES[kind]), made(*CASES[kind])
    error = (getattr(found, "value", found) - expected).norm() / expected.norm()
    assert error < 0.05


def test_a_stream_with_negative_numbers_is_signed_from_the_input_on() -> None:
    _, made = quantized(Residual, CASES[Residual])
    quantizers = [m for m in made.modules() if isinstance(m, qnn.QuantIdentity)]
    assert len(quantizers) == 2
    assert all(q.act_quant.is_signed for q in quantizers)


def test_an_input_that_is_added_inside_keeps_its_own_bits() -> None:
    torch.manual_seed(0)
    made = to_brevitas(Residual().eval(), [((X,), {})], input_bit_width=4)
    assert int(made.get_submodule("x_quant").act_quant.bit_width()) == 8
    assert int(made.get_submodule("add_output_quant").act_quant.bit_width()) == 4


class FlattenedFirst(nn.Module):
    """The input is moved before it is added to something inside."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(12, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.flatten(x, 1)
        return self.last(flat + F.relu(self.first(flat)))


def test_so_does_one_that_is_moved_before() -> None:
    torch.manual_seed(0)
    made = to_brevitas(FlattenedFirst().eval(), [((X.view(-1, 3, 4),), {})], input_bit_width=4)
    quantizer = made.get_submodule("x_quant").act_quant
    assert (int(quantizer.bit_width()), quantizer.is_signed) == (8, True)


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(12, 16), nn.Linear(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        return x - self.last(F.relu(self.first(x)))


def test_what_is_read_as_values_alone_is_not_rounded() -> None:
    torch.manual_seed(0)
    made = to_brevitas(Denoiser().eval(), [((X,), {})], input_bit_width=4)
    inside = [node.target for node in made.graph.nodes if "quant" in str(node.target)]
    assert inside == ["x_quant"]


@pytest.mark.parametrize("signed", [False, True])
def test_inputs_that_are_joined_share_one_grid_of_their_own_bits(signed) -> None:
    args = (X, X.flip(0).abs()) if signed else (X.abs(), X.flip(0).abs())
    _, made = quantized(Joined, args)
    first, second = (made.get_submodule(name) for name in ("x_quant", "y_quant"))
    assert first is second
    assert first.act_quant.is_signed == signed
    assert int(first.act_quant.bit_width()) == 8


def test_whole_numbers_among_the_inputs_are_left_alone() -> None:
    _, made = quantized(Words, CASES[Words])
    inputs = [node for node in made.graph.nodes if node.op == "placeholder"]
    assert len(inputs) == 2
    assert all(
        not isinstance(made.get_submodule(user.target), qnn.QuantIdentity)
        for node in inputs
        for user in node.users
        if user.op == "call_module"
    )


def test_a_call_that_reads_integers_has_no_second_quantizer() -> None:
    _, made = quantized(Twice, CASES[Twice])
    read = [node.args[0] for node in made.graph.nodes if node.target == "last"]
    assert len(read) == 2
    assert read[0].target == "x_quant"
    assert read[1].target.endswith("_own_quant")
