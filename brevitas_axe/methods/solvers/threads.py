"""Threads that take rows, since rows are independent of each other.

Each thread runs its rows through the whole solve with single-threaded torch: no barrier after every
block, and no second pool of OpenMP threads that spins against torch's own.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise

import torch

# Fewer rows than this are not worth a thread of their own.
LEAST_ROWS = 32


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    pool = ThreadPoolExecutor(threads, "axe-rows", initializer=lambda: torch.set_num_threads(1))
    # Start every thread now, then undo what their initializer told torch about later threads.
    for started in [pool.submit(lambda: None) for _ in range(threads)]:
        started.result()
    torch.set_num_threads(threads)
    return pool


def over_rows(
    work: Callable[[slice, slice], None], groups: int, rows: int, device: torch.device
) -> None:
    """Calls work(groups, rows) on slices that together cover [groups, rows], in parallel.

    Uses as many threads as torch does on the CPU, and one call elsewhere. An exception in any of
    them is raised here.
    """
    threads = torch.get_num_threads()
    pieces = min(threads, -(-groups * rows // LEAST_ROWS)) if device.type == "cpu" else 1
    if pieces == 1:
        work(slice(0, groups), slice(0, rows))
        return
    split_groups = groups >= pieces
    total = groups if split_groups else rows
    edges = [total * i // pieces for i in range(pieces + 1)]
    slices = [slice(a, b) for a, b in pairwise(edges) if a < b]
    whole = slice(0, rows if split_groups else groups)
    arguments = [(s, whole) if split_groups else (whole, s) for s in slices]
    for done in [_pool(threads).submit(work, *pair) for pair in arguments]:
        done.result()
