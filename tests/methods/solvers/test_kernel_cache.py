"""Kernels are read, compiled and written by one process at a time."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from brevitas_axe.methods.solvers import kernel_cache, kernels
from brevitas_axe.methods.solvers.kernel_cache import CachedKernel


@pytest.fixture
def compiled(tmp_path, monkeypatch):
    """What happens, in order: the lock is taken, a kernel compiled, the lock given back."""
    events: list = []

    class Lock:
        def __init__(self, path):
            self.path = path

        def __enter__(self):
            events.append(("locked", self.path.parent))

        def __exit__(self, *error):
            events.append("free")

    class Kernel:
        """Adds."""

        stats = SimpleNamespace(cache_path=str(tmp_path / "cache"))
        __name__ = "add"

        def typeof_pyval(self, value):
            return value.dtype.name if isinstance(value, np.ndarray) else "int"

        def compile(self, types):
            events.append(types)

        def __call__(self, array, number):
            return array + number

    monkeypatch.setattr(kernel_cache, "FileLock", Lock)
    return CachedKernel(Kernel()), events, tmp_path / "cache"


def test_the_first_use_with_new_types_is_behind_a_lock_and_no_other(compiled) -> None:
    kernel, events, place = compiled
    for dtype in (np.float32, np.float64):
        for _ in range(2):
            assert kernel(np.ones(2, dtype), 1).tolist() == [2, 2]
    locked = ("locked", place)
    assert events == [locked, ("float32", "int"), "free", locked, ("float64", "int"), "free"]
    assert place.is_dir()


def test_arrays_that_may_not_be_written_or_are_no_rows_are_types_of_their_own(compiled) -> None:
    kernel, events, _ = compiled
    fixed, columns = np.ones(2), np.ones((2, 2))[:, 0]
    fixed.flags.writeable = False
    for array in (np.ones(2), fixed, columns, np.ones((1, 2))):
        kernel(array, 1)
    assert events.count("free") == 4


def test_what_is_compiled_behind_the_lock_is_what_runs() -> None:
    threshold = np.zeros((1, 1))
    given = (np.ones((1, 3)), np.array([0, 3]), np.ones((1, 1)), threshold)
    kernels.l1_thresholds(*given)
    before = [*kernels.l1_thresholds.signatures]
    kernels.l1_thresholds(*given)
    assert kernels.l1_thresholds.signatures == before
    inner = kernels.l1_thresholds._kernel
    assert tuple(map(inner.typeof_pyval, given)) in before
