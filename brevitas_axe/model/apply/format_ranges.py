"""Ranges of floating-point inputs: tries them on samples, and writes the one that is chosen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from brevitas_axe.model.apply.ranges import range_parameter, tensor_quantizer
from brevitas_axe.model.layers import Proxy
from brevitas_axe.model.running import evaluating


class FormatRange:
    """The range of quantizers that share it; shares are relative to the calibrated one.

    Args:
        proxies: static ones, as `give_inputs` makes them.
        samples: of what each of them quantizes, [n] each.
    """

    def __init__(self, proxies: Sequence[Proxy], samples: Sequence[Tensor]) -> None:
        self._proxies, self._samples = proxies, samples
        values = [value for p in proxies if (value := range_parameter(p)) is not None]
        self._values = [(value, value.detach().clone()) for value in values]

    @property
    def widest(self) -> float:
        """The largest magnitude of the calibrated range."""
        return float(self._values[0][1].abs().max())

    @property
    def sample(self) -> Tensor:
        """All samples, one behind the other, [n]."""
        return torch.cat([*self._samples])

    @torch.no_grad()
    def set_share(self, share: float) -> None:
        """Sets the range."""
        for value, calibrated in self._values:
            value.copy_(calibrated * share)

    def rounded(self, share: float) -> Tensor:
        """The samples rounded to the numbers of the format at a share, [n]."""
        self.set_share(share)
        parts = []
        for proxy, sample in zip(self._proxies, self._samples, strict=True):
            quant = tensor_quantizer(proxy)
            with evaluating(quant):
                parts.append(quant(sample)[0].detach())
        return torch.cat(parts)
