"""Saved progress of a long run: one file per solved layer, each whole or absent."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from brevitas_axe.errors import InvalidState
from brevitas_axe.files import write_whole
from brevitas_axe.methods.solvers.problem import LayerSolution
from brevitas_axe.model.layers import Layer, unroll_weight

_DIGEST = hashlib.sha256().digest_size


class SavedLayers:
    """The solved layers of one run in a folder, layer-0000.solved and so on, in order of solving.

    Each file is the SHA-256 digest of what follows, a NumPy .npz archive.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise InvalidState(f"the state {self.folder} is a file; name a folder, new or empty.")

    def save(
        self, index: int, name: str, run: str, solution: LayerSolution, entry: dict | None = None
    ) -> None:
        """Writes one layer.

        Args:
            index: position in the order of solving.
            name: layer name.
            run: fingerprint of the run.
            solution: what was solved.
            entry: its log entry.
        """
        arrays: dict[str, Any] = {
            "integers": solution.integers.cpu().numpy(),
            "scale": solution.scale.cpu().numpy(),
        }
        if solution.bias_shift is not None:
            arrays["bias_shift"] = solution.bias_shift.cpu().numpy()
        buffer = io.BytesIO()
        names = {"name": name, "run": run, "entry": json.dumps(entry or {})}
        arrays.update((key, np.array(text)) for key, text in names.items())
        np.savez_compressed(buffer, **arrays)
        content = buffer.getvalue()
        write_whole(self._path(index), hashlib.sha256(content).digest() + content)

    def load(self, index: int, name: str, run: str, shape: torch.Size) -> LayerSolution | None:
        """Reads one layer back; None when it was not solved yet.

        Raises:
            InvalidState: the file is corrupted, or belongs to another run.
        """
        path = self._path(index)
        if not path.exists():
            return None
        try:
            content = path.read_bytes()
            digest, content = content[:_DIGEST], content[_DIGEST:]
            if hashlib.sha256(content).digest() != digest:
                raise ValueError("its checksum is wrong")
            with np.load(io.BytesIO(content), allow_pickle=False) as data:
                saved = {key: data[key] for key in data.files}
            if str(saved["name"]) != name or str(saved["run"]) != run:
                raise InvalidState(
                    f"the state in {self.folder} belongs to another model, calibration set or "
                    "setting; choose an empty folder, or delete it to start afresh."
                )
            integers, scale = torch.from_numpy(saved["integers"]), torch.from_numpy(saved["scale"])
            shift = saved.get("bias_shift")
            if integers.shape != shape or integers.dtype not in (torch.int32, torch.int64):
                raise ValueError("wrong shape")
            return LayerSolution(
                integers, scale, None if shift is None else torch.from_numpy(shift)
            )
        except InvalidState:
            raise
        except Exception as error:  # NumPy and zipfile raise many types for corrupted files
            raise InvalidState(
                f"the state file {path} is corrupted ({error}); delete it to solve its layer again."
            ) from None

    def load_all(
        self, index: int, layers: Mapping[str, Layer], run: str
    ) -> dict[str, tuple[LayerSolution, dict]] | None:
        """Layers that were solved together, with their log entries; None unless all are there.

        Args:
            index: position of the first one.
            layers: by name, in the order of solving.
            run: fingerprint of the run.
        """
        found = {}
        for position, (name, layer) in enumerate(layers.items(), index):
            solution = self.load(position, name, run, unroll_weight(layer, layer.weight).shape)
            if solution is None:
                return None
            found[name] = solution, {**self.entry(position), "resumed": True}
        return found

    def entry(self, index: int) -> dict:
        """The log entry of a layer that `load` gave; empty in states of older versions."""
        path = self._path(index)
        try:
            with np.load(io.BytesIO(path.read_bytes()[_DIGEST:]), allow_pickle=False) as data:
                entry = json.loads(str(data["entry"])) if "entry" in data else {}
        except Exception as error:  # as above
            raise InvalidState(
                f"the state file {path} is corrupted ({error}); delete it to solve its layer again."
            ) from None
        if not isinstance(entry, dict):
            raise InvalidState(f"the state file {path} has no log entry; delete it.")
        return entry

    def _path(self, index: int) -> Path:
        return self.folder / f"layer-{index:04d}.solved"
