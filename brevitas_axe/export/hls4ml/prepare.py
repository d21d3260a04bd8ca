"""From an ordinary PyTorch net to a Brevitas model that hls4ml computes to the last bit.

`to_brevitas` traces, folds batch norms and shares residual quantizers. Here every scale becomes a
power of two and every bias a multiple of its accumulator's unit, as fixed-point types require.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from brevitas.inject.enum import RestrictValueType
from brevitas.proxy import BiasQuantProxyFromInjector
from brevitas.proxy.runtime_quant import ActQuantProxyFromInjectorBase
from brevitas.quant import Int16Bias
from torch import nn

from brevitas_axe.errors import ExportRefused
from brevitas_axe.export.hls4ml.check import check_hls4ml
from brevitas_axe.export.qonnx import export_qonnx
from brevitas_axe.model.layers import find_layers
from brevitas_axe.model.prepare import as_batches, calibrate, one_sample, to_brevitas
from brevitas_axe.model.quantizers import Int8WeightPerChannelFixedPointAXE
from brevitas_axe.model.running import check_runs, evaluating


def prepare_for_hls4ml(
    model: nn.Module,
    calibration: Iterable[Any],
    *,
    weight_bit_width: int = 4,
    input_bit_width: int = 4,
    model_input_bit_width: int = 8,
    weight_quant: type = Int8WeightPerChannelFixedPointAXE,
) -> nn.Module:
    """Makes a calibrated fixed-point Brevitas model that `check_hls4ml` accepts from a plain net.

    Args:
        model: a plain PyTorch model of linear layers, 1-D and 2-D convolutions, ReLU, batch norm,
            pooling, additions and concatenations; not modified.
        calibration: batches, see `brevitas_axe.model.prepare.as_batches`.
        weight_bit_width: bits of all weights.
        input_bit_width: bits of all activations but the model's input.
        model_input_bit_width: bits of the model's input.
        weight_quant: Brevitas weight quantizer, with power-of-two scales.

    Returns:
        A Brevitas model in evaluation mode, for `quantize`, `finetune` and `export_hls4ml`.

    Raises:
        ExportRefused: something is left that hls4ml cannot build; one sentence with the way out.
    """
    batches = as_batches(calibration, model)
    with evaluating(model):
        check_runs(model, batches[0])
    prepared = to_brevitas(
        model,
        batches,
        weight_bit_width=weight_bit_width,
        input_bit_width=input_bit_width,
        model_input_bit_width=model_input_bit_width,
        weight_quant=weight_quant,
        fine_sums=False,
    )
    bias_quant: Any = Int16Bias
    proxies = [m for m in prepared.modules() if isinstance(m, ActQuantProxyFromInjectorBase)]
    for proxy in proxies:
        if proxy.is_quant_enabled:
            power = RestrictValueType.POWER_OF_TWO
            injector: Any = proxy.quant_injector
            proxy.quant_injector = injector.let(restrict_scaling_type=power)
            proxy.init_tensor_quant()
    for layer in find_layers(prepared).values():
        if layer.bias is not None:
            layer.bias_quant = BiasQuantProxyFromInjector(layer, bias_quant)
    calibrate(prepared.train(), batches)
    prepared.eval()
    for module in prepared.modules():
        # Brevitas's calibration leaves a quantizer that two modules share disabled.
        if hasattr(module, "observer_only"):
            vars(module)["observer_only"] = False
    args, kwargs = one_sample(batches[0])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_qonnx(prepared, (*args, *kwargs.values()), path, target="qonnx")
        refused = check_hls4ml(path)
    if refused:
        raise ExportRefused(refused[0].sentence)
    return prepared
