"""What the quantizers of a Brevitas model lack when it is given to be solved, completed on a copy.

Activations that were never calibrated have a scale that knows no data. And `return_quant_tensor` is
False by default: a layer then does not learn the scale and the bits of what it reads, though the
integers are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from brevitas.core.scaling import ParameterFromRuntimeStatsScaling
from brevitas.quant_tensor import QuantTensor
from torch import nn
from torch.utils._pytree import tree_leaves

from brevitas_axe.model.layers import find_layers
from brevitas_axe.model.prepare import calibrate
from brevitas_axe.model.rewrites import tensors_in
from brevitas_axe.model.running import Batch, copied, evaluating, hooked, observe_inputs


def completed(
    model: nn.Module, batches: Sequence[Batch], exclude: tuple[str, ...] = ()
) -> nn.Module:
    """A copy with every activation calibrated and telling its integers.

    Where nothing is missing it is the model itself.

    Args:
        model: has quantizers.
        batches: of calibration.
        exclude: names of layers that may read plain numbers.
    """
    if any(map(_is_new, model.modules())):
        model = copied(model)
        parts = [module for module in model.modules() if _is_new(module)]
        with evaluating(model):
            calibrate(model, batches, parts=parts)
    return with_integer_inputs(model, batches[0], exclude)


def _is_new(module: nn.Module) -> bool:
    """Whether this is an activation quantizer that takes its scale from data, and has seen none."""
    quant: Any = getattr(
        getattr(module, "fused_activation_quant_proxy", None), "tensor_quant", None
    )
    scaling = getattr(quant, "scaling_impl", None)
    return isinstance(scaling, ParameterFromRuntimeStatsScaling) and scaling.counter == 0


def with_integer_inputs(model: nn.Module, batch: Batch, exclude: tuple[str, ...] = ()) -> nn.Module:
    """A copy whose activations tell the layers their grids; the model itself where none has to.

    The flag stays set where the model still runs, its outputs are the same numbers of the same
    types, and more layers than before read integers.

    Args:
        model: has quantizers.
        batch: of calibration; inputs are observed in forwards of it.
        exclude: names of layers that may read plain numbers.
    """
    unknown = _unknown(model, batch, exclude)
    if not unknown:
        return model
    telling, expected = copied(model), _output(model, batch)
    try:
        output = _with_telling_activations(telling, batch, plain=not _told(expected))
    except Exception:  # a forward of the user's that expects plain numbers may raise anything
        return model
    same = _told(expected) == _told(output) and _equal(expected, output)
    helps = same and len(_unknown(telling, batch, exclude)) < len(unknown)
    return telling if helps else model


def _with_telling_activations(model: nn.Module, batch: Batch, plain: bool) -> Any:
    """The output, after every activation that is called has its flag set, in place.

    Args:
        model: with quantizers.
        batch: of calibration.
        plain: whether the output shall be plain numbers; activations that only make it are then
            left as they are.
    """
    activations: dict[str, Any] = {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "act_quant") and not getattr(module, "return_quant_tensor", True)
    }
    called: list[str] = []

    def note(name: str, module: Any, *_: Any) -> None:
        module.return_quant_tensor = True
        called.append(name)

    with hooked(activations, before=note):
        output = _output(model, batch)
    while plain and called and _told(output):
        # Those that only make the model's own output are the last ones.
        activations[called.pop()].return_quant_tensor = False
        output = _output(model, batch)
    return output


def _unknown(model: nn.Module, batch: Batch, exclude: tuple[str, ...]) -> list[str]:
    """Names of the layers that read plain numbers."""
    calls = observe_inputs(model, find_layers(model, exclude, tile_scales=True), *batch)
    return [name for name, ranges in calls.items() if None in ranges]


def _output(model: nn.Module, batch: Batch) -> Any:
    args, kwargs = batch
    with evaluating(model), torch.no_grad():
        return model(*args, **kwargs)


def _told(output: Any) -> list[bool]:
    """Which parts of an output are QuantTensors; nothing where none is."""
    told = [isinstance(leaf, QuantTensor) for leaf in tree_leaves(output, is_leaf=_is_quantized)]
    return told if any(told) else []


def _is_quantized(part: Any) -> bool:
    return isinstance(part, QuantTensor)


def _equal(expected: Any, output: Any) -> bool:
    left, right = tensors_in(expected), tensors_in(output)
    return len(left) == len(right) and all(map(torch.equal, left, right))
