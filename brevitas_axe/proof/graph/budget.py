"""What a file may ask for: memory and work in proportion to its own size, before it is spent."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

import numpy as np

from brevitas_axe.proof.graph.grid import Unprovable

# Elements that any file may ask for; about a second of work and 300 MB.
_FREE = 2**24
_PER_BYTE = 8


class Budget:
    """Elements of constants that the analysis of one file may still compute.

    Args:
        stored: bytes of the file and of its external data.
    """

    def __init__(self, stored: int = 0) -> None:
        self._left = _FREE + _PER_BYTE * stored

    def spend(self, elements: int, what: str) -> None:
        """Takes elements off; raises Unprovable, before any is computed, where too few are left.

        Args:
            elements: that are about to be computed.
            what: is computed, for the sentence.
        """
        if elements > self._left:
            raise Unprovable(f"{what} is too large for a file of this size")
        self._left -= elements

    def spend_on(self, shapes: Iterable[tuple[int, ...]], what: str) -> None:
        """`spend` for arrays that broadcast against each other, which may blow them up."""
        self.spend(prod(np.broadcast_shapes(*shapes)), what)
