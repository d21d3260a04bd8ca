"""What is collected around a layer, against the same by its unrolled inputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from brevitas_axe.methods.sensitivity import make_case, make_choices
from brevitas_axe.methods.sensitivity.budgeted import moments, part
from brevitas_axe.model.layers import unroll_input, unroll_weight
from brevitas_axe.model.prepare import as_batches, to_brevitas
from tests.methods.sensitivity.nets import chain

LAYERS = {
    "linear": nn.Linear(6, 5),
    "grouped": nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
    "transposed": nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
    "one axis": nn.Conv1d(4, 3, 2, bias=False),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_energies_are_those_of_the_dot_products(kind) -> None:
    layer = LAYERS[kind]
    axes = len(getattr(layer, "kernel_size", ()))
    shape = (6,) if axes == 0 else (4, *(5,) * axes)
    batches = [torch.rand(3, *shape), torch.rand(2, *shape)]
    model = to_brevitas(nn.Sequential(layer).eval(), as_batches(batches))
    choices = make_choices(model, (batches[0],), weight=(4,), input=(4, 8), accumulator=(16,))
    case = make_case(model, batches, choices)
    (known,) = moments(case, ["0"])
    layer = case.layer("0")
    columns = torch.cat([unroll_input(layer, batch) for batch in batches], -1).double()
    dots = unroll_weight(layer, layer.weight.detach()).double() @ columns
    assert torch.allclose(known["0"].outputs, dots.square().mean(-1), rtol=1e-5)
    x = torch.cat(batches)
    for bits, grid in case.inputs["0"].items():
        assert grid is not None
        assert known["0"].input_errors[bits] == pytest.approx(float((grid(x) - x).square().mean()))


def test_the_bias_takes_the_mean_error_of_a_quantized_layer() -> None:
    model, x = chain(16, 4, bias=True), torch.rand(256, 16)
    choices = make_choices(model, (x[:1],), weight=(2,), input=(3,), accumulator=(8,))
    case = make_case(model, [x], choices, "mse")
    (known,) = moments(case, case.names)
    (choice,) = choices.layers["0"]
    (output,) = case.outputs({"0": part(case, "0", choice, known["0"])})
    error = output - case.reference[0]
    assert error.mean(0).abs().max() < 1e-5
    assert error.abs().max() > 0.01
