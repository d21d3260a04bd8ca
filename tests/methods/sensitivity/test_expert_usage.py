"""Importance by the tokens that are routed to a layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from brevitas import nn as qnn
from brevitas.quant import Int8ActPerTensorFloat
from torch import nn

from brevitas_axe.errors import InvalidPlan
from brevitas_axe.methods.sensitivity import score
from brevitas_axe.model.prepare import as_batches, calibrate, to_brevitas
from brevitas_axe.plan import Choices, LayerPrecision
from tests.run.moe import by_hand, vectors


def test_usage_is_the_router_s_tally_and_an_expert_without_tokens_is_scored() -> None:
    data, model = vectors(), by_hand(unused=2)
    chosen = []
    router: Any = model.get_submodule("blocks.0.router")
    handle = router.register_forward_hook(lambda m, args, out: chosen.append(out.argmax(-1)))
    with torch.no_grad():
        for x in data:
            model(x)
    handle.remove()
    tally = torch.cat(chosen).bincount(minlength=4)
    assert tally[2] == 0
    quantized = to_brevitas(model, as_batches(data), input_quant=Int8ActPerTensorFloat)
    options = (LayerPrecision(4, 8), LayerPrecision(2, 8))
    names = ["blocks.0.first", *(f"blocks.0.experts.{i}.up" for i in range(4))]
    choices = Choices(dict.fromkeys(names, options))
    harm = score(quantized, data, choices, "expert_usage").harm
    assert harm["blocks.0.first"].tolist() == [0, 2]
    total = int(tally.sum())
    for i in range(4):
        wanted = 2 * int(tally[i]) / total
        assert harm[f"blocks.0.experts.{i}.up"].tolist() == pytest.approx([0, wanted])
    for scorer in ("outliers", "structure", "block_predictor:epochs=1"):
        assert set(score(quantized, data, choices, scorer).harm) == set(names)


class Idle(nn.Module):
    """A layer that is never called, and has no quantizer of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.used = qnn.QuantLinear(8, 8, input_quant=Int8ActPerTensorFloat)
        self.idle = qnn.QuantLinear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)


def test_only_scorers_that_look_at_inputs_refuse_a_layer_without_any() -> None:
    model, x = Idle().eval(), torch.randn(4, 8)
    calibrate(model, as_batches([x]))
    options = (LayerPrecision(4, accumulator=16), LayerPrecision(2, accumulator=12))
    choices = Choices({"used": options, "idle": options})
    assert score(model, [x], choices, "expert_usage").harm["idle"].tolist() == [0, 0]
    assert score(model, [x], choices, "structure").harm["idle"].max() > 0
    with pytest.raises(InvalidPlan, match="'idle' has choices, but no calibration batch"):
        score(model, [x], choices, "measured")
