"""Tiny transformers with random weights, and calibration data for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    ViTConfig,
    ViTModel,
)

VOCABULARY = 50
_TEXT: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
_SHAPE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_MLP: dict[str, Any] = {"intermediate_size": 64}

# Layers per block.
LAYERS = {"llama": 7, "gpt2": 4, "opt": 6, "bert": 6, "vit": 6}


def tiny(kind: str) -> nn.Module:
    """Two blocks of width 32, the same weights each time."""
    torch.manual_seed(0)
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**_TEXT, **_SHAPE, **_MLP, num_key_value_heads=2))
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(**_TEXT, n_embd=32, n_layer=2, n_head=4, n_positions=64))
    if kind == "opt":
        width: dict[str, Any] = {
            "ffn_dim": 64,
            "word_embed_proj_dim": 32,
            "max_position_embeddings": 64,
        }
        return OPTForCausalLM(OPTConfig(**_TEXT, **_SHAPE, **width))
    if kind == "bert":
        return BertModel(BertConfig(**_TEXT, **_SHAPE, **_MLP))
    return ViTModel(ViTConfig(**_SHAPE, **_MLP, image_size=16, patch_size=8))


def batches(kind: str, count: int = 2) -> list[Tensor]:
    """Calibration batches, the same each time."""
    generator = torch.Generator().manual_seed(1)
    if kind == "vit":
        return [torch.randn(4, 3, 16, 16, generator=generator) for _ in range(count)]
    return [torch.randint(0, VOCABULARY, (4, 12), generator=generator) for _ in range(count)]
