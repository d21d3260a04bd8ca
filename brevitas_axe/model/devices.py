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


def input_device(model: nn.Module) -> torch.device | None:
    """Where a forward takes its inputs: the device of the first parameter; None without any."""
    first = next(model.parameters(), None)
    return None if first is None else first.device


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

    def leaf(value: Any) -> Any:
        if isinstance(value, dict):  # of a class of its own, which torch does not look into
            return {key: moved(part, device) for key, part in value.items()}
        return value.to(device) if isinstance(value, Tensor) else value

    return tree_map(leaf, values)
