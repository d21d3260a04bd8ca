"""Returns memory that torch has freed to the system."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache


@lru_cache(maxsize=1)
def _trim() -> Callable[[int], int] | None:
    """The function malloc_trim of glibc, None on other systems."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None


def release_freed_memory() -> None:
    """Returns freed pages to the system, where its C library can.

    Activations of a batch are too small for glibc to map each on its own, so the holes they leave
    stay with the process: over a deep network that came to a third of the peak.
    """
    trim = _trim()
    if trim is not None:
        trim(0)
