"""A range for every width of a model's quantizers, by any method of this room.

Calibration finds one range, for the bits that a quantizer has at the time. Here a range is fitted
for each width, and `set_bits` sets the one that belongs to the new width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import torch
from brevitas.proxy import ActFloatQuantProxyFromInjector
from torch import Tensor, nn

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.ranges.protocol import RangeCase, RangeFitter
from brevitas_axe.model.apply.activations import activation_quantizers
from brevitas_axe.model.apply.format_ranges import FormatRange
from brevitas_axe.model.apply.ranges import AdjustableRange, range_parameter, sample_inputs
from brevitas_axe.model.apply.weight_ranges import weight_ranges
from brevitas_axe.model.prepare import Batch, as_batches
from brevitas_axe.model.running import evaluating, float_tensors, float_twin
from brevitas_axe.registry import method

# Method of the room that is taken where none is named.
USUAL_FITTER = "mse"


def fit_ranges(
    model: nn.Module,
    calibration: Iterable[Any],
    bits: Iterable[int] = range(2, 9),
    fitter: str | RangeFitter = USUAL_FITTER,
    weight_bits: Iterable[int] = (),
) -> dict[str, dict[int, float]]:
    """Fits a range for each width of each static activation quantizer, in place.

    From then on a change of bits, by a plan or a scorer, also sets the fitted range, in copies of
    the model too. Ranges are shares of the calibrated one; share 1 is always a candidate. The
    option `weights` of a method (`"mse:weights=true"`) has it fit weights as well, one share for
    all channels of a layer, at the bits that they have and at `weight_bits`: the widths of
    activations and of weights are taken in pairs, narrowest first.

    Args:
        model: calibrated, with static activation quantizers; others keep what they have, and so do
            quantizers with a zero point, and quantizers of weights that are not ours.
        calibration: batches, see `brevitas_axe.model.prepare.as_batches`.
        bits: the widths.
        fitter: method of the room `ranges`.
        weight_bits: the same for weights.

    Returns:
        Quantizer → width → share of the calibrated range that is kept.

    Raises:
        InvalidOption: a width below 2, or a fitter that is not registered.
        EmptyCalibration, NonFiniteValues: unusable batches.
    """
    return fit_ranges_to(model, as_batches(calibration, model), bits, fitter, weight_bits)


@torch.no_grad()
def fit_ranges_to(
    model: nn.Module,
    batches: Sequence[Batch],
    bits: Iterable[int],
    fitter: str | RangeFitter,
    weight_bits: Iterable[int] = (),
) -> dict[str, dict[int, float]]:
    """`fit_ranges` for batches that are arguments of forwards already.

    Where there is no range to fit, the model does not run; else once per batch, besides what the
    fitter asks for.
    """
    widths = sorted({*bits})
    if not widths or widths[0] < 2:
        raise InvalidOption(f"activations need widths of 2 bits or more, not {widths}.")
    chosen: RangeFitter = method("ranges", fitter)
    inputs = _inputs(model, batches)
    weights: Mapping[str, AdjustableRange] = weight_ranges(model) if chosen.weights else {}
    samples = {name: each.sample for name, each in {**inputs, **weights}.items()}
    shares: dict[str, dict[int, float]] = {name: {} for name in (*inputs, *weights)}
    loss = _Loss(model, batches)
    steps = [_steps(inputs, widths), _steps(weights, sorted({*weight_bits}))]
    # Fitted for the requested widths and for the present ones, weights beside activations.
    for pair in zip_longest(*steps, fillvalue=(0, {})):
        some = {name: each for _, ranges in pair for name, each in ranges.items()}
        width_of = {name: width for width, ranges in pair for name in ranges}
        for name, adjustable in some.items():
            adjustable.set(width_of[name], 1.0)
        for name, share in chosen(_case(some, samples, loss)).items():
            shares[name][width_of[name]] = share
            some[name].set_share(share)
    for name, adjustable in {**inputs, **weights}.items():
        adjustable.keep(shares[name])
    return shares


@torch.no_grad()
def fit_format_ranges(
    model: nn.Module, batches: Sequence[Batch], fitter: str | RangeFitter
) -> dict[str, float]:
    """Fits the ranges of inputs in floating-point formats, in place.

    Those of one range, as where branches are added, keep one.

    Args:
        model: whose quantizers have the calibrated ranges.
        batches: of calibration.
        fitter: method of the room `ranges`.

    Returns:
        Quantizer → share of the calibrated range that is kept.
    """
    groups: dict[tuple, list[str]] = {}
    proxies: dict[str, Any] = {}
    for name, module in model.named_modules():
        if isinstance(module, ActFloatQuantProxyFromInjector) and module.is_quant_enabled:
            value = range_parameter(module)
            if value is not None:
                proxies[name] = module
                groups.setdefault(tuple(value.flatten().tolist()), []).append(name)
    if not groups:
        return {}
    samples = sample_inputs(model, {name: [proxy] for name, proxy in proxies.items()}, batches)
    ranges = {
        names[0]: FormatRange([proxies[n] for n in some], [samples[n][0] for n in some])
        for names in groups.values()
        if (some := [name for name in names if name in samples])
    }
    case = _case(ranges, {n: each.sample for n, each in ranges.items()}, _Loss(model, batches))
    shares = dict((method("ranges", fitter))(case))
    for name, share in shares.items():
        ranges[name].set_share(share)
    return shares


def _steps(
    ranges: Mapping[str, AdjustableRange], widths: Sequence[int]
) -> list[tuple[int, dict[str, AdjustableRange]]]:
    """(width, ranges to fit for it), narrowest first: the given widths and the present ones."""
    return [
        (width, {n: each for n, each in ranges.items() if width in (*widths, each.bits)})
        for width in sorted({*widths, *(each.bits for each in ranges.values())})
        if ranges
    ]


def _inputs(model: nn.Module, batches: Sequence[Batch]) -> dict[str, AdjustableRange]:
    """Static ranges of activations without a zero point, with samples of what arrives there."""
    found = activation_quantizers(model)
    values = {
        name: value
        for name, proxies in found.items()
        if (value := range_parameter(proxies[0])) is not None
    }
    if not values:
        return {}
    quantizers = {name: found[name] for name in values}
    samples = sample_inputs(model, quantizers, batches)
    ranges = {
        name: AdjustableRange(quantizers[name], values[name], parts)
        for name, parts in samples.items()
    }
    return {name: each for name, each in ranges.items() if not each.has_zero_point()}


def _case(
    ranges: Mapping[str, AdjustableRange] | Mapping[str, FormatRange],
    samples: Mapping[str, Tensor],
    loss: _Loss,
) -> RangeCase:
    def rounded(name: str, share: float) -> Tensor:
        return ranges[name].rounded(share)

    def model_loss(shares: Mapping[str, float]) -> float:
        for name, adjustable in ranges.items():
            adjustable.set_share(shares.get(name, 1.0))
        return loss()

    return RangeCase(
        samples={name: samples[name] for name in ranges},
        widest={name: adjustable.widest for name, adjustable in ranges.items()},
        rounded=rounded,
        loss=model_loss,
    )


class _Loss:
    """Mean squared error of a model's outputs, against its float twin as it was at first."""

    def __init__(self, model: nn.Module, batches: Sequence[Batch]) -> None:
        self._model, self._batches = model, batches
        self._wanted: list[list[Tensor]] | None = None

    def __call__(self) -> float:
        if self._wanted is None:  # computed on demand: most methods do not use it
            self._wanted = self._outputs(float_twin(self._model))
        total = count = 0.0
        for given, wanted in zip(self._outputs(self._model), self._wanted, strict=True):
            for mine, real in zip(given, wanted, strict=True):
                total += float((mine - real).double().square().sum())
                count += mine.numel()
        return total / max(count, 1)

    def _outputs(self, model: nn.Module) -> list[list[Tensor]]:
        with evaluating(model):
            return [float_tensors(model(*args, **kwargs)) for args, kwargs in self._batches]
