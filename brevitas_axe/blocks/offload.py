"""Blocks that live on the disk, one at a time in memory, by accelerate's hooks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from brevitas_axe.errors import InvalidOption


def bring_in(block: nn.Module) -> None:
    """Loads what accelerate keeps elsewhere, and takes its hooks off the block."""
    if not any(hasattr(module, "_hf_hook") for module in block.modules()):
        return
    from accelerate.hooks import remove_hook_from_module

    for module in block.modules():
        hook: Any = getattr(module, "_hf_hook", None)
        for one in getattr(hook, "hooks", [hook]):
            stored = getattr(one, "weights_map", None)
            for name, value in module._parameters.items():
                if value is not None and value.device.type == "meta" and stored is not None:
                    module._parameters[name] = nn.Parameter(torch.as_tensor(stored[name]).clone())
    remove_hook_from_module(block, recurse=True)


def send_out(block: nn.Module, folder: Path) -> None:
    """Writes a block's parameters to a folder; each forward of a layer loads them for its time.

    Raises:
        InvalidOption: accelerate is not installed.
    """
    try:
        from accelerate import disk_offload
    except ImportError:
        raise InvalidOption(
            "offload needs accelerate: pip install 'brevitas_axe[transformers]'."
        ) from None
    device = next(block.parameters()).device
    disk_offload(block, folder, execution_device=device)
