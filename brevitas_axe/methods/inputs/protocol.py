"""What quantizes the input of a layer.

To write your own: a new file with a frozen dataclass that has `symmetric`, `asymmetric` and
`facts`, and an object of the file's name that is an instance of it; tests/contracts/test_inputs.py
runs over every one.
"""

from __future__ import annotations

from typing import Any, Protocol

from brevitas_axe.errors import InvalidOption
from brevitas_axe.registry import Facts

# Brevitas describes a quantizer by a subclass of an injector, which is never instantiated.
Injector = Any


class InputQuantizer(Protocol):
    """A pair of Brevitas quantizers of activations.

    Attributes:
        symmetric: injector for signed integers without a zero point.
        asymmetric: injector for unsigned integers with a zero point; None where there is none.
        facts: for the catalogue.
    """

    @property
    def symmetric(self) -> Injector: ...

    @property
    def asymmetric(self) -> Injector: ...

    @property
    def facts(self) -> Facts: ...


def input_quantizer(method: InputQuantizer, symmetric: bool) -> Injector:
    """The injector of a method: without a zero point, or with one.

    Raises:
        InvalidOption: the method has none with a zero point.
    """
    found = method.symmetric if symmetric else method.asymmetric
    if found is None:
        name = type(method).__name__
        raise InvalidOption(f"{name} has no zero points; leave the recipe symmetric.")
    return found
