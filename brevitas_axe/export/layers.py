"""The linear layers of solved blocks as QONNX files of their own.

FINN builds integer dot products; of the functions between them it builds layer norm and softmax in
float32, and GELU, SiLU, sigmoid and tanh for Versal devices only. So what it takes of a transformer
everywhere is its linear layers, one subgraph each, and a host computes the rest.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path

import torch
from brevitas.proxy.runtime_quant import DynamicActQuantProxyFromInjector
from torch import Tensor, nn

from brevitas_axe.errors import ExportRefused, InvalidOption
from brevitas_axe.export import export_qonnx
from brevitas_axe.export.qonnx import Target
from brevitas_axe.model.layers import Layer, find_layers
from brevitas_axe.model.offload import bring_in
from brevitas_axe.model.stack import nest


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
    target: Target = "finn",
) -> dict[str, Path]:
    """Writes one QONNX file per linear layer: input quantizer, integer weights, bias.

    A file takes one vector, [1, inputs], as FINN's streams do. Modules in front of a layer in the
    model are not in its file: behind `rotate` and `smooth` the host must rotate and scale the
    vector first, as the modules around the layer do (Brevitas's `RotatedModule`,
    `EqualizedModule`).

    Args:
        model: as `quantize_blocks` returns it, with static activations, on any device or offloaded;
            it is not changed.
        folder: for `<layer>.onnx`; each appears whole or not at all.
        names: layers to write, None for all.
        target: see `brevitas_axe.export_qonnx`, which compares every file with its layer.

    Returns:
        File by layer name.

    Raises:
        InvalidOption: a name is no quantized layer.
        ExportRefused: a layer computes its input scale at run time, or as `export_qonnx` says.
    """
    layers = find_layers(model)
    wanted = list(layers if names is None else names)
    unknown = next((name for name in wanted if name not in layers), None)
    if unknown is not None:
        raise InvalidOption(
            f"'{unknown}' is no quantized layer of the model; it has: {', '.join(layers)}."
        )
    written: dict[str, Path] = {}
    for name in wanted:
        layer = on_cpu(layers[name])
        if isinstance(layer.input_quant, DynamicActQuantProxyFromInjector):
            raise ExportRefused(
                f"layer '{name}' computes its input scale at run time, which QONNX does not have; "
                "quantize with activations='static'."
            )
        example = torch.randn(1, layer.in_features, generator=torch.Generator().manual_seed(0))
        written[name] = _inside(Path(folder), name)
        export_qonnx(_Single(name, layer), example.to(layer.weight), written[name], target=target)
    return written


def _inside(folder: Path, name: str) -> Path:
    """The file of a layer; raises ExportRefused for a name outside the folder."""
    path = folder / f"{name}.onnx"
    if path.resolve().parent != folder.resolve():
        raise ExportRefused(
            f"layer '{name}' has a name that leads outside the folder {folder}; rename the module."
        )
    return path


def on_cpu(layer: Layer) -> Layer:
    """A copy of a layer in the CPU's memory, whichever device or disk the layer is on."""
    layer = copy.deepcopy(layer)
    bring_in(layer)
    return layer.cpu()
