"""A range for every width of an activation quantizer.

Few bits want a narrower range than many: what is clipped costs less than the finer step saves.
Calibration finds one range, for the bits that the quantizer has then; here the range with the least
squared error is found for each width, and follows whenever `set_bits` changes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from brevitas_axe.errors import InvalidOption
from brevitas_axe.model.apply.activations import activation_quantizers, current_bits, set_bits
from brevitas_axe.model.apply.weights import is_logarithmic
from brevitas_axe.model.layers import Proxy
from brevitas_axe.model.prepare import as_batches
from brevitas_axe.model.running import dequantized, evaluating

# Ranges tried: from all of the calibrated one down to this share of it, in equal ratios.
LEAST, STEPS = 0.15, 24
# Numbers that judge a quantizer, per batch.
SAMPLE = 2**14


@torch.no_grad()
def fit_ranges(
    model: nn.Module, calibration: Iterable[Any], bits: Iterable[int] = range(2, 9)
) -> dict[str, dict[int, float]]:
    """Finds the range with the least squared error for each width of each quantizer, in place.

    From then on a change of bits, by a plan or a scorer, brings its range along. The ranges hold
    for the calibrated one and fractions of it, so that it is never worse on the calibration data.

    Args:
        model: calibrated, with static activation quantizers; others keep what they have.
        calibration: batches, see `brevitas_axe.model.prepare.as_batches`.
        bits: the widths.

    Returns:
        Quantizer → width → share of the calibrated range that is kept.

    Raises:
        InvalidOption: a width below 2.
        EmptyCalibration, NonFiniteValues: unusable batches.
    """
    widths = sorted({*bits})
    if not widths or widths[0] < 2:
        raise InvalidOption(f"activations need widths of 2 bits or more, not {widths}.")
    quantizers = activation_quantizers(model)
    samples = _samples(model, quantizers, calibration)
    shares: dict[str, dict[int, float]] = {}
    for name, proxies in quantizers.items():
        value = range_parameter(proxies[0])
        if value is None or name not in samples or _has_zero_point(proxies[0], samples[name]):
            continue
        before, calibrated = current_bits(proxies[0]), _calibrated(proxies[0], value)
        ranges, shares[name] = {}, {}
        for width in {*widths, before}:
            set_bits(proxies, width)
            shares[name][width], ranges[width] = _best(proxies[0], value, calibrated, samples[name])
        for proxy in proxies:
            proxy.fitted_ranges, proxy.calibrated_range = ranges, calibrated
        set_bits(proxies, before)
    return shares


def range_parameter(proxy: Proxy) -> Tensor | None:
    """The parameter that holds a quantizer's range, None where it has no static one."""
    scaling = getattr(proxy.fused_activation_quant_proxy.tensor_quant, "scaling_impl", None)
    return None if scaling is None else scaling._parameters.get("value")


def _calibrated(proxy: Proxy, value: Tensor) -> Tensor:
    """The range before any was fitted; what calibration or training set since then counts."""
    fitted = getattr(proxy, "fitted_ranges", {}).get(current_bits(proxy))
    if fitted is not None and torch.equal(fitted, value):
        return proxy.calibrated_range
    return value.detach().clone()


def _samples(
    model: nn.Module, quantizers: dict[str, list[Proxy]], calibration: Iterable[Any]
) -> dict[str, Tensor]:
    """Numbers that reach each quantizer, [n]."""
    seen: dict[str, list[Tensor]] = {}

    def note(name: str):
        def hook(_: nn.Module, inputs: tuple) -> None:
            x = dequantized(inputs[0]).flatten()
            seen.setdefault(name, []).append(x[:: max(1, len(x) // SAMPLE)].clone())

        return hook

    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        for name, proxies in quantizers.items():
            for proxy in proxies:
                stack.callback(proxy.register_forward_pre_hook(note(name)).remove)
        for args, kwargs in as_batches(calibration):
            model(*args, **kwargs)
    return {name: torch.cat(parts) for name, parts in seen.items()}


def _has_zero_point(proxy: Proxy, x: Tensor) -> bool:
    with evaluating(proxy):
        return bool(proxy(x).zero_point.any())


def _best(proxy: Proxy, value: Tensor, calibrated: Tensor, x: Tensor) -> tuple[float, Tensor]:
    """(Share of the calibrated range, the parameter that gives it) with the least error."""
    logarithmic = is_logarithmic(proxy.fused_activation_quant_proxy.tensor_quant.scaling_impl)
    found: list[tuple[float, float, Tensor]] = []
    with evaluating(proxy):
        for step in range(STEPS + 1):
            share = LEAST ** (step / STEPS)
            by = torch.tensor(share).to(calibrated)
            value.copy_(calibrated + by.log2() if logarithmic else calibrated * by)
            error = float((dequantized(proxy(x)) - x).square().mean())
            found.append((error, share, value.detach().clone()))
    _, share, best = min(found, key=lambda f: f[0])
    return share, best
