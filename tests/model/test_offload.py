"""Blocks on the disk: the same integers, and a model that still runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from brevitas_axe.errors import InvalidOption
from brevitas_axe.model.layers import find_layers, integer_weight
from brevitas_axe.model.offload import bring_in, send_out
from brevitas_axe.model.stack import find_blocks
from brevitas_axe.run.quantize_blocks import quantize_blocks
from tests.elsewhere import DEVICE, Elsewhere, ElsewhereTensor
from tests.run.tiny import batches, tiny

OPTIONS = {"accumulator_bit_width": 14, "quality": "fast", "progress": False}


def devices(model: torch.nn.Module) -> set[str]:
    blocks = find_blocks(model).values()
    return {p.device.type for block in blocks for p in block.parameters()}


@pytest.mark.parametrize("from_disk", [False, True])
def test_solved_blocks_leave_memory(tmp_path: Path, from_disk: bool) -> None:
    model: Any = tiny("llama").eval()
    data = batches("llama")
    if from_disk:
        model.save_pretrained(tmp_path / "model")
        places = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb"), "cpu")
        model = AutoModelForCausalLM.from_pretrained(
            tmp_path / "model",
            device_map={**places, "lm_head": "cpu", "model.layers": "disk"},
            offload_folder=tmp_path / "waiting",
        )
        assert devices(model) == {"meta"}
    wanted = quantize_blocks(tiny("llama"), data, **OPTIONS)
    result = quantize_blocks(model, data, **OPTIONS, offload=tmp_path / "solved")
    assert devices(result.model) == {"meta"}
    assert result.certificate.entries == wanted.certificate.entries
    with torch.no_grad():
        assert torch.equal(result.model(data[0]).logits, wanted.model(data[0]).logits)


def stored(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Integers of a model whose blocks are on the disk."""
    for block in find_blocks(model).values():
        bring_in(block)
    return {name: integer_weight(name, layer)[0] for name, layer in find_layers(model).items()}


def test_what_another_run_left_in_the_folder_is_replaced(tmp_path: Path) -> None:
    data = batches("opt")
    quantize_blocks(tiny("opt"), data, quality="fast", progress=False, offload=tmp_path)
    narrow = {**OPTIONS, "accumulator_bit_width": 12}
    wanted = stored(quantize_blocks(tiny("opt"), data, **narrow).model)
    result = quantize_blocks(tiny("opt"), data, **narrow, offload=tmp_path)
    result.certificate.require()
    found = stored(result.model)
    assert all(torch.equal(found[name], weight) for name, weight in wanted.items())


def test_weights_come_in_where_their_block_runs(tmp_path: Path) -> None:
    layer = torch.nn.Linear(3, 2)
    wanted = layer.weight.detach().clone()
    send_out(layer, tmp_path)
    hook: Any = layer._hf_hook
    for one in hook.hooks:
        one.execution_device = DEVICE
    with Elsewhere():
        bring_in(layer)
        assert isinstance(layer.weight.data, ElsewhereTensor)
        assert torch.equal(layer.weight.data.cpu(), wanted)
    assert not hasattr(layer, "_hf_hook")


def test_an_offload_that_cannot_be_is_refused_before_any_work(tmp_path: Path, monkeypatch) -> None:
    model = tiny("llama")
    (tmp_path / "file").touch()
    with pytest.raises(InvalidOption, match="is a file"):
        quantize_blocks(model, batches("llama"), **OPTIONS, offload=tmp_path / "file")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(InvalidOption, match="needs accelerate"):
        quantize_blocks(model, batches("llama"), **OPTIONS, offload=tmp_path)
    assert not find_layers(model)
