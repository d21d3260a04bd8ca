"""Blocks that `quantize_blocks` solved train on, without labels, and stay proven."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from brevitas_axe.errors import InvalidOption
from brevitas_axe.model.layers import find_layers, integer_weight
from brevitas_axe.run.finetune import accumulator_plan, distillation, finetune
from brevitas_axe.run.quantize_blocks import quantize_blocks
from tests.run.tiny import LAYERS, batches, tiny

P, TILE = 12, 16


def solved(kind: str):
    """Float model and the result of its solve."""
    model = tiny(kind).eval()
    teacher = copy.deepcopy(model)
    widths = {"accumulator_bit_width": P, "tile_size": TILE, "quality": "fast"}
    return teacher, quantize_blocks(model, batches(kind), progress=False, **widths)


def followed(teacher, kind: str):
    """Distillation where there are logits, else the error of the last hidden state."""
    if kind in ("llama", "gpt2", "opt"):
        return distillation(teacher, weight=1.0)

    def loss(output, batch):
        with torch.no_grad():
            wanted = teacher(batch).last_hidden_state
        return F.mse_loss(output.last_hidden_state, wanted)

    return loss


@pytest.mark.parametrize("kind", LAYERS)
def test_a_solved_transformer_follows_its_float_model(kind: str) -> None:
    teacher, result = solved(kind)
    tuned = finetune(
        result.model,
        batches(kind),
        epochs=6,
        learning_rate=5e-3,
        loss=followed(teacher, kind),
        exclude=result.floats,
        progress=False,
    )
    losses = [entry["loss"] for entry in tuned.history[1:]]
    assert losses[-1] < losses[0]
    assert tuned.certificate.ok
    plan = accumulator_plan(tuned.model)
    assert all(plan[name].accumulator == P for name in result.plan.layers)
    moved = 0
    before = find_layers(result.model)
    for name, layer in find_layers(tuned.model).items():
        q = integer_weight(name, layer)[0].squeeze(0)
        moved += int((q != integer_weight(name, before[name])[0].squeeze(0)).sum())
        for tile in q.split(TILE, -1):
            # Inputs from -128 to 127, the worst of them on either side.
            positive, negative = tile.clamp(min=0).sum(-1), -tile.clamp(max=0).sum(-1)
            worst = torch.maximum(127 * positive + 128 * negative, 128 * positive + 127 * negative)
            assert int(worst.max()) <= 2 ** (P - 1) - 1
    assert moved > 0


def test_scales_of_tiles_train_on_too() -> None:
    model, data = tiny("llama").eval(), batches("llama")
    result = quantize_blocks(
        copy.deepcopy(model),
        data,
        accumulator_bit_width=P,
        tile_size=TILE,
        tile_scales=True,
        quality="fast",
        progress=False,
    )
    options = {"epochs": 4, "learning_rate": 5e-3, "penalty": 1e-4, "progress": False}
    tuned = finetune(result, data, loss=distillation(model, weight=1.0), **options)
    losses = [entry["loss"] for entry in tuned.history[1:]]
    assert losses[-1] < losses[0]
    assert tuned.certificate.ok
    assert tuned.plan == result.plan


def test_what_stays_in_float_must_be_named_and_exist() -> None:
    teacher, result = solved("llama")
    options = {"epochs": 1, "loss": distillation(teacher, weight=1.0), "progress": False}
    with pytest.raises(InvalidOption, match="no_such_layer"):
        finetune(result.model, batches("llama"), exclude=("no_such_layer",), **options)
