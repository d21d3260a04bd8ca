"""Blocks whose attention products are integers within an accumulator."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from brevitas_axe import finetune, load, save
from brevitas_axe.errors import AccumulatorTooNarrow, InvalidOption, UnsupportedLayer
from brevitas_axe.model.attention_products import attention_products, products_plan
from brevitas_axe.run.quantize import quantize
from tests.run.solved import P, solve
from tests.run.tiny import batches, tiny


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "vit"])
def test_both_products_of_every_attention_are_proven(kind: str) -> None:
    result = solve(kind, attention="quantized")
    proven = {entry.name: entry for entry in result.certificate.require().judged}
    planned = products_plan(result.model).layers
    assert len(planned) == 4
    for name, widths in planned.items():
        entry = proven[name]
        # Head size 8; 12 tokens, or 4 patches and the class token.
        assert entry.inputs == (8 if name.endswith("scores") else {"vit": 5}.get(kind, 12))
        assert widths.accumulator == entry.target == P
        signed = name.endswith("scores")
        left = 2 ** (widths.input - 1) if signed else 2**widths.input - 1
        worst = entry.inputs * left * 2 ** (widths.weight - 1)
        # Scores are largest where both integers are the most negative ones.
        assert (entry.maximum if signed else -entry.minimum) == worst <= 2 ** (P - 1) - 1
    assert "attention products: Plan(4 layers" in repr(result)


def test_a_saved_result_has_its_products_again(tmp_path: Path) -> None:
    result = solve("vit", attention="quantized")
    again = load(save(result, tmp_path / "saved"), tiny("vit"))
    assert products_plan(again.model) == products_plan(result.model)
    x = batches("vit")[0]
    with torch.no_grad():
        mine, other = (r.model(x).last_hidden_state for r in (result, again))
    assert torch.equal(mine, other)
    assert again.certificate.require().ok


def test_products_keep_their_proof_in_training() -> None:
    result = solve("vit", attention="quantized")
    tuned = finetune(
        result,
        batches("vit"),
        epochs=1,
        loss=lambda output, _: output.last_hidden_state.square().mean(),
        progress=False,
    )
    proven = {entry.name: entry for entry in tuned.certificate.require().judged}
    assert {proven[name].target for name in products_plan(result.model).layers} == {P}


def test_by_default_attention_stays_in_float() -> None:
    assert not attention_products(solve("vit").model)


def test_what_cannot_be_is_refused_by_name() -> None:
    with pytest.raises(AccumulatorTooNarrow, match=r"layers?\.0\.attention.*scores"):
        solve("vit", attention="quantized", accumulator_bit_width=4, tile_size=None)
    eager = tiny("vit")
    eager.set_attn_implementation("eager")
    with pytest.raises(UnsupportedLayer, match="attn_implementation='sdpa'"):
        solve(eager, attention="quantized")
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
    for field in ("attention", "outside"):
        with pytest.raises(InvalidOption, match=f"'{field}' .*solved as a whole"):
            quantize(net, [torch.randn(8, 4)], progress=False, **{field: "quantized"})
