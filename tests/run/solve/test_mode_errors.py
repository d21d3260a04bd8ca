"""What goes wrong around a mode is named, and leaves the model usable."""

from __future__ import annotations

import copy

import pytest
import torch
from brevitas import nn as qnn
from torch import nn

from brevitas_axe.errors import (
    EmptyCalibration,
    InvalidOption,
    MissingInputQuantizer,
    NonFiniteValues,
    UnsupportedLayer,
)
from brevitas_axe.run.solve import axe_mode
from tests.run.solve.models import (
    BITS,
    assert_holds,
    calibrated,
    kinds,
    run,
    two_layers,
)


@pytest.mark.parametrize("where", ["model", "update"])
def test_after_an_exception_the_model_is_as_usable_as_before(where):
    model, batches = two_layers()
    model.train()
    model[2].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    mode = axe_mode(model, accumulator_bit_width=BITS)
    with pytest.raises(KeyboardInterrupt), torch.no_grad(), mode as axe:  # noqa: PT012
        axe.model(batches[0])
        if where == "update":
            axe.update()
        raise KeyboardInterrupt
    now = {name: module.training for name, module in model.named_modules()}
    assert now == {name: modes.get(name, True) for name in now}
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    assert model.eval()(batches[0]).isfinite().all()
    run(model, batches)
    assert_holds(model)


def test_an_exception_of_the_model_itself_comes_through():
    class Breaks(nn.Module):
        def forward(self, x):
            if getattr(self, "armed", False):
                raise ZeroDivisionError("inside")
            return x

    model, batches = two_layers()
    model.insert(1, Breaks())
    mode = axe_mode(model, accumulator_bit_width=BITS)
    with pytest.raises(ZeroDivisionError, match="inside"), torch.no_grad(), mode as axe:  # noqa: PT012
        axe.model(batches[0])
        model[1].armed = True
        axe.update()
        axe.update()
    model[1].armed = False
    assert model(batches[0]).isfinite().all()
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_leaving_without_solving_is_an_error():
    model, batches = two_layers()
    with (
        pytest.raises(EmptyCalibration, match="no layer was solved"),
        axe_mode(model, accumulator_bit_width=BITS),
    ):
        pass
    mode = axe_mode(model, accumulator_bit_width=BITS)
    with pytest.raises(UnsupportedLayer, match="unsolved: 3"), torch.no_grad(), mode as axe:  # noqa: PT012
        axe.model(batches[0])
        axe.update()


def test_update_before_data_and_use_outside_the_context_are_errors():
    model, batches = two_layers()
    with pytest.raises(EmptyCalibration, match="before any calibration"), axe_mode(model) as axe:
        axe.update()
    with pytest.raises(InvalidOption, match="context manager"):
        axe.model(batches[0])


@pytest.mark.parametrize("count", [1, 2, 4])
def test_another_number_of_batches_in_a_later_round_is_an_error(count):
    model, batches = two_layers()
    mode = axe_mode(model, accumulator_bit_width=BITS)
    with pytest.raises(InvalidOption, match=r"first had \(?3"), torch.no_grad(), mode as axe:  # noqa: PT012
        for x in batches:
            axe.model(x)
        axe.update()
        for x in (batches * 2)[:count]:
            axe.model(x)
        axe.update()


def test_a_layer_that_the_data_never_reach_is_named():
    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.used = qnn.QuantLinear(8, 3, **kinds())
            self.unused = qnn.QuantLinear(8, 3, **kinds())

        def forward(self, x):
            return self.used(x)

    model, x = Skips(), torch.rand(4, 8)
    calibrated(model, x)
    with pytest.raises(UnsupportedLayer, match=r"unsolved: unused.*exclude"):
        run(model, [x])
    run(model, [x], exclude=("unused",))


def test_nan_anywhere_is_named():
    model, batches = two_layers()
    broken = copy.deepcopy(model)
    broken[3].weight.data[0, 0] = float("nan")
    with pytest.raises(NonFiniteValues, match="weights of layer '3'"):
        run(broken, batches)
    batches[1][0, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteValues, match="inputs of layer '0'"):
        run(model, batches)


def test_a_layer_without_integer_inputs_is_named_before_anything_changes():
    model, batches = two_layers()
    model[3] = qnn.QuantLinear(8 * 16, 5, **kinds(act=None))
    model.eval()
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(MissingInputQuantizer, match=r"layer '3'.*exclude"):
        run(model, batches)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    run(model, batches, bits=None)  # without a budget nothing is needed of the input
