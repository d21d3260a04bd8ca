"""From an ordinary PyTorch CNN to a Brevitas model that FINN builds.

`to_brevitas` traces, folds batch norms and shares residual quantizers. What else FINN needs
is done here, by steps that preserve the function: averages over windows become depthwise
convolutions with equal weights, and quantizers move from behind a Flatten to before it.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from brevitas import nn as qnn
from brevitas.graph.per_input import AdaptiveAvgPoolToAvgPool
from brevitas.graph.utils import replace_module
from torch import nn
from torch.fx import Node

from brevitas_axe.errors import ExportRefused
from brevitas_axe.export.finn.check import check_finn
from brevitas_axe.export.finn.finding import Finding
from brevitas_axe.export.qonnx import export_qonnx
from brevitas_axe.model.prepare import as_batches, one_sample, to_brevitas
from brevitas_axe.model.rewrites import same_function
from brevitas_axe.model.running import Batch, Graph, check_runs, evaluating, first_input, hooked

_FLATTENS = (torch.flatten, torch.reshape, "flatten", "reshape", "view")


def prepare_for_finn(
    model: nn.Module,
    calibration: Iterable[Any],
    *,
    weight_bit_width: int = 4,
    input_bit_width: int = 4,
    model_input_bit_width: int = 8,
) -> nn.Module:
    """Makes a calibrated Brevitas model that `check_finn` accepts from a plain CNN.

    Args:
        model: a plain PyTorch model of convolutions, linear layers, ReLU, batch norm, pooling,
            additions and concatenations; not modified.
        calibration: batches, see `brevitas_axe.model.prepare.as_batches`.
        weight_bit_width: bits of all weights.
        input_bit_width: bits of all activations but the model's input; FINN takes at most 8.
        model_input_bit_width: bits of the model's input.

    Returns:
        A Brevitas model in evaluation mode, for `brevitas_axe.quantize` and `export_qonnx`.

    Raises:
        ExportRefused: something is left that FINN cannot build; one sentence with the way out.
    """
    batches = as_batches(calibration, model)
    bits = (weight_bit_width, input_bit_width, model_input_bit_width)
    prepared = made_for_finn(model, batches, *bits)
    refuse_for_finn(prepared, batches[0])
    return prepared


def made_for_finn(
    model: nn.Module,
    batches: Sequence[Batch],
    weight_bit_width: int = 4,
    input_bit_width: int = 4,
    model_input_bit_width: int = 8,
) -> nn.Module:
    """`prepare_for_finn` before FINN's refusals."""
    with evaluating(model):
        check_runs(model, batches[0])
    plain = copy.deepcopy(model).eval()
    averaged = _with_window_averages(copy.deepcopy(plain), batches[0])
    if not same_function(plain, averaged, batches[0]):
        warnings.warn(
            "writing averages over windows as convolutions would change what the model computes, "
            "so it was left out.",
            stacklevel=3,
        )
        averaged = plain
    prepared = to_brevitas(
        averaged,
        batches,
        weight_bit_width=weight_bit_width,
        input_bit_width=input_bit_width,
        model_input_bit_width=model_input_bit_width,
        fine_sums=False,
    )
    for module in prepared.modules():
        # Brevitas's calibration leaves a quantizer that two modules share disabled.
        if hasattr(module, "observer_only"):
            vars(module)["observer_only"] = False
    if hasattr(prepared, "graph"):  # traced, not quantized layer by layer
        _quantize_before_flatten(prepared)
    return prepared


def refuse_for_finn(model: nn.Module, batch: Batch) -> None:
    """Raises ExportRefused where FINN cannot build a calibrated Brevitas model, solved or not."""
    refused = [found for found in findings_for_finn(model, batch) if found.severity != "tie"]
    if refused:
        raise ExportRefused(refused[0].sentence)


def findings_for_finn(model: nn.Module, batch: Batch, *, notes: bool = False) -> list[Finding]:
    """All that `check_finn` finds in a calibrated Brevitas model, with or without its notes."""
    args, kwargs = one_sample(batch)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_qonnx(model, (*args, *kwargs.values()), path, target="qonnx")
        return check_finn(path, notes=notes)


def _with_window_averages(model: nn.Module, batch: Batch) -> nn.Module:
    """Replaces averages over windows by depthwise convolutions; those over the image stay."""
    args, kwargs = batch
    adaptive = AdaptiveAvgPoolToAvgPool()
    adaptive.register_hooks(model)
    with torch.no_grad():
        model(*args, **kwargs)
    for module in list(adaptive.input_size_map):
        if module.output_size in (1, (1, 1)):
            del adaptive.input_size_map[module]
    adaptive.replace_modules(model, global_avgpool_unit_stride=False)
    adaptive.cleanup()
    channels: dict[nn.Module, int] = {}

    def note(_: str, pool: nn.Module, args: tuple, kwargs: dict) -> None:
        channels[pool] = int(first_input(args, kwargs).shape[1])

    pools = {n: module for n, module in model.named_modules() if isinstance(module, nn.AvgPool2d)}
    with hooked(pools, before=note), torch.no_grad():
        model(*args, **kwargs)
    for pool, count in channels.items():
        if _is_plain(pool):
            replace_module(model, pool, _as_convolution(pool, count))
    return model


def _is_plain(pool: Any) -> bool:
    """True if every window has the same number of pixels."""
    whole = pool.count_include_pad or pool.padding in (0, (0, 0))
    return whole and pool.divisor_override is None and not pool.ceil_mode


def _as_convolution(pool: Any, channels: int) -> nn.Conv2d:
    options = {"stride": pool.stride, "padding": pool.padding, "groups": channels, "bias": False}
    convolution = nn.Conv2d(channels, channels, pool.kernel_size, **options)
    nn.init.constant_(convolution.weight, 1 / convolution.weight[0].numel())
    return convolution.eval()


def _is_dropout(node: Node, model: Graph) -> bool:
    """Whether a node is a dropout of single numbers that nothing else reads."""
    called = model.get_submodule(str(node.target)) if node.op == "call_module" else None
    return type(called) is nn.Dropout and len(node.users) == 1


def _quantize_before_flatten(model: Graph) -> None:
    """Flatten → quantizer becomes quantizer → flatten: the same values, and FINN builds it.

    A dropout between them moves along.
    """
    for node in list(model.graph.nodes):
        if node.op != "call_module" or not isinstance(
            model.get_submodule(node.target), qnn.QuantIdentity
        ):
            continue
        flat, between = node.args[0], [node]
        while _is_dropout(flat, model):
            between.append(flat)
            flat = flat.args[0]
        if flat.target not in _FLATTENS or len(flat.users) != 1 or flat.args[0].op == "placeholder":
            continue
        moved = flat.args[0]
        with model.graph.inserting_before(flat):
            for each in reversed(between):
                moved = model.graph.call_module(each.target, (moved,))
        flat.replace_input_with(flat.args[0], moved)
        node.replace_all_uses_with(flat)
        for each in between:
            model.graph.erase_node(each)
    model.recompile()
