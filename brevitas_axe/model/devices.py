"""Where a model lies: what is built for it, and what is fed to it, must lie there too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map


def device_of(model: nn.Module) -> torch.device | None:
    """The device of a model whose parameters are on a single one, in memory; None for any other."""
    devices = {parameter.device for parameter in model.parameters()}
    device = devices.pop() if len(devices) == 1 else None
    return None if device is None or device.type == "meta" else device


@contextmanager
def building_for(model: nn.Module) -> Iterator[None]:
    """New tensors lie where the model does; Brevitas names no device for most buffers."""
    device = device_of(model)
    if device is None or device.type == "cpu":
        yield
        return
    with device:
        yield


def moved(values: Any, device: torch.device | None) -> Any:
    """Lists, tuples and dictionaries with their tensors on a device; None leaves them in place."""
    if device is None:
        return values
    return tree_map(lambda value: value.to(device) if isinstance(value, Tensor) else value, values)
