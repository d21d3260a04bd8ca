"""Weight proxy that keeps an accumulator budget in every forward."""

from __future__ import annotations

from typing import Any, cast

import torch
from brevitas import config
from brevitas.core.zero_point import ZeroZeroPoint
from brevitas.proxy import WeightQuantProxyFromInjector
from brevitas.quant_tensor import GroupwiseIntQuantTensor, IntQuantTensor, QuantTensor
from torch import Tensor, nn

from brevitas_axe.accumulator import check_bit_width, tile_starts
from brevitas_axe.errors import AccumulatorTooNarrow, UnsupportedLayer
from brevitas_axe.model.layers import Layer, unroll_weight
from brevitas_axe.model.proxies.observed import ObservedInput, described
from brevitas_axe.model.proxies.projected import ProjectedIntegers
from brevitas_axe.model.proxies.projection import Budget

_LOW_PRECISION = (torch.float16, torch.bfloat16)


class AccumulatorAwareWeightQuantProxy(ObservedInput, WeightQuantProxyFromInjector):
    """Quantizes as its Brevitas injector says, then keeps every dot product inside ±(2^(P-1)-1).

    Tiles that fit pass bit for bit; the others are projected (`ProjectedIntegers`). The budget
    follows the widest range of integers that the layer's input has had so far (a module may be
    called with several inputs); that range is part of the state dict.

    Attributes:
        accumulator_bit_width: P; None leaves the weights unconstrained.
        accumulator_tile_size: inputs per inner accumulator; None means the whole dot product.
    """

    def __init__(self, quant_layer: nn.Module, quant_injector: Any) -> None:
        super().__init__(quant_layer, quant_injector)
        self.accumulator_bit_width: int | None = quant_injector.accumulator_bit_width
        self.accumulator_tile_size: int | None = quant_injector.accumulator_tile_size
        if self.accumulator_bit_width is not None:
            self.accumulator_bit_width = check_bit_width(self.accumulator_bit_width)
        tile_starts(1, self.accumulator_tile_size)
        self.begin_observing()
        self._cached_budget: Budget | None = None
        self._anew: str | None = None
        self.register_load_state_dict_post_hook(reset_scale)

    @property
    def scale_tile(self) -> int | None:
        """Inputs of a row that share one scale, None where the whole row does."""
        return None

    def per_weight(self, scale: Tensor) -> Tensor:
        """A scale of this quantizer, broadcastable to the weights."""
        return scale

    @property
    def requires_quant_input(self) -> bool:
        return True

    def retrieve_attribute(self, attribute: str):
        """Scale, zero point or bit width: no input is needed, as the budget changes neither."""
        if not self.is_quant_enabled or self._cached_weight is not None:
            return super().retrieve_attribute(attribute)
        weight = self.tracked_parameter_list[0]
        return getattr(self.create_quant_tensor(self.tensor_quant(weight)), attribute)

    def forward(
        self, x: Tensor, quant_input: Tensor | IntQuantTensor | None = None
    ) -> Tensor | QuantTensor:
        width = self.accumulator_bit_width
        if not self.is_quant_enabled or self.export_mode or width is None:
            return super().forward(x)
        budget = Budget(self.observe(quant_input), width, self.accumulator_tile_size)
        if self.training or budget != self._cached_budget:
            self._cached_weight = None
        if self._cached_weight is not None:
            return self._cached_weight.quant_tensor
        # Half precision is not precise enough for w/scale to round to the same 8-bit integers.
        wide = x.float() if x.dtype in _LOW_PRECISION else x
        # Autocast would do the division or the sums in half precision.
        with torch.autocast(x.device.type, enabled=False):
            value, scale, zero_point, bit_width = self._projected(wide, budget)
        value = value.to(x.dtype)
        if self.skip_create_quant_tensor:
            return value
        parts: Any = value, scale, zero_point, bit_width  # Brevitas annotates a tuple of one
        out = self.create_quant_tensor(parts)
        # A cache of the scale alone would save nothing: the budget needs the integers.
        scale_alone = self.cache_inference_quant_weight_metadata_only
        if self.cache_inference_quant_weight and not scale_alone and not self.training:
            self._cached_budget = budget
            self._cached_weight = self.cache_class(out.detach(), metadata_only=False)
        return out

    def _projected(self, x: Tensor, budget: Budget) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Brevitas's quantizer, step by step; the integers are projected before they are scaled."""
        layer, quant = self.tracked_module_list[0], self.tensor_quant
        if not isinstance(quant.zero_point_impl, ZeroZeroPoint):
            raise UnsupportedLayer(
                f"{described(layer)} has asymmetric weights, which hardware multiplies "
                "unshifted; use a symmetric weight quantizer."
            )
        bit_width = quant.msb_clamp_bit_width_impl()
        scale = quant.scaling_impl(x, quant.int_scaling_impl(bit_width))
        zero_point = quant.zero_point_impl(x, scale, bit_width)
        low = int(quant.int_quant.min_int(bit_width))
        high = int(quant.int_quant.max_int(bit_width))
        size = self.per_weight(scale)
        ratio = x / size
        rounded = quant.int_quant.float_to_int_impl(ratio)
        if int(bit_width) == 1:
            _check_fits(cast(Layer, layer), budget)
        integers = ProjectedIntegers.apply(rounded, ratio.detach(), size, layer, low, high, budget)
        return integers * size, scale, zero_point, bit_width

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ) -> None:
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        self._cached_weight = None
        self._anew = None if any(key.startswith(prefix) for key in state_dict) else prefix
        ours = (f"{prefix}input_low", f"{prefix}input_high")
        # A checkpoint of another quantizer knows neither; one without one of them is broken.
        if config.IGNORE_MISSING_KEYS or not any(key in state_dict for key in ours):
            missing_keys[:] = [key for key in missing_keys if key not in ours]


def reset_scale(proxy: AccumulatorAwareWeightQuantProxy, keys: Any) -> None:
    """Computes the scale from loaded weights, where a checkpoint of another quantizer has none."""
    if proxy._anew is not None:
        keys.missing_keys[:] = [k for k in keys.missing_keys if not k.startswith(proxy._anew)]


def _check_fits(layer: Layer, budget: Budget) -> None:
    """Raises AccumulatorTooNarrow where weights of -1 and 1, which cannot shrink, are too many."""
    columns = unroll_weight(layer, layer.weight.detach()).shape[-1]
    count = budget.tile_size_in(columns)
    if count * (budget.norm_cost + budget.imbalance_cost) > budget.bound:
        raise AccumulatorTooNarrow(
            f"{described(layer)} has weights of one bit, never 0, and {count} of them do not fit "
            f"an accumulator of {budget.accumulator_bit_width} bits; give it a wider one or "
            "smaller tiles, or the weights 2 bits."
        )


class TileScaledWeightQuantProxy(AccumulatorAwareWeightQuantProxy):
    """The same for a linear layer with one scale per tile of each row (`group_size` inputs).

    Every inner accumulator still adds integers of one scale; their results are scaled and added.
    """

    @property
    def scale_tile(self) -> int:
        return self.quant_injector.group_size

    def per_weight(self, scale: Tensor) -> Tensor:
        """[rows, tiles, 1] to [rows, K]."""
        columns = self.tracked_parameter_list[0].shape[1]
        return scale.flatten(1).repeat_interleave(self.scale_tile, 1)[:, :columns]

    def create_quant_tensor(self, qt_args: tuple[Any, ...]) -> Any:
        value, scale, zero_point, bit_width = qt_args
        return GroupwiseIntQuantTensor(
            self.tensor_quant.int_quant.input_view_impl(value),
            scale,
            zero_point,
            self.scale_tile,
            1,
            bit_width,
            self.is_signed,
            self.training,
            self.tracked_parameter_list[0].shape,
        )
