"""A hash of everything that a run depends on: equal hashes give equal integers."""

from __future__ import annotations

import hashlib
import json

import torch
from torch import Tensor, nn


class Fingerprint:
    """Hash of model, data and settings of a run; equal ones give equal integers."""

    def __init__(self, settings: dict) -> None:
        self._hash = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())

    def add(self, value: object) -> None:
        """Adds tensors, modules and plain values, recursively."""
        if isinstance(value, nn.Module):
            for name, module in value.named_modules():
                kind = type(module).__qualname__, module.extra_repr()
                facts = getattr(module, "signed", None), getattr(module, "narrow_range", None)
                self.add((name, *kind, *facts))
            # Not the state dict: Brevitas keeps constant bit widths out of it.
            self.add(dict(value.named_parameters()))
            self.add(dict(value.named_buffers()))
        elif isinstance(value, Tensor):
            raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            self._hash.update(f"{value.dtype}{tuple(value.shape)}".encode())
            self._hash.update(raw.numpy().tobytes())
        elif isinstance(value, dict):
            for key, item in value.items():
                self._hash.update(str(key).encode())
                self.add(item)
        elif isinstance(value, (tuple, list)):
            for item in value:
                self.add(item)
        else:
            self._hash.update(repr(value).encode())

    def hexdigest(self) -> str:
        return self._hash.hexdigest()
