from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.transforms.constant_token import ConstantToken, constant_token
from brevitas_axe.methods.transforms.rounding_error import input_step, reader_error, rounded
from brevitas_axe.methods.transforms.sites import reader_weight
from brevitas_axe.model.constant_rows import ConstantRows
from brevitas_axe.plan import LayerPrecision
from brevitas_axe.recipe import Recipe, Run
from brevitas_axe.registry import method
from brevitas_axe.run.quantize import quantize

WIDTHS = LayerPrecision(weight=8, input=4)
TOKENS, CHANNELS = 6, 8


def prompts(size: float = 100.0, count: int = 5, seed: int = 0, lengths=(TOKENS, 4)) -> list:
    """Batches of prompts that begin with the same token, `size` times as large as the others."""
    generator = torch.Generator().manual_seed(seed)
    first = size * torch.randn(CHANNELS, generator=torch.Generator().manual_seed(99)).double()
    batches = []
    for length in lengths:
        x = torch.randn(count, length, CHANNELS, generator=generator).double()
        x[:, 0] = first
        batches.append(((x,), {}))
    return batches


class Reads(nn.Module):
    """Two layers that read the prompt, and one behind them that reads one vector per prompt."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.key, self.value = nn.Linear(CHANNELS, 6), nn.Linear(CHANNELS, 6, bias=False)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.key(x) + self.value(x))[:, -1])


def test_a_planted_token_is_left_out_and_the_function_stays() -> None:
    model = Reads().double().eval()
    before = copy.deepcopy(model)
    said = constant_token(model, prompts(), WIDTHS)
    assert said == ("token 0 of every input of 'key', 'value' is the same as in calibration",)
    assert isinstance(model.key, ConstantRows)
    assert isinstance(model.value, ConstantRows)
    assert type(model.head) is nn.Linear
    with torch.no_grad():
        for (x,), _ in prompts(seed=7):
            torch.testing.assert_close(model(x), before(x), rtol=1e-10, atol=1e-10)
    for key, value in before.state_dict().items():
        name, _, part = key.rpartition(".")
        inner = f"{name}.layer" if name in ("key", "value") else name
        assert torch.equal(model.state_dict()[f"{inner}.{part}"], value)


def test_the_other_tokens_have_a_tenth_of_the_error() -> None:
    (x,), _ = prompts()[0]
    others, weight = x[:, 1:].flatten(0, 1), reader_weight(Reads().double().key)
    naive, mine = (
        reader_error(others, rounded(others, input_step(seen, 4), 4), weight, 8)
        for seen in (x.flatten(0, 1), others)
    )
    assert mine < naive / 10


def test_the_whole_run_has_a_tenth_of_the_error_and_says_what_it_assumes() -> None:
    model = Reads().eval()
    batches = [x.float() for (x,), _ in prompts(lengths=(TOKENS,), count=40)]
    widths, errors = LayerPrecision(weight=8, input=6, accumulator=18), []
    x = prompts(lengths=(TOKENS,), seed=5)[0][0][0].float()
    for transforms in ((), ("constant_token",)):
        recipe = Recipe(transforms=transforms, inputs="static", symmetric=True, ranges="max")
        result = quantize(model, batches, widths, recipe, run=Run(progress=False))
        assert result.certificate.ok
        assert len(result.certificate.assumptions) == len(transforms)
        caption = str(result.certificate.table().caption)
        assert ("token 0 of every input of 'key', 'value'" in caption) == bool(transforms)
        with torch.no_grad():
            errors.append(float((result.model(x) - model(x)).square().mean()))
    assert errors[1] < errors[0] / 10


def test_a_token_that_varies_is_refused() -> None:
    batches = prompts()
    batches[0][0][0][3, 0] *= 1.001
    model = Reads().double().eval()
    assert constant_token(model, batches, WIDTHS) == ()
    assert type(model.key) is nn.Linear
    loose = method("transforms", "constant_token:tolerance=0.01")
    assert "token 0" in loose(model, batches, WIDTHS)[0]


@pytest.mark.parametrize("size", [0.1, 0.5])
def test_a_token_that_is_no_outlier_stays(size: float) -> None:
    model = Reads().double().eval()
    assert constant_token(model, prompts(size, count=50), WIDTHS) == ()
    assert type(model.key) is nn.Linear


def test_nothing_is_known_of_prompts_that_are_all_the_same() -> None:
    batches = [((x[:1].repeat(3, 1, 1),), {}) for (x,), _ in prompts(lengths=(TOKENS,))]
    assert constant_token(Reads().double(), batches, WIDTHS) == ()
    with pytest.raises(InvalidOption, match="compares samples"):
        constant_token(Reads().double(), prompts(count=1, lengths=(TOKENS,)), WIDTHS)


def test_several_tokens_and_a_place_in_the_middle() -> None:
    batches = prompts(lengths=(TOKENS,))
    batches[0][0][0][:, 3] = 80.0
    model = Reads().double().eval()
    before = copy.deepcopy(model)
    [said] = ConstantToken(exclude=("value",))(model, batches, WIDTHS)
    assert said == "tokens 0, 3 of every input of 'key' are the same as in calibration"
    x = batches[0][0][0]
    with torch.no_grad():
        torch.testing.assert_close(model(x), before(x), rtol=1e-10, atol=1e-10)
