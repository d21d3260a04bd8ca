"""Compares an exported file with its model by running both.

Float rounding differs between two programs in the last bit. Where a number lies next to the middle
of two levels, that turns one integer of a quantizer, and the integers behind it: of a deep net two
right programs give different outputs for most inputs. So the outputs are compared first, and where
they differ, quantizer by quantizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import onnx
import torch
from brevitas.proxy.runtime_quant import ActQuantProxyFromInjectorBase
from torch import Tensor, nn

from brevitas_axe.errors import ExportRefused
from brevitas_axe.export.execution import Execution
from brevitas_axe.model.rewrites import tensors_in
from brevitas_axe.model.running import evaluating

_TOLERANCE = 1e-4
# Outputs are compared on the example inputs times these factors, until they agree on one.
_NEARBY = tuple(1 - step / 64 for step in range(4))
_MORE_NEARBY = tuple(1 - step / 64 for step in range(16))
# Share of a quantizer's integers that float rounding may turn, and error of a value in levels.
_TURNED, _LEVEL = 1e-3, 1e-2


def check_output(model: nn.Module, args: tuple, proto: onnx.ModelProto) -> None:
    """The file must compute what the model computes.

    Args:
        model: with quantizers that are calibrated.
        args: inputs of its forward.
        proto: the file; its own inputs are the same in the same order.

    Raises:
        ExportRefused: outputs differ by more than 1e-4 of the largest on several inputs; and some
            quantizer differs in more than rare integers next to each other when all before it have
            the model's, or the outputs still differ then.
    """
    execution = Execution(proto)
    least = _least_error(execution, lambda nearby: _outputs(model, nearby), args, proto, _NEARBY)
    if least <= _TOLERANCE:
        return
    with _quantized_values(model) as values:
        expected = _outputs(model, args)
    settled = _Settled(values)
    error = _error(execution(_feeds(execution, args), settled), expected, proto)
    if settled.other or not error <= _TOLERANCE:  # NaN is refused
        raise ExportRefused(
            "the exported file computes something else than the model (difference "
            f"{least:.3g}); please report the model's layers."
        )


def check_rewritten(plain: onnx.ModelProto, args: tuple, rewritten: onnx.ModelProto) -> None:
    """A file whose quantizers were moved must compute what it did before.

    Args:
        plain: before, compared with its model already.
        args: inputs.
        rewritten: afterwards.

    Raises:
        ExportRefused: their outputs differ by more than 1e-4 of the largest on all nearby inputs.
    """
    before = Execution(plain)

    def wanted(nearby: tuple) -> list[np.ndarray]:
        found = before(_feeds(before, nearby))
        return [found[item.name] for item in plain.graph.output]

    least = _least_error(Execution(rewritten), wanted, args, rewritten, _MORE_NEARBY)
    if not least <= _TOLERANCE:  # NaN is refused
        raise ExportRefused(
            "the file in the form that FINN builds computes something else than the model "
            f"(difference {least:.3g}); export with the target qonnx, and please report the "
            "model's layers."
        )


def _least_error(
    execution: Execution,
    wanted: Callable[[tuple], list[np.ndarray]],
    args: tuple,
    proto: onnx.ModelProto,
    shares: tuple[float, ...],
) -> float:
    """The error on the first inputs that agree, else the least one.

    Args:
        execution: of the file.
        wanted: inputs → what its outputs should be.
        args: example inputs.
        proto: the file.
        shares: of the inputs that are tried; whole numbers are tried as they are.
    """
    errors = []
    for share in shares if any(arg.is_floating_point() for arg in args) else shares[:1]:
        nearby = tuple(arg * share if arg.is_floating_point() else arg for arg in args)
        errors.append(_error(execution(_feeds(execution, nearby)), wanted(nearby), proto))
        if errors[-1] <= _TOLERANCE:
            return errors[-1]
    return min(errors)


def _feeds(execution: Execution, args: tuple) -> dict[str, np.ndarray]:
    return {name: arg.cpu().numpy() for name, arg in zip(execution.inputs, args, strict=True)}


def _outputs(model: nn.Module, args: tuple) -> list[np.ndarray]:
    with evaluating(model), torch.no_grad():
        return [output.cpu().numpy() for output in tensors_in(model(*args))]


def _error(
    found: Mapping[str, np.ndarray], expected: list[np.ndarray], proto: onnx.ModelProto
) -> float:
    """Largest difference between outputs, relative to outputs larger than 1."""
    errors = []
    for output, item in zip(expected, proto.graph.output, strict=True):
        scale = max(1.0, float(np.abs(output).max()))
        errors.append(float(np.abs(found[item.name] - output).max()) / scale)
    return float(np.max(errors))  # NaN stays NaN


@contextmanager
def _quantized_values(model: nn.Module) -> Iterator[list[np.ndarray]]:
    """What every call of an activation quantizer gives while the context is open."""
    values: list[np.ndarray] = []

    def note(_: nn.Module, __: tuple, output: Tensor) -> None:
        values.append(tensors_in(output)[0].detach().cpu().numpy())

    handles = [
        module.register_forward_hook(note)
        for module in model.modules()
        if isinstance(module, ActQuantProxyFromInjectorBase) and module.is_quant_enabled
    ]
    try:
        yield values
    finally:
        for handle in handles:
            handle.remove()


class _Settled:
    """Gives the quantizers of a file the integers of the model where rounding alone turned some.

    A result belongs to a call of the model's quantizers where it has its shape and its values but
    for a share of 1e-3, which are one level away. What is wrong in a file changes more of them, or
    all by a part of a level.

    Args:
        values: of the model's quantizers.

    Attributes:
        other: quantizers whose result belongs to no call.
    """

    def __init__(self, values: list[np.ndarray]) -> None:
        self._values, self.other = list(values), 0

    def __call__(self, found: np.ndarray, step: np.ndarray) -> np.ndarray:
        for index, wanted in enumerate(self._values):
            if wanted.shape == found.shape and _rounding_alone(found, wanted, step):
                return self._values.pop(index)
        self.other += 1
        return found


def _rounding_alone(found: np.ndarray, wanted: np.ndarray, step: np.ndarray) -> bool:
    """Whether two results of a quantizer differ in rare integers that are next to each other."""
    levels = np.abs(found.astype(np.float64) - wanted) / step
    turned = np.abs(levels - 1) <= _LEVEL
    allowed = max(1, int(_TURNED * levels.size))
    return bool(turned.sum() <= allowed) and bool(np.all(turned | (levels <= _LEVEL)))
