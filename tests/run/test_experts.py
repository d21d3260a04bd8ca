"""Mixtures of experts through the whole run: every expert is solved, proven and exported."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from brevitas import nn as qnn
from torch import nn

from brevitas_axe import Run, allocate, load, quantize, save
from brevitas_axe.errors import InvalidOption
from brevitas_axe.export.layers import export_layers
from brevitas_axe.model.experts import fused_experts
from brevitas_axe.plan import LayerPrecision
from brevitas_axe.proof.certificate import certify_file
from brevitas_axe.run import quantize_blocks as quantize_blocks_module
from brevitas_axe.run.quantize_blocks import quantize_blocks
from tests.run.moe import by_hand, fused, tokens, vectors

WIDTHS = LayerPrecision(4, 8, accumulator=14)
PLACE = "model.layers.0.mlp"


@pytest.mark.parametrize("kind", ["mixtral", "qwen"])
def test_fused_experts_are_solved_and_proven_one_by_one(kind: str, tmp_path) -> None:
    model = fused(kind)
    router = copy.deepcopy(model.get_submodule(f"{PLACE}.gate"))
    result = quantize_blocks(model, tokens(), WIDTHS, progress=False)
    result.certificate.require()
    names = [f"{PLACE}.experts.{i}.{p}_proj" for i in range(4) for p in ("gate", "up", "down")]
    assert {*names} <= {entry.name for entry in result.certificate.judged}
    for name in names:
        assert isinstance(result.model.get_submodule(name), qnn.QuantLinear)
    assert f"{PLACE}.gate.forward" in result.floats
    assert not any(isinstance(result.model.get_submodule(n), qnn.QuantLinear) and n in result.floats
                   for n in names)  # fmt: skip
    for mine, theirs in zip(
        result.model.get_submodule(f"{PLACE}.gate").parameters(), router.parameters(), strict=True
    ):
        assert torch.equal(mine, theirs)
    samples = {entry["name"]: entry["samples"] for entry in result.layers}
    gates = [samples[f"{PLACE}.experts.{i}.gate_proj"] for i in range(4)]
    assert sum(gates) == 2 * 3 * 4 * 24  # two experts for each token, all batches
    assert result.model(tokens(1)[0]).logits.isfinite().all()
    if kind == "mixtral":
        files = export_layers(result.model, tmp_path, names[2:3], target="qonnx")
        [entry] = certify_file(files[names[2]], 14).entries
        assert entry.proven
        save(result, tmp_path / "saved")
        again = load(tmp_path / "saved", fused(kind))
        with torch.no_grad():
            wanted, found = (r.model(tokens(1)[0]).logits for r in (result, again))
        assert torch.equal(wanted, found)


def test_quantize_leaves_the_fused_model_alone_and_a_refusal_does_too() -> None:
    model = fused("mixtral")
    result = quantize(model, tokens(1), WIDTHS, quality="fast", solver="gptq", progress=False)
    assert result.certificate.ok
    assert fused_experts(model) == [f"{PLACE}.experts"]
    assert fused_experts(result.model) == []
    with pytest.raises(InvalidOption, match="'nothing' is not in a block"):
        quantize_blocks(model, tokens(1), WIDTHS, exclude=("nothing",), progress=False)
    assert fused_experts(model) == [f"{PLACE}.experts"]


def test_excluded_experts_are_named_among_what_is_left_in_float() -> None:
    exclude = (f"{PLACE}.experts",)
    result = quantize_blocks(
        fused("mixtral"), tokens(1), WIDTHS, exclude=exclude, quality="fast", progress=False
    )
    assert len(result.plan.layers) == 4
    assert {f"{PLACE}.experts.forward", f"{PLACE}.gate.forward"} <= {*result.floats}


def test_experts_by_hand_are_solved_with_the_tokens_that_they_get() -> None:
    model: Any = by_hand(unused=2)
    router = model.blocks[0].router
    result = quantize_blocks(model, vectors(), WIDTHS, progress=False)
    result.certificate.require()
    experts = [f"blocks.{b}.experts.{i}.{p}" for b in (0, 1) for i in range(4)
               for p in ("up", "down")]  # fmt: skip
    assert {*experts, "blocks.0.first", "blocks.1.first"} == {*result.plan.layers}
    assert {"blocks.0.router", "blocks.1.router", "head"} <= {*result.floats}
    assert type(model.blocks[0].router) is nn.Linear
    assert model.blocks[0].router is router
    log = {entry["name"]: entry for entry in result.layers}
    assert log["blocks.0.experts.2.up"]["samples"] == 3 * 4 * 24
    assert "few of its own" in log["blocks.0.experts.2.up"]["statistics"]
    mine = sum(log[f"blocks.0.experts.{i}.up"]["samples"] for i in (0, 1, 3))
    assert mine == 3 * 4 * 24
    assert "statistics" not in log["blocks.0.first"]


def test_experts_that_quantization_leaves_without_tokens_get_shared_ones(monkeypatch) -> None:
    model: Any = by_hand()
    run = model.blocks[0].forward

    def forward(hidden_states: torch.Tensor) -> torch.Tensor:
        router = model.blocks[0].router.weight.data
        kept = router.clone()
        if isinstance(model.blocks[0].first, qnn.QuantLinear) and during:
            router[2] = (router[0] + router[1]) / 2  # never the largest
        try:
            return run(hidden_states)
        finally:
            router.copy_(kept)

    during: list[bool] = []
    model.blocks[0].forward = forward
    before = quantize_blocks_module.solving

    def solving(*args: Any) -> Any:
        during.append(True)
        return before(*args)

    monkeypatch.setattr(quantize_blocks_module, "solving", solving)
    result = quantize_blocks(
        model, vectors(), WIDTHS, solver="gptq", quality="fast", progress=False
    )
    result.certificate.require()
    log = {entry["name"]: entry for entry in result.layers}
    assert log["blocks.0.experts.2.up"]["samples"] == 3 * 4 * 24
    assert "few of its own" in log["blocks.0.experts.2.up"]["statistics"]


@pytest.mark.filterwarnings("ignore:MixtralForCausalLM is quantized layer by layer")
def test_bits_are_allocated_over_fused_experts() -> None:
    model = fused("mixtral")
    found = allocate(
        model,
        tokens(1),
        {"memory": "75%"},
        {"weight": (2, 4), "input": (8,)},
        scorer="expert_usage",
        allocator="search:trials=1",
        exclude=("lm_head",),
        run=Run(progress=False),
    )
    experts = {n: p.weight for n, p in found.plan.layers.items() if ".experts." in n}
    assert len(experts) == 12
    assert set(experts.values()) == {2, 4}
    assert not any(name.endswith(".gate") for name in found.plan.layers)
    assert found.costs["memory"] <= found.problem.budgets["memory"]
    assert fused_experts(model) == [f"{PLACE}.experts"]
