"""The range of a layer's input, as its weight quantizer has seen it."""

from __future__ import annotations

import torch
from brevitas.quant_tensor import FloatQuantTensor, IntQuantTensor
from torch import Tensor, nn

from brevitas_axe.accumulator import InputRange
from brevitas_axe.errors import MissingInputQuantizer
from brevitas_axe.model.layers import Layer, input_range


class ObservedInput(nn.Module):
    """Mix-in for a weight quantizer: the widest range of integers that its layer's input has had.

    Floating-point numbers count as integers on their finest grid. The range is part of the state
    dict.
    """

    input_low: Tensor
    input_high: Tensor

    def begin_observing(self) -> None:
        """Makes the buffers; both 0 mean that no quantized input has been observed yet."""
        self.register_buffer("input_low", torch.zeros((), dtype=torch.int64))
        self.register_buffer("input_high", torch.zeros((), dtype=torch.int64))

    @property
    def input_range(self) -> InputRange | None:
        """Widest range of input integers seen, None before the first quantized input."""
        # Read at every call: averaged and parallel copies of a model write into the buffers.
        low, high = int(self.input_low), int(self.input_high)
        return InputRange(low, high) if high > low else None

    def set_input_range(self, input_range: InputRange | None) -> None:
        """Replaces the observed range; None resets it (after narrowing the activations)."""
        self.input_low.fill_(input_range.low if input_range else 0)
        self.input_high.fill_(input_range.high if input_range else 0)

    def observe(self, quant_input: Tensor | IntQuantTensor | FloatQuantTensor | None) -> InputRange:
        """Widens the range by this input's and returns it.

        Raises:
            MissingInputQuantizer: neither this input nor an earlier one was quantized.
        """
        known = self.input_range
        layer: Layer = self.tracked_module_list[0]  # type: ignore[index]
        if isinstance(quant_input, IntQuantTensor | FloatQuantTensor):
            seen = input_range(quant_input, layer)
            wider = seen if known is None else known.union(seen)
            if wider != known:
                self.set_input_range(wider)
            return wider
        if known is None:
            raise MissingInputQuantizer(
                f"the input of {described(layer)} is not quantized to "
                "integers, so its accumulator cannot be bounded; give the layer an input_quant, "
                "or feed it a QuantTensor (return_quant_tensor=True of the activation before it)."
            )
        return known


def described(layer: Layer) -> str:
    """A layer by its class and shape, where its name is not known."""
    return f"{type(layer).__name__}{tuple(layer.weight.shape)}"
