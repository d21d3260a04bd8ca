"""Limits memory and work of an analysis in proportion to the size of the file."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

import numpy as np

from brevitas_axe.proof.graph.grid import Unprovable

# Elements that every file may use; about a second of work and 300 MB.
_FREE = 2**24
_PER_BYTE = 8


class WorkBudget:
    """Elements of constants that the analysis of one file may still compute.

    Attributes:
        stored: bytes of the file and of its external data.
    """

    def __init__(self, stored: int = 0) -> None:
        self.stored = stored
        self._left = _FREE + _PER_BYTE * stored

    def spend(self, elements: int, what: str) -> None:
        """Subtracts elements; raises Unprovable, before any is computed, where too few are left.

        Args:
            elements: number of elements to be computed.
            what: what is computed, for the message.
        """
        if elements > self._left:
            raise Unprovable(f"{what} is too large for a file of this size")
        self._left -= elements

    def spend_on(self, shapes: Iterable[tuple[int, ...]], what: str) -> None:
        """`spend` for arrays that broadcast against each other, to a possibly much larger shape."""
        self.spend(prod(np.broadcast_shapes(*shapes)), what)
