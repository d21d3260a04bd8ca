"""Kernels that numba compiles and keeps on disk, one process at a time.

numba numbers the files of its cache by what its index has, and writes the index before the code.
Two processes that compile a function for different types at the same time can take one number for
both, and one that looks in between can find older code behind a new entry. Either is then run with
data of other types. So the first use of a kernel with new types waits until no other process is
there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

_LOCK = "brevitas_axe.lock"


class CachedKernel:
    """A function of numba's with a cache, called like the function itself.

    Args:
        kernel: what `numba.njit(cache=True)` gives.
    """

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self._ready: set[tuple] = set()
        self.__doc__, self.__name__ = kernel.__doc__, kernel.__name__

    @property
    def signatures(self) -> list:
        """Types for which this process has it, compiled or read."""
        return self._kernel.signatures

    def __call__(self, *args: Any) -> Any:
        key = tuple(map(_kind, args))
        if key not in self._ready:
            self._compile(args)
            self._ready.add(key)
        return self._kernel(*args)

    def _compile(self, args: tuple) -> None:
        """Reads the code for such arguments from the disk, or compiles and writes it."""
        place = Path(self._kernel.stats.cache_path)
        place.mkdir(parents=True, exist_ok=True)
        with FileLock(place / _LOCK):
            self._kernel.compile(tuple(map(self._kernel.typeof_pyval, args)))


def cached_kernel(kernel: Callable) -> CachedKernel:
    """Decorator above `numba.njit(cache=True)`, for kernels that are called from Python."""
    return CachedKernel(kernel)


def _kind(argument: Any) -> tuple | type:
    """What of an argument numba compiles for."""
    if isinstance(argument, np.ndarray):
        flags = argument.flags
        return argument.dtype.num, argument.ndim, flags.c_contiguous, flags.writeable
    return type(argument)
