"""Tiny mixtures of experts with random weights: fused as transformers has them, and by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

from tests.run.tiny import VOCABULARY

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
}


def fused(kind: str, blocks: int = 1) -> nn.Module:
    """One block or more of width 16 with four experts, the same weights each time."""
    torch.manual_seed(0)
    shape = {**_SHAPE, "num_hidden_layers": blocks}
    if kind == "mixtral":
        return MixtralForCausalLM(MixtralConfig(**shape, num_local_experts=4)).eval()
    moe: dict[str, Any] = {"moe_intermediate_size": 24, "shared_expert_intermediate_size": 24}
    return Qwen2MoeForCausalLM(
        Qwen2MoeConfig(**shape, **moe, num_experts=4, num_experts_per_tok=2)
    ).eval()


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 24), nn.Linear(24, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu())


class Routed(nn.Module):
    """A block whose tokens each go to one of four experts."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.first = nn.LayerNorm(width), nn.Linear(width, width)
        self.router = nn.Linear(width, 4, bias=False)
        self.experts = nn.ModuleList(Mlp(width) for _ in range(4))

    def forward(self, hidden_states: Tensor) -> Tensor:
        x = torch.tanh(self.first(self.norm(hidden_states))).flatten(0, 1)
        weight, chosen = self.router(x).softmax(-1).max(-1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero()[:, 0]
            if len(rows):
                out.index_add_(0, rows, expert(x[rows]) * weight[rows, None])
        return hidden_states + out.view_as(hidden_states)


class ByHand(nn.Module):
    """Two blocks with experts, written by hand."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Routed(width) for _ in range(2))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def by_hand(unused: int | None = None) -> nn.Module:
    """The same weights each time; the router of the first block never chooses one expert."""
    torch.manual_seed(0)
    model: Any = ByHand().eval()
    if unused is not None:
        rows = model.blocks[0].router.weight.data
        rows[unused] = (rows[unused - 1] + rows[unused - 2]) / 2  # never the largest
    return model


def tokens(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, VOCABULARY, (4, 24), generator=generator) for _ in range(count)]


def vectors(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 24, 16, generator=generator) for _ in range(count)]
