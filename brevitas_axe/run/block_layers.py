"""How the linear layers of a block become Brevitas layers.

Everything that changes a block before its solve is Brevitas's own: SmoothQuant
(`activation_equalization_mode`), Hadamard rotations (`LayerwiseActivationRotation`), the layers
and their calibration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from brevitas import nn as qnn
from brevitas.graph.calibrate import calibration_mode
from brevitas.graph.equalize import LayerwiseActivationRotation, activation_equalization_mode
from brevitas.graph.quantize import layerwise_quantize
from brevitas.quant import Int8ActPerTensorFloat, ShiftedUint8ActPerTensorFloat
from torch import Tensor, nn

from brevitas_axe.errors import InvalidOption
from brevitas_axe.model.quantizers import (
    Int8DynamicActPerTensorFloat,
    Int8DynamicActPerTokenFloat,
    Int8WeightPerChannelFloatAXE,
    Int8WeightPerTileFloatAXE,
    ShiftedUint8DynamicActPerTensorFloat,
    ShiftedUint8DynamicActPerTokenFloat,
)
from brevitas_axe.model.stack import Alone, Call, to_linears

# (name of the choice, symmetric) to the quantizer of a layer's input.
INPUT_QUANTIZERS = {
    ("static", True): Int8ActPerTensorFloat,
    ("static", False): ShiftedUint8ActPerTensorFloat,
    ("dynamic", True): Int8DynamicActPerTensorFloat,
    ("dynamic", False): ShiftedUint8DynamicActPerTensorFloat,
    ("per_token", True): Int8DynamicActPerTokenFloat,
    ("per_token", False): ShiftedUint8DynamicActPerTokenFloat,
}


@dataclass(frozen=True)
class Recipe:
    """What `quantize_blocks` takes of the same names.

    Raises:
        InvalidOption: an unknown choice, weights of one bit, or a strength outside [0, 1].
    """

    weight_bit_width: int = 4
    input_bit_width: int = 8
    activations: str = "static"
    symmetric: bool = True
    smooth: float | None = None
    rotate: bool = False
    exclude: tuple[str, ...] = ()
    scale_tile: int | None = None

    def __post_init__(self) -> None:
        if (self.activations, self.symmetric) not in INPUT_QUANTIZERS:
            choices = dict.fromkeys(name for name, _ in INPUT_QUANTIZERS)
            raise InvalidOption(
                f"activations '{self.activations}' is unknown; choose from {', '.join(choices)}."
            )
        if self.weight_bit_width < 2:
            raise InvalidOption(
                "weights need 2 bits or more; symmetric ones of one bit are all zero."
            )
        if self.smooth is not None and not 0 <= self.smooth <= 1:
            raise InvalidOption(f"smooth lies between 0 and 1, but it is {self.smooth}.")

    def apply(self, alone: Alone, calls: Sequence[tuple[Call, Call]]) -> list[Tensor]:
        """Quantizes and calibrates one block, in place, without gradients.

        Args:
            alone: the float block.
            calls: what reaches it, quantized and float, batch by batch; float calls calibrate.

        Returns:
            The float block's outputs, batch by batch.
        """
        to_linears(alone)
        excluded = list(self.exclude)
        if self.rotate:
            LayerwiseActivationRotation(blacklist_layer=excluded).apply(alone)
        if self.smooth is not None:
            mode: Any = activation_equalization_mode(alone, self.smooth, blacklist_layers=excluded)
            # Brevitas keeps the maxima of every position: batches had to be of one length.
            mode.graph_act_eq.scale_fn = _channel_maxima
            with mode:
                for pair in calls:
                    alone(*pair)
        layerwise_quantize(alone, {nn.Linear: (qnn.QuantLinear, self._options())}, excluded)
        with calibration_mode(alone):
            return [alone(*pair) for pair in calls]

    def _options(self) -> dict:
        options = {
            "weight_quant": Int8WeightPerChannelFloatAXE,
            "weight_bit_width": self.weight_bit_width,
            "weight_accumulator_bit_width": None,
            "input_quant": INPUT_QUANTIZERS[self.activations, self.symmetric],
            "input_bit_width": self.input_bit_width,
        }
        if self.scale_tile is not None:
            options["weight_quant"] = Int8WeightPerTileFloatAXE
            options["weight_group_size"] = self.scale_tile
        return options


def _channel_maxima(inp: Tensor, dim: int = 0) -> Tensor:
    """Largest magnitude of each channel; [batch, ..., K] to [1, ..., K] without the batch."""
    leading = tuple(range(inp.dim() - 1))
    return inp.abs().amax(leading, keepdim=True).squeeze(dim)
