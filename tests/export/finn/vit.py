"""A tiny vision transformer whose dot products are all integers, and pictures for it."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

from brevitas_axe import quantize
from brevitas_axe.run.result import QuantizeResult

P = 14
# Query, key, value, both products, output, two layers of the MLP; patch embedding and classifier.
PRODUCTS = 8 + 2


class Classifier(nn.Module):
    """Pictures [n, 3, 8, 8] to logits [n, 3]; nothing of it is zero or one, as trained ones are."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        image = {"image_size": 8, "patch_size": 4, "num_labels": 3}
        self.vit = ViTForImageClassification(ViTConfig(**shape, **image, intermediate_size=32))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.4)

    def forward(self, x: Tensor) -> Tensor:
        return self.vit(x).logits


def pictures(count: int) -> Tensor:
    """The same ones each time."""
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@cache
def solved() -> QuantizeResult:
    """Solved, not to be changed."""
    return quantize(
        Classifier().eval(),
        [pictures(8)],
        accumulator_bit_width=P,
        weight_bit_width=4,
        input_bit_width=6,
        attention="quantized",
        outside="quantized",
        quality="fast",
        progress=False,
    )
