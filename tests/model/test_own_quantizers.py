"""Activations never calibrated, or that keep their integers to themselves, as by default."""

from __future__ import annotations

import pytest
import torch
from brevitas import nn as qnn
from torch import Tensor, nn

from brevitas_axe import Run, allocate, apply_plan, quantize
from brevitas_axe.errors import MissingInputQuantizer
from brevitas_axe.model.own_quantizers import completed, with_integer_inputs
from brevitas_axe.model.prepare import calibrate

X = torch.rand(16, 4, generator=torch.Generator().manual_seed(0))
BATCH = ((X,), {})


def net(end: bool = False, told: bool = False) -> nn.Sequential:
    """Two layers behind activations, with one more activation at its end on request."""
    torch.manual_seed(0)
    parts = [
        qnn.QuantIdentity(return_quant_tensor=told),
        qnn.QuantLinear(4, 8, bias=True),
        nn.BatchNorm1d(8),
        qnn.QuantReLU(return_quant_tensor=told),
        qnn.QuantLinear(8, 3, bias=True),
    ]
    model = nn.Sequential(*parts, *([qnn.QuantReLU()] if end else []))
    model(X)
    return model.eval()


class Plain(nn.Module):
    """Its forward does what plain tensors alone allow."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.layer = qnn.QuantIdentity(), qnn.QuantLinear(4, 3, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(x)
        if not isinstance(x, Tensor):
            raise TypeError("plain numbers only")
        return self.layer(x)


@pytest.mark.parametrize("end", [False, True])
def test_layers_learn_their_inputs(end: bool) -> None:
    model = net(end)
    telling = with_integer_inputs(model, BATCH)
    flags = [m.return_quant_tensor for m in telling.modules() if hasattr(m, "act_quant")]
    assert flags == [True, True, False][: 2 + end]
    assert not any(m.return_quant_tensor for m in model.modules() if hasattr(m, "act_quant"))
    assert torch.equal(telling(X), model(X))


def test_a_model_that_tells_already_is_left_alone() -> None:
    model = net(told=True)
    assert with_integer_inputs(model, BATCH) is model


def test_a_forward_that_wants_plain_numbers_is_left_alone() -> None:
    model = Plain().eval()
    assert with_integer_inputs(model, BATCH) is model
    assert not model.act.return_quant_tensor
    with pytest.raises(MissingInputQuantizer, match=r"'layer'.*return_quant_tensor=True"):
        quantize(model, [X], accumulator_bit_width=14, progress=False)


def test_a_model_in_training_stays_in_training() -> None:
    model = net().train()
    with_integer_inputs(model, BATCH)
    assert model.training


def test_such_a_model_is_solved_and_allocated() -> None:
    model = net(end=True)
    result = quantize(model, [X], accumulator_bit_width=12, progress=False)
    assert result.certificate.ok
    assert [entry.name for entry in result.certificate.entries] == ["1", "4"]
    assert isinstance(result.model(X), Tensor)
    widths = {"weight": (3, 4), "input": (8,), "accumulator": (12, 16)}
    chosen = allocate(model, [X], {"finn_lut": "90%"}, choices=widths, run=Run(progress=False)).plan
    assert set(chosen.layers) == {"1", "4"}
    assert quantize(model, [X], plan=chosen, progress=False).certificate.ok


def scales(model: nn.Module) -> list[float]:
    return [
        float(m(X * 3).scale.detach()) for m in model.modules() if isinstance(m, qnn.QuantIdentity)
    ]


def two_activations(calibrated: bool) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        qnn.QuantIdentity(return_quant_tensor=True),
        qnn.QuantLinear(4, 4, bias=True),
        qnn.QuantIdentity(return_quant_tensor=True),
        qnn.QuantLinear(4, 3, bias=True),
    ).eval()
    if calibrated:
        calibrate(model, [BATCH])
    return model


def test_activations_that_have_seen_no_data_are_calibrated() -> None:
    model, expected = two_activations(calibrated=False), two_activations(calibrated=False)
    calibrate(expected, [((X * 3,), {})])
    found = completed(model, [((X * 3,), {})])
    assert scales(found)[0] == scales(expected)[0]
    assert scales(found)[0] != scales(model)[0], "the model given is not changed"
    assert not found.training


def test_calibrated_activations_keep_their_scales() -> None:
    model = two_activations(calibrated=True)
    assert completed(model, [((X * 3,), {})]) is model
    half = two_activations(calibrated=True)
    half[2] = qnn.QuantIdentity(return_quant_tensor=True).eval()
    found = completed(half, [((X * 3,), {})])
    assert scales(found)[0] == scales(half)[0]
    assert scales(found)[1] != scales(half)[1]


def test_the_state_of_a_model_solved_without_calibration_loads_into_a_new_one() -> None:
    result = quantize(two_activations(False), [X], accumulator_bit_width=14, progress=False)
    new = two_activations(False)
    apply_plan(new, result.plan, args=(X,))
    new.load_state_dict(result.model.state_dict())
    assert torch.equal(new.eval()(X), result.model(X))
