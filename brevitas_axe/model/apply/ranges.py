"""Ranges of quantizers: tries them, writes them, and keeps one for every width."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from brevitas.core.bit_width import BitWidthConst
from brevitas.core.restrict_val import LogFloatRestrictValue, PowerOfTwoRestrictValue
from brevitas.proxy.runtime_quant import ActQuantProxyFromInjectorBase
from torch import Tensor, nn

from brevitas_axe.model.layers import Layer, Proxy
from brevitas_axe.model.quantizers.operands import extra_bits, with_extra, without_extra
from brevitas_axe.model.running import Batch, dequantized, evaluating, float_twin, hooked
from brevitas_axe.model.sampling import sampled

# Numbers in the sample of a quantizer's input, per batch.
SAMPLE = 2**14


class FittedBitWidth(nn.Module):
    """Bits of a quantizer, together with a range for every width.

    It replaces a constant of Brevitas, so that copies of the model have it too. Like the constant,
    it is not part of the state.

    Attributes:
        ranges: width → the range parameter that was fitted for it.
        calibrated: the range parameter of share 1.
    """

    def __init__(self, bits: int, ranges: Mapping[int, Tensor], calibrated: Tensor) -> None:
        super().__init__()
        self.bit_width = BitWidthConst(bits)
        self.ranges, self.calibrated = ranges, calibrated

    def forward(self) -> Tensor:
        return self.bit_width()

    def has_written(self, bits: int, value: Tensor) -> bool:
        """Whether a range parameter is still what these bits brought along."""
        return torch.equal(self.nearest(bits).to(value), value)

    def nearest(self, bits: int) -> Tensor:
        """The range of these bits, or of the nearest width that has one."""
        return self.ranges[min(self.ranges, key=lambda width: abs(width - bits))]


def range_parameter(proxy: Proxy) -> Tensor | None:
    """The parameter of a quantizer's range; None where the range is not static."""
    scaling = getattr(proxy.fused_activation_quant_proxy.tensor_quant, "scaling_impl", None)
    return None if scaling is None else scaling._parameters.get("value")


def is_logarithmic(scaling: nn.Module) -> bool:
    """True when a scaling's learned value is the logarithm (base 2) of the scale."""
    kinds = LogFloatRestrictValue | PowerOfTwoRestrictValue
    return any(isinstance(part, kinds) for part in scaling.modules())


def tensor_quantizer(proxy: Proxy) -> Proxy:
    """What rounds, inside a quantizer of weights or of activations."""
    fused = getattr(proxy, "fused_activation_quant_proxy", None)
    return proxy.tensor_quant if fused is None else fused.tensor_quant


def current_bits(proxy: Proxy) -> int:
    """The bits that `write_bits` has set, or that the quantizer was made with.

    The operand of a sum may have more.
    """
    quant = tensor_quantizer(proxy)
    return without_extra(int(quant.msb_clamp_bit_width_impl()), extra_bits(quant))


@torch.no_grad()
def write_bits(proxy: Proxy, bits: int, fitted: FittedBitWidth | None = None) -> None:
    """Sets the bits of one quantizer, and the range fitted for them, if any.

    The operand of a sum may get more, see `brevitas_axe.model.quantizers.operands`.

    Args:
        proxy: of the quantizer.
        bits: its new width.
        fitted: its ranges from now on; None keeps the present ones.
    """
    quant = tensor_quantizer(proxy)
    old = quant.msb_clamp_bit_width_impl
    if fitted is None and isinstance(old, FittedBitWidth):
        fitted = old
    real = with_extra(bits, extra_bits(quant))
    new = BitWidthConst(real)
    if fitted is not None:
        new = FittedBitWidth(real, fitted.ranges, fitted.calibrated)
        quant.scaling_impl.value.copy_(fitted.nearest(bits))
    known = next(iter((*old.buffers(), *old.parameters(), torch.zeros(()))))
    quant.msb_clamp_bit_width_impl = new.to(known.device)
    proxy.quant_injector = proxy.quant_injector.let(bit_width=real)
    if isinstance(proxy, ActQuantProxyFromInjectorBase):
        # What it keeps of a forward has the former bits, and it would go on telling them. An A2Q
        # weight quantizer keeps its layer's input there, which its bound follows.
        proxy._cached_act = None


class AdjustableRange:
    """The range of one static quantizer; shares are relative to the calibrated range.

    A range that calibration or training has set after a fit counts as calibrated.

    Args:
        proxies: that share the range, as `activation_quantizers` gives them.
        value: their range parameter.
        samples: of what each of them quantizes, [n] each.
    """

    def __init__(
        self, proxies: Sequence[Proxy], value: Tensor, samples: Sequence[Tensor] = ()
    ) -> None:
        self._proxies, self._value, self._samples = proxies, value, samples
        tensor_quant = tensor_quantizer(proxies[0])
        self._logarithmic = is_logarithmic(tensor_quant.scaling_impl)
        bit_width = tensor_quant.msb_clamp_bit_width_impl
        self.bits = current_bits(proxies[0])
        self._calibrated = value.detach().clone()
        if isinstance(bit_width, FittedBitWidth) and bit_width.has_written(self.bits, value):
            self._calibrated = bit_width.calibrated.to(value)

    @property
    def widest(self) -> float:
        """The largest magnitude of the calibrated range."""
        largest = self._calibrated.exp2() if self._logarithmic else self._calibrated
        return float(largest.abs().max())

    def parameter(self, share: float) -> Tensor:
        """The range parameter of a share of the calibrated range."""
        by = torch.tensor(share).to(self._calibrated)
        return self._calibrated + by.log2() if self._logarithmic else self._calibrated * by

    def set(self, bits: int, share: float) -> None:
        """Sets bits and range temporarily."""
        for proxy in self._proxies:
            write_bits(proxy, bits)
        self.set_share(share)

    @torch.no_grad()
    def set_share(self, share: float) -> None:
        """Sets the range temporarily."""
        self._value.copy_(self.parameter(share))

    @property
    def sample(self) -> Tensor:
        """All samples, one behind the other, [n]."""
        return torch.cat([*self._samples])

    def rounded(self, share: float) -> Tensor:
        """The samples rounded to the grid of a share at the present bits, [n].

        Each on the grid of its own quantizer: behind a ReLU it has twice as many levels above zero
        as before a sum, at the same scale.
        """
        self.set_share(share)
        return torch.cat([quantized[0] for quantized in self._quantized()])

    def has_zero_point(self) -> bool:
        """Whether a grid has a zero point, so that its range has two ends."""
        return any(bool(quantized[2].any()) for quantized in self._quantized())

    def _quantized(self) -> Iterator[tuple[Tensor, ...]]:
        """Of each quantizer, numbers on the grid, its scale and zero point.

        Without the activation function, which samples have passed already.
        """
        for proxy, sample in zip(self._proxies, self._samples, strict=True):
            quant = tensor_quantizer(proxy)
            with evaluating(quant):
                yield quant(sample)

    def keep(self, shares: Mapping[int, float]) -> None:
        """Keeps the share of every width, and sets the original bits again."""
        ranges = {width: self.parameter(share) for width, share in shares.items()}
        fitted = FittedBitWidth(self.bits, ranges, self._calibrated)
        for proxy in self._proxies:
            write_bits(proxy, self.bits, fitted)


@torch.no_grad()
def sample_inputs(
    model: nn.Module, quantizers: Mapping[str, Sequence[Proxy]], batches: Iterable[Batch]
) -> dict[str, list[Tensor]]:
    """Samples of what each quantizer quantizes, behind its activation function, while all are off.

    So the bits that quantizers happen to have do not matter. One forward per batch.

    Args:
        model: holds the quantizers; not modified.
        quantizers: name → its proxies, as `activation_quantizers` gives them.
        batches: arguments of the forwards.

    Returns:
        Quantizer → [n] for each of its proxies, which is empty where no batch uses it; quantizers
        of which no batch uses any are left out.
    """
    seen: dict[str, list[Tensor]] = {}
    names = {proxy: name for name, proxy in model.named_modules()}
    twin = float_twin(model)

    def note(name: str, _: Layer, args: tuple, kwargs: dict, output: Any) -> None:
        x = dequantized(output).flatten()
        seen.setdefault(name, []).append(sampled(x, len(x) // SAMPLE))

    watched = [names[proxy] for proxies in quantizers.values() for proxy in proxies]
    with hooked({name: twin.get_submodule(name) for name in watched}, after=note):
        for args, kwargs in batches:
            twin(*args, **kwargs)
    samples = {
        name: [torch.cat(seen.get(names[proxy], [torch.empty(0)])) for proxy in proxies]
        for name, proxies in quantizers.items()
    }
    return {name: parts for name, parts in samples.items() if any(map(len, parts))}
