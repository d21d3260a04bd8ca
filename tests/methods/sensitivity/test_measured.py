"""The metric with one layer at its choice, and nothing else."""

from __future__ import annotations

import pytest
import torch

from brevitas_axe.methods.sensitivity import make_case, make_choices, score
from brevitas_axe.methods.sensitivity.budgeted import moments, part
from tests.methods.sensitivity.nets import chain


def test_harm_is_the_metric_of_the_model_with_that_layer_alone_quantized() -> None:
    model, x = chain(8, 16, 4), torch.rand(64, 8)
    choices = make_choices(model, (x[:1],), weight=(2, 4), input=(4,), accumulator=(10, 14))
    harm = score(model, [x], choices, "measured", metric="mse").harm
    case = make_case(model, [x], choices, "mse")
    known = {name: found for chunk in moments(case, case.names) for name, found in chunk.items()}
    for name, options in choices.layers.items():
        for value, choice in zip(harm[name], options, strict=True):
            (output,) = case.outputs({name: part(case, name, choice, known[name])})
            real = case.reference[0]
            wanted = (output - real).square().sum() / real.square().sum()
            assert value == pytest.approx(float(wanted), rel=1e-4)
        assert harm[name].min() > 0
