"""Layers whose weights are not their own are refused in one sentence with the way out."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from brevitas_axe import BlocksResult
from brevitas_axe.errors import UnsupportedLayer
from brevitas_axe.model.plain import acts_as_linear, check_plainly_written, plain_classes
from brevitas_axe.run.allocate import allocate
from brevitas_axe.run.quantize import quantize
from brevitas_axe.run.quantize_blocks import quantize_blocks


def model() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))


WAYS = {
    "prune.remove": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "remove_parametrizations.layer, 'weight'": parametrizations.weight_norm,
    "remove_parametrizations": parametrizations.spectral_norm,
    "remove_spectral_norm": torch.nn.utils.spectral_norm,
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("way", WAYS)
def test_weights_computed_from_others_are_refused(way) -> None:
    net = model()
    WAYS[way](net[2])
    with pytest.raises(UnsupportedLayer, match=f"layer '2'.*{way}"):
        quantize(net, [torch.rand(8, 1, 8, 8)], progress=False)
    check_plainly_written(model())


class Derived(nn.TransformerEncoderLayer):
    """A layer of the user's own."""


def test_what_is_derived_from_torch_s_transformer_layers_is_refused() -> None:
    net, x = nn.Sequential(Derived(16, 4, 32, batch_first=True)), [torch.randn(8, 6, 16)]
    with pytest.raises(UnsupportedLayer, match="layer '0', a Derived"):
        quantize(net, x, progress=False)


def test_blocks_of_torch_s_own_are_taken_apart_by_quantize_alone() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    net = nn.Sequential(nn.Linear(16, 16), nn.TransformerEncoder(layer, 2))
    with pytest.raises(UnsupportedLayer, match=r"brevitas_axe\.quantize takes it apart"):
        quantize_blocks(net, [torch.randn(8, 6, 16)], progress=False)


HIDING = {
    "TorchScript": torch.jit.script,
    "model._orig_mod": lambda net: torch.compile(net, backend="eager"),
    "model.module": nn.DataParallel,
    "torch.export": lambda net: torch.export.export(net, (torch.rand(8, 1, 8, 8),)).module(),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("says", HIDING)
def test_models_that_hide_their_layers_are_refused(says) -> None:
    hidden = HIDING[says](model().eval())
    images = [torch.rand(8, 1, 8, 8)]
    with pytest.raises(UnsupportedLayer, match=says):
        quantize(hidden, images, progress=False)
    with pytest.raises(UnsupportedLayer, match=says):
        allocate(hidden, images, {"bops": 1e9})
    with pytest.raises(UnsupportedLayer, match=says):
        quantize_blocks(hidden, images, progress=False)


def test_a_layer_alone_is_refused_with_the_way_out() -> None:
    with pytest.raises(UnsupportedLayer, match=r"single Linear.*nn\.Sequential\(model\)"):
        quantize(nn.Linear(4, 2), [torch.rand(8, 4)], progress=False)


class OwnForward(nn.Linear):
    """As Falcon writes it."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        product = input @ self.weight.T
        return product if self.bias is None else product + self.bias


class Clipped(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input.clamp(-20, 20))


class Scaled(OwnForward):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("scale", torch.ones(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_layer_with_a_forward_of_its_own_is_one_where_it_computes_the_same(
    dtype, bias
) -> None:
    layer = OwnForward(24, 8, bias=bias).to(dtype)
    assert acts_as_linear(layer)
    assert type(plain_classes(nn.Sequential(layer)).get_submodule("0")) is nn.Linear
    for other in (Clipped(24, 8), Scaled(24, 8), nn.Linear(24, 8)):
        assert not acts_as_linear(other)


def test_such_layers_of_blocks_are_quantized_block_by_block() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.layer = nn.LayerNorm(8), OwnForward(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.layer(self.norm(x))

    torch.manual_seed(0)
    net = nn.Sequential(nn.Sequential(Block(), Block()), nn.Linear(8, 2)).eval()
    x = torch.randn(16, 4, 8)
    result = quantize(net, [x], accumulator_bit_width=16, quality="fast", progress=False)
    assert isinstance(result, BlocksResult)
    assert result.certificate.ok
    assert len(result.plan.layers) == 2
    assert type(net.get_submodule("0.0.layer")) is OwnForward
