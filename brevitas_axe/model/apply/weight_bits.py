"""Bits of integer weights, in place; those of one bit have another grid."""

from __future__ import annotations

import torch
from brevitas.core.quant import IntQuant
from brevitas.core.scaling import IntScaling

from brevitas_axe.model.apply.ranges import write_bits
from brevitas_axe.model.layers import Layer, Proxy
from brevitas_axe.model.quantizers.binary import BinaryIntQuant, OneStep


def is_binary(layer: Layer) -> bool:
    """Whether a layer's weights are -1 and 1."""
    quant = getattr(layer.weight_quant, "tensor_quant", None)
    return isinstance(getattr(quant, "int_quant", None), BinaryIntQuant)


def set_weight_bits(proxy: Proxy, bits: int) -> bool:
    """Sets a proxy's bit width; its scale follows. False where it had that width already.

    Args:
        proxy: of the weights of one layer, of ours or Brevitas's A2Q.
        bits: from 1 on; of one bit are only the weights of our quantizers.
    """
    quant = proxy.tensor_quant
    if int(quant.msb_clamp_bit_width_impl()) == bits:
        return False
    if hasattr(quant, "int_quant"):
        _set_grid(quant, bits)
    with torch.no_grad():
        write_bits(proxy, bits)
    return True


def _set_grid(quant: Proxy, bits: int) -> None:
    """Two levels for one bit, and integers around zero for more."""
    old = quant.int_quant
    if bits == 1:
        quant.int_quant = BinaryIntQuant(old.input_view_impl)
        quant.int_scaling_impl = OneStep()
    elif isinstance(old, BinaryIntQuant):
        quant.int_quant = IntQuant(True, True, old.input_view_impl)
        quant.int_scaling_impl = IntScaling(narrow_range=True, signed=True)
