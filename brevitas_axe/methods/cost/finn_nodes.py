"""FINN's own estimates for the node that computes a layer: LUT, DSP, BRAM, URAM and cycles.

The numbers are those of `res_estimation` and `exp_cycles_per_layer` of FINN (finn-plus 1.6.1), in
turn after FINN-R (arXiv 1809.04570): MVAU_hls, MVAU_rtl, VVAU_hls, VVAU_rtl, and Thresholding_rtl
where thresholds are a node of their own. Names of options and their values are FINN's.

A product of two activations is an MVAU whose weights arrive while it works (FINN's mem_mode
"dynamic"): every head is one more vector, and the right operand of a head lies in block RAMs.

Sliding windows, FIFOs and width converters are not counted; they do not depend on the
accumulator. Nor are the thresholds behind an addition of two branches or a pooling, which belong to
no layer. FINN has no tiles: a tiled layer is charged with its outer accumulator. Without
thresholds FINN rounds the accumulator of the last layer up to whole bytes; that is not counted
either, since a layer does not know that it is the last.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from math import ceil

from brevitas_axe.errors import InvalidOption, UnsupportedLayer
from brevitas_axe.methods.cost.protocol import (
    PRODUCT,
    SERIAL,
    Folding,
    LayerShape,
    Widths,
    widths,
)
from brevitas_axe.plan import LayerPrecision
from brevitas_axe.registry import Facts

# Widest (activation, weight, accumulator) that the RTL matrix unit gives to a DSP block.
_DATAPATH = {"DSP48E1": (18, 25, 48), "DSP48E2": (18, 27, 48), "DSP58": (24, 27, 58)}

_CHOICES = {
    "style": ("hls", "rtl", "auto"),
    "res_type": ("lut", "dsp"),
    "mem_mode": ("internal_decoupled", "internal_embedded", "external"),
    "ram_style": ("auto", "block", "distributed"),
    "ram_style_thresholds": ("distributed", "auto", "block"),
    "dsp_block": tuple(_DATAPATH),
}

# (name, width, depth) in the order of preference among equally full ones.
_MEMORIES = (
    ("uram", 72, 4096),
    ("uram", 36, 8192),
    ("uram", 18, 16384),
    ("uram", 9, 32768),
    ("bram", 36, 512),
    ("bram", 18, 1024),
    ("bram", 9, 2048),
    ("lut", 1, 64),
)


@dataclass(frozen=True)
class Hardware:
    """How FINN is to build the nodes; the node attributes of FINN.

    Attributes:
        style: "hls"; "rtl" where an RTL node exists; "auto" as FINN decides by itself: RTL from 4
            weight and 4 input bits upwards.
        standalone_thresholds: True puts thresholds in a node of their own, which RTL nodes need.
        res_type: what multiplies in HLS matrix nodes.
        mem_mode: where weights come from.
        ram_style: memory of the weights.
        ram_style_thresholds: memory of a matrix node's thresholds. FINN's default is "auto",
            under which its estimate leaves thresholds out although they are built; the default
            here counts them.
        dsp_block: of the FPGA family: 7-series, UltraScale, Versal.

    Raises:
        InvalidOption: a value that FINN does not know.
    """

    style: str = "hls"
    standalone_thresholds: bool = False
    res_type: str = "lut"
    mem_mode: str = "internal_decoupled"
    ram_style: str = "auto"
    ram_style_thresholds: str = "distributed"
    dsp_block: str = "DSP48E2"

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise InvalidOption(
                    f"{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}."
                )


HLS = Hardware()


@dataclass(frozen=True)
class Estimate:
    """Resources and time of one node, or of several.

    Attributes:
        lut: look-up tables.
        dsp: DSP blocks.
        bram: block RAMs of 18 Kbit.
        uram: UltraRAMs, which only standalone thresholds may fill.
        cycles: clock cycles per forward.
    """

    lut: int = 0
    dsp: int = 0
    bram: int = 0
    uram: int = 0
    cycles: int = 0

    @staticmethod
    def total(estimates: Iterable[Estimate]) -> Estimate:
        """Resources add up; a pipeline is as slow as its slowest node."""
        estimates = list(estimates)
        sums = {f.name: sum(getattr(e, f.name) for e in estimates) for f in fields(Estimate)}
        return Estimate(**{**sums, "cycles": max((e.cycles for e in estimates), default=0)})


def estimate(
    shape: LayerShape,
    precision: LayerPrecision,
    folding: Folding = SERIAL,
    hardware: Hardware = HLS,
) -> Estimate:
    """What FINN estimates for one layer.

    Raises:
        InvalidPlan: weight or input bits are missing, or a floating-point format is planned.
        InvalidOption: the folding does not divide the layer.
        UnsupportedLayer: a transposed convolution, one over three axes, or a grouped one that is
            not depthwise.
    """
    _check_buildable(shape)
    precision.check_integers(shape.name, "FINN computes with")
    folding.check(shape)
    bits = widths(shape, precision)
    rtl = _is_rtl(shape, bits, hardware)
    dsp = _rtl_dsp(shape, folding, hardware) if rtl else _hls_dsp(shape, bits, folding, hardware)
    node = Estimate(
        lut=0 if rtl else _hls_lut(shape, bits, folding, hardware),
        dsp=dsp,
        bram=_weight_bram(shape, bits, folding, hardware),
        cycles=shape.macs // (folding.pe * folding.simd),
    )
    if shape.output_bits is None or not hardware.standalone_thresholds:
        return node
    return Estimate.total((node, thresholding(shape, bits.outer, folding.pe)))


def _check_buildable(shape: LayerShape) -> None:
    if shape.kind == "transposed":
        reason = "is a transposed convolution"
    elif len(shape.kernel) > 2:
        reason = f"is a convolution over {len(shape.kernel)} axes"
    elif shape.groups > 1 and shape.kind != "depthwise":
        reason = f"has {shape.groups} groups and is not depthwise"
    else:
        return
    raise UnsupportedLayer(
        f"layer '{shape.name}' {reason}, which FINN cannot build; put dense layers in its place, "
        "exclude it or use another cost model."
    )


def thresholding(shape: LayerShape, accumulator: int, pe: int) -> Estimate:
    """Thresholding_rtl behind a layer: 2^b words for every bit b of the output, in every PE.

    A threshold has one bit more than the accumulator. Each memory is the kind that wastes least.

    Args:
        shape: has output bits.
        accumulator: P.
        pe: channels compared at once; divides the outputs.

    Raises:
        InvalidOption: it does not divide them.
    """
    Folding(pe).check(shape)
    channels = shape.outputs // pe
    count = {"uram": 0, "bram": 0, "lut": 0}
    for bit in range(shape.output_bits or 0):
        depth = channels * 2**bit

        def capacity(memory: tuple[str, int, int], depth: int = depth) -> int:
            _, width, words = memory
            return ceil((accumulator + 1) / width) * width * ceil(depth / words) * words

        name, width, words = min(_MEMORIES, key=capacity)
        count[name] += pe * ceil((accumulator + 1) / width) * ceil(depth / words)
    return Estimate(**count, cycles=channels * shape.vectors)


def _is_rtl(shape: LayerShape, bits: Widths, hardware: Hardware) -> bool:
    fused = shape.output_bits is not None and not hardware.standalone_thresholds
    fewest = 4 if hardware.style == "auto" else 2
    if hardware.style == "hls" or fused or min(bits.weight, bits.input) < fewest:
        return False
    if shape.kind == "depthwise":
        fits = bits.input <= 8 + shape.signed and bits.weight <= 8
        return hardware.dsp_block == "DSP58" and fits
    activation, weight, accumulator = _DATAPATH[hardware.dsp_block]
    return (
        bits.input - shape.signed < activation
        and bits.weight <= weight
        and bits.outer <= accumulator
    )


def _rtl_dsp(shape: LayerShape, folding: Folding, hardware: Hardware) -> int:
    if hardware.dsp_block == "DSP58":  # three products in one block
        return folding.pe * ceil(folding.simd / 3)
    return ceil(folding.pe / 4) * folding.simd


def _hls_dsp(shape: LayerShape, bits: Widths, folding: Folding, hardware: Hardware) -> int:
    if hardware.res_type == "lut":
        return 0
    # FINN leaves SIMD out of its depthwise estimate.
    products = folding.pe if shape.kind == "depthwise" else folding.pe * folding.simd
    return products * ceil((bits.weight + bits.input) / 48)


def _hls_lut(shape: LayerShape, bits: Widths, folding: Folding, hardware: Hardware) -> int:
    both = bits.weight + bits.input
    multipliers = 0
    if hardware.res_type == "lut":
        multipliers = folding.simd * (2 * ceil(both / 6) - 1) * both
    adder_tree = both * (2 * folding.simd - 1)
    weights = 0
    depth = _weight_words(shape, folding)
    mode = _memory_mode(shape, hardware)
    embedded = mode == "internal_embedded" and depth <= 128
    if embedded or (mode, hardware.ram_style) == ("internal_decoupled", "distributed"):
        weights = folding.pe * folding.simd * bits.weight * ceil(depth / 64)
    thresholds = _fused_thresholds(shape, bits, folding, hardware)
    per_pe = multipliers + adder_tree + bits.outer + thresholds
    return int(300 + 1.1 * (folding.pe * per_pe) + weights)


def _fused_thresholds(
    shape: LayerShape, bits: Widths, folding: Folding, hardware: Hardware
) -> float:
    """LUTs of one PE: each threshold has a comparator and a place in LUT memory, both P wide."""
    if shape.output_bits is None or hardware.standalone_thresholds:
        return 0
    words = shape.outputs / folding.pe / 64
    if shape.kind != "depthwise":
        if hardware.ram_style_thresholds != "distributed":
            return 0
        words = ceil(words)
    return (2**shape.output_bits - 1) * bits.outer * (words + 1)


def _memory_mode(shape: LayerShape, hardware: Hardware) -> str:
    """Where weights come from: those of a product are another node's output."""
    return "dynamic" if shape.kind == PRODUCT else hardware.mem_mode


def _weight_words(shape: LayerShape, folding: Folding) -> int:
    return shape.weights // (folding.pe * folding.simd)


def _weight_bram(shape: LayerShape, bits: Widths, folding: Folding, hardware: Hardware) -> int:
    """18 Kbit block RAMs from which PE·SIMD·W bits of weights are read at a time."""
    width, depth = folding.pe * folding.simd * bits.weight, _weight_words(shape, folding)
    depthwise = shape.kind == "depthwise"
    mode, style = _memory_mode(shape, hardware), hardware.ram_style
    shallow = depth <= 128
    if (
        mode == "external"
        or (mode == "internal_decoupled" and style == "distributed")
        or (shallow and (mode == "internal_embedded" or (depthwise and style == "auto")))
    ):
        return 0
    # Depthwise nodes leave the parity bits of a block unused.
    if width <= 2:
        return ceil(depth / (16384 // width))
    if width <= 4:
        return ceil(depth / 4096)
    if width <= 9:
        return ceil(depth / 2048) * ceil(width / (8 if depthwise else 9))
    if width <= 18 or depth > 512:
        return ceil(depth / 1024) * ceil(width / (16 if depthwise else 18))
    return ceil(depth / 512) * ceil(width / (32 if depthwise else 36))


@dataclass(frozen=True)
class FinnCost:
    """One number of `estimate` as a cost model.

    For other hardware: `dataclasses.replace(finn_lut, hardware=Hardware(style="auto"))`; what it
    grows with is then yours to claim, since more bits may turn LUTs into DSP blocks.

    Attributes:
        resource: field of Estimate.
        unit: see `CostModel`.
        grows_with: see `CostModel`.
        facts: for the catalogue.
        hardware: how FINN builds the node.
    """

    resource: str
    unit: str
    grows_with: tuple[str, ...]
    facts: Facts
    hardware: Hardware = HLS

    @property
    def depends_on_bits(self) -> bool:
        return self.resource != "cycles"

    def __call__(
        self, shape: LayerShape, precision: LayerPrecision, folding: Folding = SERIAL
    ) -> float:
        return getattr(estimate(shape, precision, folding, self.hardware), self.resource)
