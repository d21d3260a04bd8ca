"""Orders of channels: which are free, that the function stays, and what tiles gain."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from brevitas_axe.methods.transforms.permute import (
    balanced,
    budgeted_error,
    find_streams,
    permute,
)
from brevitas_axe.plan import LayerPrecision
from brevitas_axe.recipe import Recipe, Run
from brevitas_axe.run.quantize_blocks import quantize_blocks
from tests.methods.transforms.nets import images, net
from tests.run.tiny import batches, tiny

WIDTHS = LayerPrecision(4, 8, accumulator=12, tile=8)


class Mlp(nn.Module):
    """A gate, a sum past it, and a layer whose channels a norm mixes."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(12, 32), nn.Linear(12, 32), nn.Linear(32, 12)
        self.wide, self.norm, self.last = nn.Linear(12, 32), nn.LayerNorm(32), nn.Linear(32, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.down(torch.nn.functional.silu(self.gate(x)) * self.up(x))
        return x + self.last(self.norm(self.wide(x)))


def mlp() -> tuple[Mlp, Tensor]:
    torch.manual_seed(0)
    model, x = Mlp().eval(), torch.randn(64, 12)
    model.norm.weight.data = torch.rand(32) + 0.5
    model.down.weight.data[:, 8:16] *= 6  # one tile has most of the load
    return model, x


def test_free_orders_are_those_of_channels_that_stay_apart() -> None:
    model, x = mlp()
    [stream] = find_streams(model, ((x,), {}))
    assert stream.givers == ("gate", "up")
    assert stream.readers == ("down",)
    # Attention with one head averages values channel by channel.
    others = [(s.givers, s.readers) for s in find_streams(net().eval(), ((images()[0],), {}))]
    assert others == [(("value",), ("out",)), (("up",), ("down",))]
    assert not [*find_streams(model, ((x,), {}), exclude=("up",))]


def test_tiles_get_equal_loads() -> None:
    weight = torch.rand(6, 30, dtype=torch.float64)
    weight[:, :10] *= 5
    order = balanced([weight], 8)
    assert sorted(order.tolist()) == list(range(30))

    def spread(columns: Tensor) -> Tensor:
        sizes = columns / columns.amax(1, keepdim=True)
        return torch.stack([part.mean(1).sum() for part in sizes.split(8, 1)]).std()

    assert spread(weight[:, order]) < 0.1 * spread(weight)


def test_the_function_stays_and_the_error_within_the_budget_falls() -> None:
    model, x = mlp()
    model, x = model.double(), x.double()
    before = copy.deepcopy(model)
    with torch.no_grad():
        wanted = model(x)
        assert permute(model, [((x,), {})], WIDTHS) == ()
        assert (model(x) - wanted).abs().max() < 1e-12 * wanted.abs().max()
        hidden = [torch.nn.functional.silu(m.gate(x)) * m.up(x) for m in (before, model)]
    errors = [
        budgeted_error(h, m.down.weight.detach(), WIDTHS)
        for h, m in zip(hidden, (before, model), strict=True)
    ]
    assert errors[1] < 0.8 * errors[0]
    for name in ("wide.weight", "wide.bias", "last.weight", "norm.weight", "down.bias"):
        assert torch.equal(model.state_dict()[name], before.state_dict()[name])


@pytest.mark.parametrize("widths", [LayerPrecision(4, 8, 30, 8), LayerPrecision(4, 8, 12)])
def test_nothing_changes_where_the_budget_does_not_bind(widths: LayerPrecision) -> None:
    model, x = mlp()
    before = copy.deepcopy(model.state_dict())
    permute(model, [((x,), {})], widths)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_recipe_permutes_before_the_solve() -> None:
    model, data = tiny("llama").eval(), batches("llama")
    model.model.layers[0].mlp.down_proj.weight.data[:, 8:16] *= 6
    errors = []
    for transforms in ((), ("permute",)):
        recipe = Recipe(transforms=transforms, solver="gptq", quality="fast")
        result = quantize_blocks(
            copy.deepcopy(model), data, LayerPrecision(4, 8, accumulator=11, tile=8), recipe,
            exclude=("model.layers.1",), run=Run(progress=False),
        )  # fmt: skip
        result.certificate.require()
        errors.append(next(e["error"] for e in result.layers if "down_proj" in e["name"]))
    assert errors[1] < errors[0]
