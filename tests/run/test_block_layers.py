from __future__ import annotations

import pytest
import torch
from brevitas import nn as qnn

from brevitas_axe.model.stack import Alone, find_blocks, left_in_float, record_calls, with_hidden
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.recipe import Recipe, Run
from brevitas_axe.run.block_layers import BlockLayers
from brevitas_axe.run.quantize_blocks import quantize_blocks
from tests.run.tiny import LAYERS, batches, tiny


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(
    "transforms",
    [
        *((), ("smooth",), ("rotate",), ("rotate", "smooth:strength=0.3")),
        ("shift_scale:front=true", "channel_clip", "constant_token", "noisy:mode=shift"),
    ],
    ids=str,
)
def test_outputs_are_those_of_the_float_block(kind: str, transforms: tuple[str, ...]) -> None:
    model, data = tiny(kind).eval(), batches(kind)
    if kind != "vit":
        data[-1] = data[-1][:, :9]  # sequences of another length
    blocks = find_blocks(model)
    name, block = next(iter(blocks.items()))
    with torch.no_grad():
        hidden, calls = record_calls(model, blocks, [((x,), {}) for x in data])
        alone = Alone(name, block)
        full = [with_hidden(c, h) for c, h in zip(calls[0], hidden, strict=True)]
        pairs = list(zip(full, full, strict=True))
        wanted = [alone(*pair) for pair in pairs]
        plan = Plan.uniform(left_in_float(alone), LayerPrecision(4, 8))
        given, widths, _ = BlockLayers(Recipe(transforms=transforms), plan).apply(alone, pairs)
    assert len(widths.layers) == LAYERS[kind]
    for mine, theirs in zip(given, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
    layers = [m for m in alone.modules() if isinstance(m, qnn.QuantLinear)]
    assert len(layers) == LAYERS[kind]
    assert alone(*pairs[0]).isfinite().all()
    assert not torch.equal(alone(*pairs[0]), wanted[0])


def test_methods_of_several_rooms_are_proven_together() -> None:
    data = batches("llama")
    for batch in data:
        batch[:, 0] = 7  # every text begins with the same token
    recipe = Recipe(
        transforms=("shift_scale", "constant_token:gain=0", "noisy"),
        inputs="two_region",
        solver="gptq",
        quality="fast",
    )
    widths, run = LayerPrecision(4, 4, accumulator=14), Run(progress=False)
    result = quantize_blocks(tiny("llama"), data, widths, recipe, run=run)
    result.certificate.require()
    assert {entry.target for entry in result.certificate.judged} == {14}
    [said] = result.certificate.assumptions[:1]
    assert said.startswith("token 0 of every input of")
    with torch.no_grad():
        assert result.model(data[0]).logits.isfinite().all()
