"""Attention products that multiply integers."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brevitas_axe.model.attention_calls import Product, find_attention
from brevitas_axe.model.attention_products import (
    AttentionProducts,
    attention_products,
    connected,
    put_products,
)
from brevitas_axe.model.running import float_twin


def operands(keys: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    query = torch.randn(2, 4, 5, 8, dtype=torch.float64)
    return query, *(torch.randn(2, 4, keys, 8, dtype=torch.float64) for _ in range(2))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": 0.3},
        {"is_causal": True},
        {"attn_mask": torch.arange(7) < torch.tensor([[1], [3], [4], [7], [2]])},
        {"attn_mask": torch.linspace(-2, 0, 35, dtype=torch.float64).view(5, 7)},
    ],
    ids=["plain", "scale", "causal", "bool", "added"],
)
def test_without_quantizers_it_is_the_function_of_torch(options: dict) -> None:
    given = operands()
    found = float_twin(AttentionProducts(8))(*given, **options)
    torch.testing.assert_close(found, F.scaled_dot_product_attention(*given, **options))


def test_heads_that_share_keys_are_the_same_too() -> None:
    query, key, value = operands()
    given = query, key[:, :2], value[:, :2]
    found = float_twin(AttentionProducts(8))(*given, enable_gqa=True)
    expected = F.scaled_dot_product_attention(*given, enable_gqa=True)
    torch.testing.assert_close(found, expected)


class Net(nn.Module):
    """One module that computes attention, inside another."""

    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x)

    def __init__(self) -> None:
        super().__init__()
        self.attention = self.Attention()

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x)


def test_the_module_that_calls_attention_is_found_with_both_lengths() -> None:
    net, x = Net(), operands()[0]
    found = find_attention(net, lambda: net(x))
    assert list(found) == ["attention"]
    scores, context = found["attention"].values()
    # 2 samples and 4 heads have 5 queries each, of size 8.
    name = "attention.attention_products"
    assert scores == Product(f"{name}.scores", 8, 5, 2 * 4 * 5, signed=True)
    assert context == Product(f"{name}.context", 5, 8, 2 * 4 * 5, signed=False)


def test_products_answer_in_copies_and_once_they_are_connected_again() -> None:
    net, x = Net().eval(), operands()[0].float()
    plain = net(x)
    put_products(net.attention, AttentionProducts(2).eval())
    given = net(x)
    assert not torch.equal(given, plain)
    torch.testing.assert_close(copy.deepcopy(net)(x), given)
    torch.testing.assert_close(connected(net)(x), given)
    bare = Net().eval()
    bare.attention.add_module("attention_products", net.attention.attention_products)
    assert torch.equal(bare(x), plain)
    torch.testing.assert_close(connected(bare)(x), given)
    assert list(attention_products(bare)) == ["attention.attention_products"]


def test_products_that_were_taken_away_answer_no_more() -> None:
    net, x = Net().eval(), operands()[0].float()
    plain = net(x)
    put_products(net.attention, AttentionProducts(2).eval())
    del net.attention.attention_products
    assert torch.equal(net(x), plain)
