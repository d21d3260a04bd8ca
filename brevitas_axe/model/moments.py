"""Second moments of a layer's inputs, as the solvers need them."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor, nn

from brevitas_axe.errors import EmptyCalibration, NonFiniteValues, UnsupportedLayer
from brevitas_axe.model.layers import Layer, unroll_input, unroll_weight

# Numbers in a chunk of unrolled inputs: few enough to bound memory and to stay in the cache.
_CHUNK = 2**20
# On other devices fewer and larger products are faster.
_CHUNK_ELSEWHERE = 2**24
# Samples per input from which on the error of a layer's inputs is made up for in full.
ENOUGH = 10


class Statistics(TypedDict):
    """The moments among the fields of `LayerProblem`, by the same names."""

    hessian: Tensor
    cross: Tensor | None
    quant_mean: Tensor | None
    float_mean: Tensor | None


class Moments:
    """Running sums over samples of X~X~^T, X~X^T and the means.

    Args:
        name: layer name, for messages.
        layer: the layer whose inputs are collected.
        cross: collect X~X^T too; needs the float inputs.
        columns: K, where the inputs of several linear layers stand side by side; else the layer's.
    """

    def __init__(self, name: str, layer: Layer, cross: bool, columns: int | None = None) -> None:
        groups, _, own = unroll_weight(layer, layer.weight).shape
        columns = own if columns is None else columns
        self.name, self.layer = name, layer
        self.samples = 0

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(groups, *shape, dtype=torch.float64, device=layer.weight.device)

        self._hessian = zeros(columns, columns)
        self._cross = zeros(columns, columns) if cross else None
        self._quant_sum, self._float_sum = zeros(columns), zeros(columns)

    def add(self, quant_input: Tensor, float_input: Tensor | None = None) -> None:
        """Adds one batch of layer inputs (dequantized, and float where cross is collected).

        Products are summed in float32 within a batch and in float64 over batches.

        Raises:
            UnsupportedLayer: other samples reach the layer in the float model.
        """
        inputs = [quant_input] if self._cross is None else [quant_input, float_input]
        if float_input is not None and inputs[-1].shape != quant_input.shape:
            raise UnsupportedLayer(
                f"layer '{self.name}' gets other samples in the quantized model than in the float "
                "one, as where data decides which layer reads them; exclude it by name, or use "
                "quality='fast' and solver='gptq', which does not compare the two."
            )
        inputs = [_batched(self.layer, x) for x in inputs]
        kernel = torch.Size(getattr(self.layer, "kernel_size", ())).numel()
        most = _CHUNK if inputs[0].device.type == "cpu" else _CHUNK_ELSEWHERE
        step = max(1, most * inputs[0].shape[0] // (inputs[0].numel() * kernel + 1))
        hessian, cross = torch.zeros(()), torch.zeros(())
        for chunk in zip(*(x.split(step) for x in inputs), strict=True):
            quant, *real = (_columns(self.layer, x) for x in chunk)
            self.samples += quant.shape[-1]
            self._quant_sum += quant.sum(-1)
            hessian = _accumulated(hessian, quant, quant)
            if real:
                self._float_sum += real[0].sum(-1)
                cross = _accumulated(cross, quant, real[0])
        self._hessian += hessian
        if self._cross is not None:
            self._cross += cross

    def finish(self, dtype: torch.dtype = torch.float32, shrink: bool = False) -> Statistics:
        """Means over samples: hessian, cross [groups, K, K] and quant_mean, float_mean [groups, K].

        Weights that make up for the error of their inputs are a regression with K unknowns. From K
        samples or fewer it learns these by heart, and is wrong for all others.

        Args:
            dtype: of the matrices.
            shrink: with K samples or fewer the float inputs count as equal to the quantized ones,
                and from `ENOUGH` K samples on in full.

        Raises:
            EmptyCalibration: nothing was added.
            NonFiniteValues: an input was NaN or infinite.
        """
        if self.samples == 0:
            raise EmptyCalibration(
                f"no calibration sample runs through layer '{self.name}'; feed batches that do, or "
                "exclude the layer by name."
            )
        sums = (self._hessian,) if self._cross is None else (self._hessian, self._cross)
        if not all(bool(torch.isfinite(total).all()) for total in sums):
            raise NonFiniteValues(
                f"the calibration inputs of layer '{self.name}' contain NaN or infinity; clean the "
                "data or the layers before it."
            )
        per_input = self.samples / self._hessian.shape[-1]
        share = min(max((per_input - 1) / (ENOUGH - 1), 0.0), 1.0) if shrink else 1.0
        cross, float_sum = self._cross, self._float_sum
        if cross is not None and share < 1:
            cross = self._hessian.lerp(cross, share)
            float_sum = self._quant_sum.lerp(float_sum, share)
        return {
            "hessian": (self._hessian / self.samples).to(dtype),
            "cross": None if cross is None else (cross / self.samples).to(dtype),
            "quant_mean": self._quant_sum / self.samples,
            "float_mean": None if cross is None else float_sum / self.samples,
        }


def _batched(layer: Layer, x: Tensor) -> Tensor:
    """Samples first, so that a batch can be split."""
    x = x.detach()
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1])
    return x.unsqueeze(0) if x.dim() == len(layer.kernel_size) + 1 else x


def _columns(layer: Layer, x: Tensor) -> Tensor:
    """[groups, K, samples × positions] in float32 (float64 stays)."""
    x = x if x.dtype == torch.float64 else x.float()
    return unroll_input(layer, x)


def _accumulated(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Total + left right^T, in place after the first time."""
    return total.baddbmm_(left, right.mT) if total.dim() else left @ right.mT
