"""The linear layers of solved blocks as QONNX files of their own.

FINN builds integer dot products; it has no LayerNorm, GELU, SiLU or softmax. So what it can take of
a transformer is its linear layers, one subgraph each, and a host computes the rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from brevitas.proxy.runtime_quant import DynamicActQuantProxyFromInjector
from torch import Tensor, nn

from brevitas_axe.blocks.stack import nest
from brevitas_axe.errors import ExportRefused, InvalidOption
from brevitas_axe.export import export_qonnx
from brevitas_axe.layers import Layer, find_layers

# Vectors with which a file is compared with its layer.
_EXAMPLES = 16


class _Single(nn.Module):
    """One layer under its name in the model."""

    def __init__(self, name: str, layer: nn.Module) -> None:
        super().__init__()
        self.name = name
        nest(self, name, layer)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.get_submodule(self.name)(x)


def export_layers(
    model: nn.Module,
    folder: str | Path,
    names: Iterable[str] | None = None,
    *,
    target: str = "finn",
) -> dict[str, Path]:
    """Writes one QONNX file per linear layer: input quantizer, integer weights, bias.

    Args:
        model: as `quantize_blocks` returns it, with static activations.
        folder: for `<layer>.onnx`; each appears whole or not at all.
        names: layers to write, None for all.
        target: see `brevitas_axe.export_qonnx`, which compares every file with its layer.

    Returns:
        File by layer name.

    Raises:
        InvalidOption: a name is no quantized layer.
        ExportRefused: a layer finds its input scale at run time, or as `export_qonnx` says.
    """
    layers: dict[str, Layer] = find_layers(model)
    written: dict[str, Path] = {}
    for name in layers if names is None else names:
        if name not in layers:
            raise InvalidOption(
                f"'{name}' is no quantized layer of the model; it has: {', '.join(layers)}."
            )
        layer = layers[name]
        if isinstance(layer.input_quant, DynamicActQuantProxyFromInjector):
            raise ExportRefused(
                f"layer '{name}' finds its input scale at run time, which QONNX does not have; "
                "quantize with activations='static'."
            )
        generator = torch.Generator().manual_seed(0)
        example = torch.randn(_EXAMPLES, layer.in_features, generator=generator)
        written[name] = Path(folder) / f"{name}.onnx"
        export_qonnx(_Single(name, layer), example, written[name], target=target)
    return written
