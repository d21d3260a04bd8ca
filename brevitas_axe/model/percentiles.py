"""Percentiles in calibration on other devices than the CPU.

Brevitas's percentiles are the k-th smallest of all numbers of an activation, k near the end. torch
has one multiprocessor of a GPU find it, which takes longer than the layer itself; the few largest
numbers are found by all of them, and the last of these is the same number.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

# Nearer to an end than this share of a vector, a rank is found among the numbers at that end.
NEAR = 1 / 16


class ByExtremes(TorchFunctionMode):
    """Within it `torch.kthvalue` of a vector looks for ranks near an end by `torch.topk`."""

    def __torch_function__(
        self, func: Callable, types: Any, args: Any = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        of_vector = func is torch.kthvalue and len(args) == 2 and args[0].ndim == 1
        if of_vector and not any(kwargs.values()):  # keepdim=False
            vector, rank = args
            from_top = len(vector) - rank + 1
            fewest = min(rank, from_top)
            if 0 < fewest <= NEAR * len(vector):
                values, places = vector.topk(fewest, largest=from_top == fewest)
                return values[-1], places[-1]
        return func(*args, **kwargs)


def quick_percentiles(model: nn.Module) -> AbstractContextManager:
    """Within it the calibration of a model that is not on the CPU finds percentiles by extremes."""
    first = next(model.parameters(), None)
    on_cpu = first is None or first.device.type == "cpu"
    return nullcontext() if on_cpu else ByExtremes()
