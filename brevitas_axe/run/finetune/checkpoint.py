"""Progress of a training run: one file after every epoch, whole or absent."""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from brevitas_axe.errors import InvalidState
from brevitas_axe.files import write_whole
from brevitas_axe.model.running import loading_in_place

_DIGEST = hashlib.sha256().digest_size


class SavedRun:
    """The last whole epoch of one run in a folder: a SHA-256 digest, then what torch.save wrote.

    Args:
        folder: of the file, made on the first save.
        run: fingerprint of everything the run depends on.
    """

    def __init__(self, folder: str | Path, run: str) -> None:
        if Path(folder).exists() and not Path(folder).is_dir():
            raise InvalidState(f"the state {folder} is a file; name a folder, new or empty.")
        self._path, self._run = Path(folder) / "training.saved", run

    def save(self, content: dict[str, Any]) -> None:
        """Replaces the file."""
        buffer = io.BytesIO()
        torch.save({"run": self._run, **content}, buffer)
        data = buffer.getvalue()
        write_whole(self._path, hashlib.sha256(data).digest() + data)

    def check(self) -> None:
        """Raises InvalidState, before a long run, where what was saved cannot be read back."""
        try:
            self.load()
        except InvalidState as error:
            self._path.unlink()
            raise InvalidState(
                "the state of this optimizer or scheduler cannot be written, because it holds more "
                "than tensors and numbers; choose another, or leave state out."
            ) from error

    def load(self) -> dict[str, Any] | None:
        """What was saved last, None before the first save.

        Raises:
            InvalidState: the file is corrupted, or belongs to another run.
        """
        if not self._path.exists():
            return None
        data = self._path.read_bytes()
        if hashlib.sha256(data[_DIGEST:]).digest() != data[:_DIGEST]:
            raise InvalidState(
                f"the state file {self._path} is corrupted; delete it to start again."
            )
        try:
            content = torch.load(io.BytesIO(data[_DIGEST:]), map_location="cpu", weights_only=True)
            run = content["run"]
        except Exception as error:  # torch raises many types for corrupted files
            raise InvalidState(
                f"the state file {self._path} is corrupted ({type(error).__name__}); delete it to "
                "start again."
            ) from None
        if run != self._run:
            raise InvalidState(
                f"the state {self._path} belongs to another model or setting; choose an empty "
                "folder, or delete it to start afresh."
            )
        return content


def model_state(model: nn.Module) -> dict[str, Any]:
    """State dict, copied, with the counters of activation statistics that Brevitas leaves out."""
    state = {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}
    return {"state": state, "counters": {n: m.counter for n, m in _counting(model)}}


def load_model_state(model: nn.Module, saved: dict[str, Any]) -> None:
    """Puts a `model_state` back, in place: quantizers that layers share stay shared."""
    with loading_in_place():
        model.load_state_dict(saved["state"])
    for name, module in _counting(model):
        module.counter = saved["counters"][name]


def _counting(model: nn.Module) -> Iterator[tuple[str, Any]]:
    return ((n, m) for n, m in model.named_modules() if hasattr(m, "collect_stats_steps"))


@contextmanager
def seeded(seed: int, loaders: Iterable[Any]) -> Iterator[None]:
    """Seeds every random generator inside; afterwards all continue as before.

    A loader's own generators, which torch does not reseed, are seeded too.
    """
    generators = {}
    for loader in loaders:
        for part in (loader, getattr(loader, "sampler", None)):
            generator = getattr(part, "generator", None)
            if isinstance(generator, torch.Generator):
                generators[generator] = generator.get_state()
    python = random.getstate()
    array = np.random.get_state()  # noqa: NPY002 (the generator of other code)
    devices = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices):
        try:
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            for generator in generators:
                generator.manual_seed(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)  # noqa: NPY002
            for generator, state in generators.items():
                generator.set_state(state)
