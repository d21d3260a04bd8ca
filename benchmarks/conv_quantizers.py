"""Brevitas layers for the convolutional benchmarks, and the folding of their batch norms.

Every convolution and linear layer quantizes its own input, unsigned, since all of them follow a
ReLU (or take an image in 0..1). Both branches of a residual addition pass through one shared signed
8-bit quantizer; no dot product reads its output, so its width does not vary with the inputs'.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import brevitas.nn as qnn
from arms import FixedScaleWeight
from brevitas.graph.quantize import layerwise_quantize
from brevitas.quant import Int8ActPerTensorFloat, Uint8ActPerTensorFloat
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval


class Join(nn.Identity):
    """Marks where the branches of a residual addition share a quantizer."""


def folded(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode with each batch norm folded into the convolution before it.

    "Before" is the order of registration within one parent module.
    """
    model = deepcopy(model).eval()
    for parent in list(model.modules()):
        previous = ""
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                fused = fuse_conv_bn_eval(getattr(parent, previous), child)
                setattr(parent, previous, fused)
                setattr(parent, name, nn.Identity())
            previous = name
    return model


def quantized(
    model: nn.Module, weight_bits: int, input_bits: int, in_float: Sequence[str] = ()
) -> nn.Module:
    """A copy of a folded model in Brevitas layers, not yet calibrated.

    Args:
        model: float network without batch norms.
        weight_bits: of every layer, one scale per channel.
        input_bits: of every layer, one static scale, unsigned.
        in_float: names of layers that stay as they are.
    """
    options = {
        "weight_quant": FixedScaleWeight,
        "weight_bit_width": weight_bits,
        "input_quant": Uint8ActPerTensorFloat,
        "input_bit_width": input_bits,
    }
    layers = {
        nn.Conv2d: (qnn.QuantConv2d, options),
        nn.Linear: (qnn.QuantLinear, options),
        Join: (qnn.QuantIdentity, {"act_quant": Int8ActPerTensorFloat}),
    }
    return layerwise_quantize(deepcopy(model), layers, name_blacklist=list(in_float))
