"""Quantizers that switch between widths while the weights behind them stay the same.

A range that suits 8 bits is far too wide for 2. So every width has a tensor quantizer of its own,
with a range of its own to learn, and one of them is in use.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from brevitas_axe.model.apply.ranges import FittedBitWidth, tensor_quantizer, write_bits
from brevitas_axe.model.layers import Proxy


class WidthSwitch(nn.Module):
    """A tensor quantizer for every width; whatever Brevitas reads of it is of the one in use.

    Args:
        quantizers: width → Brevitas's tensor quantizer.

    Attributes:
        width: in use; any key of `quantizers`. Not part of the state.
    """

    def __init__(self, quantizers: Mapping[int, nn.Module]) -> None:
        super().__init__()
        self.quantizers = nn.ModuleDict({str(width): q for width, q in quantizers.items()})
        self.width = next(iter(quantizers))

    @property
    def chosen(self) -> nn.Module:
        """The tensor quantizer in use."""
        return self.quantizers[str(self.width)]

    def forward(self, *args: Any) -> Any:
        return self.chosen(*args)

    def __getattr__(self, name: str) -> Any:
        # Called for what is neither an attribute nor a module of this class. While a copy is
        # made, there are no modules yet.
        if name in ("_modules", "_parameters", "_buffers") or "quantizers" not in self._modules:
            raise AttributeError(name)
        if name == "quantizers":
            return self._modules[name]
        return getattr(self.chosen, name)


def make_switches(groups: Iterable[tuple[list[Proxy], Iterable[int]]]) -> None:
    """Gives quantizers a switch between widths, in place.

    Every width starts from the range that was fitted for it (see
    `brevitas_axe.methods.ranges.fit_ranges`), where there is one, else from the present one. What
    quantizers share, such as the scale of residual branches, they share at every width.

    Args:
        groups: quantizers that always have the same bits, and the widths that they may have.
    """
    copies: dict[int, dict] = {}
    for proxies, widths in groups:
        made: list[dict[int, nn.Module]] = [{} for _ in proxies]
        for width in sorted({*widths}):
            for proxy in proxies:
                write_bits(proxy, width)
            for mine, proxy in zip(made, proxies, strict=True):
                mine[width] = _with_own_range(proxy, copies.setdefault(width, {}))
        for mine, proxy in zip(made, proxies, strict=True):
            _place(proxy, WidthSwitch(mine))


def _with_own_range(proxy: Proxy, memo: dict) -> Proxy:
    """A copy of a tensor quantizer at its present bits, which no longer follows fitted ranges."""
    made: Proxy = copy.deepcopy(tensor_quantizer(proxy), memo)
    if isinstance(made.msb_clamp_bit_width_impl, FittedBitWidth):
        made.msb_clamp_bit_width_impl = made.msb_clamp_bit_width_impl.bit_width
    return made


def set_width(proxy: Proxy, width: int) -> None:
    """Puts the quantizer of a width in use."""
    tensor_quantizer(proxy).width = width


def settle(proxies: Iterable[Proxy]) -> None:
    """Replaces every switch by the quantizer in use, in place: an ordinary model is left."""
    for proxy in proxies:
        switch = tensor_quantizer(proxy)
        _place(proxy, switch.chosen)
        write_bits(proxy, switch.width)


def _place(proxy: Proxy, quantizer: nn.Module) -> None:
    fused = getattr(proxy, "fused_activation_quant_proxy", None)
    setattr(proxy if fused is None else fused, "tensor_quant", quantizer)  # noqa: B010
