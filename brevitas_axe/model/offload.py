"""Blocks on the disk, of which one at a time is in memory, by accelerate's hooks."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from brevitas_axe.errors import InvalidOption


def check_offload(folder: Path) -> None:
    """Refuses, before any work, a folder that `send_out` could not use.

    Raises:
        InvalidOption: accelerate is not installed, or the folder is a file.
    """
    if find_spec("accelerate") is None:
        raise InvalidOption("offload needs accelerate: pip install 'brevitas_axe[transformers]'.")
    if folder.exists() and not folder.is_dir():
        raise InvalidOption(f"the offload {folder} is a file; name a folder, new or empty.")


def bring_in(block: nn.Module) -> None:
    """Loads what accelerate has offloaded to the device where it would run; removes its hooks."""
    if not any(hasattr(module, "_hf_hook") for module in block.modules()):
        return
    from accelerate.hooks import remove_hook_from_module

    for module in block.modules():
        hook: Any = getattr(module, "_hf_hook", None)
        for one in getattr(hook, "hooks", [hook]):
            if not getattr(one, "offload", False):
                continue
            for name, value in module._parameters.items():
                if value is not None and value.device.type == "meta":
                    stored = torch.as_tensor(one.weights_map[name])
                    here = stored.to(one.execution_device, copy=True)
                    module._parameters[name] = nn.Parameter(here)
            one.offload = False  # otherwise its removal offloads them again
    remove_hook_from_module(block, recurse=True)


def in_memory(model: nn.Module) -> nn.Module:
    """The model itself, or a copy with all of it in memory where parts are on the disk."""
    if not any(parameter.is_meta for parameter in model.parameters()):
        return model
    model = copy.deepcopy(model)
    bring_in(model)
    return model


def send_out(block: nn.Module, folder: Path) -> None:
    """Writes a block's parameters to a folder; each forward of a layer loads them temporarily.

    What another run left in the folder is replaced.
    """
    from accelerate import disk_offload
    from accelerate.utils import offload_state_dict

    device = next(block.parameters()).device
    # disk_offload writes nothing into a folder with an index, even that of another run.
    offload_state_dict(folder, block.state_dict())
    disk_offload(block, folder, execution_device=device)
