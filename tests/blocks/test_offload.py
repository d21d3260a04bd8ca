"""Blocks on the disk: the same integers, and a model that still runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from brevitas_axe.blocks import find_blocks, quantize_blocks
from brevitas_axe.errors import InvalidOption
from tests.blocks.tiny import batches, tiny

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


def test_without_accelerate_one_sentence_says_how(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(InvalidOption, match="needs accelerate"):
        quantize_blocks(tiny("llama"), batches("llama"), **OPTIONS, offload=tmp_path)
