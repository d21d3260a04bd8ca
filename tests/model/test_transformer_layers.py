"""torch's own transformer layers compute the same by their parts, and can be quantized."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from brevitas_axe.model.transformer_layers import in_parts
from brevitas_axe.run.quantize import quantize

SIZES = {"d_model": 16, "nhead": 4, "dim_feedforward": 32, "batch_first": True}
CAUSAL = nn.Transformer.generate_square_subsequent_mask(6)
PADDING = torch.arange(6) >= torch.tensor([[6], [4], [5], [3]])


def inputs(count: int = 4) -> Tensor:
    return torch.randn(count, 6, 16, generator=torch.Generator().manual_seed(0))


def layer(kind: type[nn.Module] = nn.TransformerEncoderLayer, **options) -> nn.Module:
    torch.manual_seed(0)
    return kind(**SIZES, **options)


def encoder(**options) -> nn.TransformerEncoder:
    one = layer(**options)
    return nn.TransformerEncoder(one, 2, nn.LayerNorm(16), enable_nested_tensor=False)


def transformer() -> nn.Transformer:
    return nn.Transformer(**SIZES, num_encoder_layers=1, num_decoder_layers=1)


X, Y = inputs(), 2 * inputs().flip(1) - 1
CASES = {
    "layer": (layer, (X,), {}),
    "norm first": (lambda: layer(norm_first=True, activation="gelu"), (X,), {}),
    "masks": (layer, (X,), {"src_mask": CAUSAL, "src_key_padding_mask": PADDING.float() * -9}),
    "causal": (encoder, (X,), {"mask": CAUSAL, "is_causal": True}),
    "padding": (encoder, (X,), {"src_key_padding_mask": PADDING}),
    "decoder": (lambda: layer(nn.TransformerDecoderLayer), (X, Y), {"tgt_mask": CAUSAL}),
    "decoder, norm first": (
        lambda: layer(nn.TransformerDecoderLayer, norm_first=True),
        (X, Y),
        {"memory_key_padding_mask": PADDING},
    ),
    "whole": (transformer, (X, Y), {"tgt_mask": CAUSAL, "src_key_padding_mask": PADDING}),
}


@pytest.mark.parametrize("case", CASES)
def test_parts_compute_what_torch_computes(case) -> None:
    make, args, kwargs = CASES[case]
    torch.manual_seed(0)
    model = make().double().eval()
    args = tuple(x.double() for x in args)
    kwargs = {
        key: mask.double() if isinstance(mask, Tensor) and mask.is_floating_point() else mask
        for key, mask in kwargs.items()
    }
    parts = in_parts(copy.deepcopy(model))
    assert type(parts).__module__ == "brevitas_axe.model.transformer_layers"
    wanted, given = model(*args, **kwargs), parts(*args, **kwargs)
    torch.testing.assert_close(given, wanted, rtol=0, atol=1e-12)


class Net(nn.Module):
    """Two streams, and a decoder that attends to the other one."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = transformer()
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(self.transformer(x, y).mean(1))


def test_an_encoder_and_a_decoder_are_quantized_on_the_graph_and_proven() -> None:
    torch.manual_seed(0)
    net, batch = Net().eval(), (inputs(24), -inputs(24).flip(1))
    widths = {"weight_bit_width": 8, "input_bit_width": 8, "accumulator_bit_width": 20}
    result = quantize(net, [batch], quality="fast", progress=False, **widths)
    names = {each.name for each in result.certificate.entries}
    joint = "transformer.decoder.layers.0.multihead_attn"
    assert {f"{joint}.q_proj", f"{joint}.k_proj", f"{joint}.v_proj"} <= names
    assert "transformer.decoder.layers.0.self_attn.in_proj" in names
    assert result.certificate.ok
    with torch.no_grad():
        wanted, given = net(*batch), result.model(*batch)
    assert (wanted - given).norm() < 0.05 * wanted.norm()
