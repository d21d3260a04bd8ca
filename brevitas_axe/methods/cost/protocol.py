"""What a cost model is given, and what it gives: one number for one layer.

A layer's cost depends on its shape, on its widths and, where hardware is estimated, on its folding.
To write your own: define, in a new file of this room, an object that bears the file's name: an
instance of `Formula`, for a formula of shape and widths, or of a frozen dataclass of your own with
the attributes and the signature of `CostModel`. tests/contracts/test_cost.py runs over every
registered one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from brevitas_axe.accumulator import outer_bit_width, tile_starts
from brevitas_axe.errors import InvalidOption, InvalidPlan
from brevitas_axe.formats import accumulator_bits, bits_of
from brevitas_axe.plan import LayerPrecision
from brevitas_axe.registry import Facts

# A product of two activations, whose right operand stands where a layer has its weights.
PRODUCT = "product"
_KINDS = ("dense", "depthwise", "transposed", PRODUCT)


@dataclass(frozen=True)
class LayerShape:
    """One layer as `outputs` dot products of `inputs` terms each, at every output position.

    Attributes:
        name: of `model.named_modules()`.
        kind: "transposed" for a transposed convolution, "depthwise" if every channel has a kernel
            of its own, "product" for a product of two activations in attention, else "dense".
        inputs: terms K of one dot product: (input channels / groups) × kernel.
        outputs: output channels MH, of all groups together; of a product, of one head.
        vectors: positions of one forward at which every weight is used once, over all calls:
            pixels, tokens, samples of the output, or of the input of a transposed convolution;
            of a product, tokens of all heads.
        groups: independent groups of channels.
        kernel: taps per axis; () for a linear layer.
        channels: input channels.
        signed: True if the magnitude of N-bit inputs is at most 2^(N-1), as for signed integers;
            False if it may be up to 2^N.
        output_bits: bits B of the activation quantizer that takes the layer's output, which FINN
            turns into 2^B - 1 thresholds; None if there is none, or none that FINN fuses.
        output_extra: how many of these a plan does not tell, where it tells 8 or more: one for the
            sign, where the output is added to something unsigned.

    Raises:
        InvalidOption: a kind that is not known, or a size below 1.
    """

    name: str
    kind: str
    inputs: int
    outputs: int
    vectors: int
    groups: int = 1
    kernel: tuple[int, ...] = ()
    channels: int = 1
    signed: bool = False
    output_bits: int | None = None
    output_extra: int = 0

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise InvalidOption(
                f"the kind of layer '{self.name}' must be one of {', '.join(_KINDS)}, not "
                f"{self.kind!r}."
            )
        for size in ("inputs", "outputs", "vectors", "groups"):
            if getattr(self, size) < 1:
                raise InvalidOption(
                    f"layer '{self.name}' has {getattr(self, size)} {size}, but a cost needs at "
                    "least 1; give a forward a whole sample, or exclude the layer."
                )

    @property
    def weights(self) -> int:
        """Number of weights, without biases, or of what stands in their place at a time."""
        return self.inputs * self.outputs

    @property
    def stored_weights(self) -> int:
        """Number of weights that a model keeps: a product has none."""
        return 0 if self.kind == PRODUCT else self.weights

    @property
    def macs(self) -> int:
        """Multiplications of one forward, those by the zeros of a padding included."""
        return self.weights * self.vectors


@dataclass(frozen=True)
class Folding:
    """Parallel hardware of one layer.

    Attributes:
        pe: outputs computed at once; divides MH.
        simd: inputs of one output multiplied at once; divides K.
    """

    pe: int = 1
    simd: int = 1

    def check(self, shape: LayerShape) -> None:
        """Raises InvalidOption where the folding does not divide the layer."""
        for label, parallel, size, what in (
            ("PE", self.pe, shape.outputs, "outputs"),
            ("SIMD", self.simd, shape.inputs, "inputs per output"),
        ):
            if type(parallel) is not int or parallel < 1 or size % parallel:
                raise InvalidOption(
                    f"{label}={parallel!r} does not divide the {size} {what} of layer "
                    f"'{shape.name}'; choose one of: {', '.join(map(str, divisors(size)))}."
                )


def divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


SERIAL = Folding()


@dataclass(frozen=True)
class Widths:
    """The bits of one layer's arithmetic, all known.

    Attributes:
        weight: W, of integers or floating-point numbers.
        input: A.
        accumulator: of one tile; never wider than its data types need.
        tiles: how many; 1 means that there is no outer accumulator.
        outer: of the accumulator that adds the tiles up; `accumulator` if there is one tile.
    """

    weight: int
    input: int
    accumulator: int
    tiles: int
    outer: int


def widths(shape: LayerShape, precision: LayerPrecision) -> Widths:
    """A layer's widths; an accumulator that is not given is as wide as its data types need.

    Raises:
        InvalidPlan: weight or input bits are not given.
    """
    weight, bits = precision.weight, precision.input
    if weight is None or bits is None:
        raise InvalidPlan(
            f"layer '{shape.name}' has no {'weight' if weight is None else 'input'} bits in the "
            "plan, and its cost depends on them; give every layer both."
        )

    def bound(inputs: int) -> int:
        return accumulator_bits(inputs, weight, bits, shape.signed)

    tile = min(precision.tile or shape.inputs, shape.inputs)
    inner = min(precision.accumulator or bound(tile), bound(tile))
    outer = min(outer_bit_width(inner, shape.inputs, tile), bound(shape.inputs))
    return Widths(
        bits_of(weight), bits_of(bits), inner, len(tile_starts(shape.inputs, tile)), outer
    )


class CostModel(Protocol):
    """A cost: not negative, and additive, so that a plan costs the sum of its layers.

    Attributes:
        unit: what the number counts.
        grows_with: fields of LayerPrecision, among "weight", "input" and "accumulator", in which
            the cost never falls when bits are added.
        depends_on_bits: False for a cost that no widths change, which is no budget for them.
        facts: for the catalogue.

    Args:
        shape: of one layer.
        precision: its weight and input bits are needed; an accumulator of None is as wide as the
            data types need.
        folding: ignored by costs that do not estimate hardware.

    Raises:
        InvalidPlan: bits that the cost needs are missing.
        InvalidOption: the folding does not divide the layer.
        UnsupportedLayer: the hardware cannot compute such a layer.
    """

    @property
    def unit(self) -> str: ...

    @property
    def grows_with(self) -> tuple[str, ...]: ...

    @property
    def depends_on_bits(self) -> bool: ...

    @property
    def facts(self) -> Facts: ...

    def __call__(
        self, shape: LayerShape, precision: LayerPrecision, folding: Folding = ...
    ) -> float: ...


@dataclass(frozen=True)
class Formula:
    """A cost model from a function of shape and widths alone."""

    function: Callable[[LayerShape, Widths], float]
    unit: str
    grows_with: tuple[str, ...]
    facts: Facts
    depends_on_bits = True

    def __call__(
        self, shape: LayerShape, precision: LayerPrecision, folding: Folding = SERIAL
    ) -> float:
        folding.check(shape)
        return self.function(shape, widths(shape, precision))
