"""Fused experts as named linear layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from brevitas_axe.errors import UnsupportedLayer
from brevitas_axe.model.experts import experts_to_linears, fused_experts
from tests.run.moe import fused, tokens

PLACE = "model.layers.0.mlp.experts"


@pytest.mark.parametrize("kind", ["mixtral", "qwen"])
@torch.no_grad()
def test_the_rewrite_computes_the_same_in_float64(kind: str) -> None:
    model: Any = fused(kind).double()
    model.config._experts_implementation = "eager"  # the others know no float64
    [x] = tokens(1)
    assert fused_experts(model) == [PLACE]
    before = model(x).logits
    memory = model.get_submodule(PLACE).get_parameter("down_proj").data_ptr()
    undo = experts_to_linears(model)
    assert fused_experts(model) == []
    assert (model(x).logits - before).abs().max() <= 1e-12 * before.abs().max()
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and PLACE in n]
    assert names[:3] == [f"{PLACE}.0.{kind}_proj" for kind in ("gate", "up", "down")]
    assert len(names) == 12
    first: Any = model.get_submodule(f"{PLACE}.0.down_proj")
    assert first.weight.data_ptr() == memory  # no copy
    first.weight.data[0, 0] += 1
    assert not torch.equal(model(x).logits, before)
    undo()
    assert fused_experts(model) == [PLACE]


def test_a_form_that_is_not_known_is_refused_by_name() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_up_proj = nn.Parameter(torch.zeros(2, 4, 4))

    model = nn.Sequential(nn.Linear(4, 4), Experts())
    with pytest.raises(UnsupportedLayer, match=r"'1' \(Experts\).*exclude=\('1',\)"):
        experts_to_linears(model)
    experts_to_linears(model, exclude=("1",))
    assert fused_experts(model) == ["1"]
    other: Any = fused("mixtral")
    kind = type(other.get_submodule(PLACE))

    class Shifted(kind):
        def forward(self, *args: Any) -> Any:
            return super().forward(*args) + 1

    other.get_submodule(PLACE).__class__ = Shifted
    with pytest.raises(UnsupportedLayer, match=r"Shifted.*would stay in float"):
        experts_to_linears(other)  # it gives something else
