"""ReLU6 as a quantized activation: its outputs are at most 6."""

from __future__ import annotations

from typing import Any

import torch
from brevitas import nn as qnn

from brevitas_axe.model.layers import Proxy

_END = 6.0


class QuantReLU6(qnn.QuantReLU):
    """QuantReLU of min(x, 6), so that calibration finds a range that ends at 6 at most.

    Where the range ends at 6, quantization clips by itself, and an exported file has no other clip.
    """

    _ends_at_6 = False

    def forward(self, input: Any) -> Any:
        """Quantized min(max(x, 0), 6)."""
        x = getattr(input, "value", input)
        if not (torch.jit.is_tracing() or torch.compiler.is_compiling()):  # type: ignore
            self._ends_at_6 = self._judge()
            return super().forward(x.clamp(max=_END))
        return super().forward(x if self._ends_at_6 else x.clamp(max=_END))

    def _judge(self) -> bool:
        """Whether the quantizer's own range ends at 6 or before."""
        proxy: Proxy = self.act_quant
        if not proxy.is_quant_enabled:
            return False
        largest = 2 ** int(proxy.bit_width()) - 1
        return float(proxy.scale().detach().max()) * largest <= _END * (1 + 1e-6)
