"""How the linear layers of a block become Brevitas layers: transforms, quantizers, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from brevitas import nn as qnn
from brevitas.graph.calibrate import calibration_mode
from brevitas.graph.quantize import layerwise_quantize
from torch import Tensor, nn

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.inputs.protocol import InputQuantizer, input_quantizer
from brevitas_axe.methods.inputs.static import static
from brevitas_axe.methods.transforms.linears import linears
from brevitas_axe.methods.transforms.protocol import Transform
from brevitas_axe.model.quantizers import Int8WeightPerChannelFloatAXE, Int8WeightPerTileFloatAXE
from brevitas_axe.model.stack import Alone, Call
from brevitas_axe.plan import LayerPrecision


@dataclass(frozen=True)
class BlockLayers:
    """What the layers of a block are to be.

    Attributes:
        weight_bit_width: of every layer.
        input_bit_width: of every layer.
        inputs: method of the room `inputs`.
        symmetric: inputs have no zero point.
        transforms: methods of the room `transforms`, in this order; `linears` always comes first.
        exclude: names of layers that stay in float.
        scale_tile: inputs that share a weight scale; None for all of an output.

    Raises:
        InvalidOption: weights of one bit.
    """

    weight_bit_width: int = 4
    input_bit_width: int = 8
    inputs: InputQuantizer = static
    symmetric: bool = True
    transforms: tuple[Transform, ...] = ()
    exclude: tuple[str, ...] = ()
    scale_tile: int | None = None

    def __post_init__(self) -> None:
        if self.weight_bit_width < 2:
            raise InvalidOption(
                "weights need 2 bits or more; symmetric ones of one bit are all zero."
            )

    def apply(self, alone: Alone, calls: Sequence[tuple[Call, Call]]) -> list[Tensor]:
        """Quantizes and calibrates one block, in place, without gradients.

        Args:
            alone: the float block.
            calls: what arrives at it, quantized and float, batch by batch; float calls calibrate.

        Returns:
            The float block's outputs, batch by batch.
        """
        widths = LayerPrecision(self.weight_bit_width, self.input_bit_width)
        for transform in (linears, *self.transforms):
            method: Any = transform
            excluding = replace(method, exclude=(*method.exclude, *self.exclude))
            excluding(alone, [(pair, {}) for pair in calls], widths)
        layer_map = {nn.Linear: (qnn.QuantLinear, self._options())}
        layerwise_quantize(alone, layer_map, list(self.exclude))
        with calibration_mode(alone):
            return [alone(*pair) for pair in calls]

    def _options(self) -> dict:
        options = {
            "weight_quant": Int8WeightPerChannelFloatAXE,
            "weight_bit_width": self.weight_bit_width,
            "weight_accumulator_bit_width": None,
            "input_quant": input_quantizer(self.inputs, self.symmetric),
            "input_bit_width": self.input_bit_width,
        }
        if self.scale_tile is not None:
            options["weight_quant"] = Int8WeightPerTileFloatAXE
            options["weight_group_size"] = self.scale_tile
        return options
