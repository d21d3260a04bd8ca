"""Our estimates are FINN's: for nodes over a grid of options, and for the nodes it makes itself."""

from __future__ import annotations

import json
import random
import subprocess
from collections import Counter
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from brevitas import nn as qnn
from brevitas.graph.calibrate import calibration_mode
from brevitas.quant import Uint8ActPerTensorFloat
from torch import Tensor, nn

from brevitas_axe.export import export_qonnx
from brevitas_axe.methods.cost import (
    Folding,
    Hardware,
    LayerShape,
    choose_folding,
    choose_foldings,
    estimate,
    full_plan,
    layer_shapes,
    thresholding,
)
from brevitas_axe.methods.cost.protocol import divisors
from brevitas_axe.plan import LayerPrecision
from tests.finn.environment import NoFinn, python
from tests.finn.runner import through_finn

_ESTIMATES = Path(__file__).with_name("estimates.py")
PARTS = {
    "DSP48E1": "xc7z020clg400-1",
    "DSP48E2": "xczu7ev-ffvc1156-2-e",
    "DSP58": "xcvc1902-vsva2197-2MP-e-S",
}
RESOURCES = {"lut": "LUT", "dsp": "DSP", "bram": "BRAM_18K", "cycles": "cycles"}


@dataclass(frozen=True)
class Case:
    """One node in our words."""

    shape: LayerShape
    precision: LayerPrecision
    folding: Folding
    hardware: Hardware

    def node(self) -> dict:
        """The same in FINN's words."""
        shape, bits, hardware = self.shape, self.precision, self.hardware
        dense = shape.kind != "depthwise"
        rtl = hardware.style == "rtl"
        output = shape.output_bits
        attributes = {
            "PE": self.folding.pe,
            "SIMD": self.folding.simd,
            "inputDataType": f"{'INT' if shape.signed else 'UINT'}{bits.input}",
            "weightDataType": f"INT{bits.weight}",
            "accDataType": f"INT{bits.accumulator or 32}",
            "outputDataType": f"UINT{output}" if output else f"INT{bits.accumulator or 32}",
            "noActivation": int(output is None),
            "mem_mode": "dynamic" if shape.kind == "product" else hardware.mem_mode,
            "ram_style": hardware.ram_style,
            "resType": hardware.res_type,
        }
        if dense:
            attributes |= {
                "MW": shape.inputs,
                "MH": shape.outputs,
                "numInputVectors": [1, 1, shape.vectors],
                "ram_style_thresholds": hardware.ram_style_thresholds,
            }
        else:
            attributes |= {
                "Channels": shape.outputs,
                "Kernel": list(shape.kernel),
                "Dim": [1, shape.vectors],
            }
        op_type = f"{'MVAU' if dense else 'VVAU'}_{'rtl' if rtl else 'hls'}"
        part = PARTS[hardware.dsp_block]
        return {"part": part, "op_type": op_type, "attributes": attributes}


def random_case(seed: int) -> Case:
    """A node with every option drawn; sizes reach from one word to several block RAMs."""
    draw = random.Random(seed)
    depthwise, rtl = draw.random() < 0.4, draw.random() < 0.25
    signed = draw.random() < 0.5
    kernel = draw.choice([(1, 1), (3, 3), (1, 5), (7, 7)]) if depthwise else ()
    inputs = prod(kernel) if depthwise else draw.choice([1, 9, 24, 64, 300, 1152])
    outputs = draw.choice([1, 4, 10, 48, 512])
    shape = LayerShape(
        name=f"layer{seed}",
        kind="depthwise" if depthwise else "product" if seed % 3 == 0 else "dense",
        inputs=inputs,
        outputs=outputs,
        vectors=draw.choice([1, 16, 49]),
        groups=outputs if depthwise else 1,
        kernel=kernel,
        channels=outputs if depthwise else inputs,
        signed=signed,
        output_bits=None if rtl else draw.choice([None, 1, 2, 4, 8]),
    )
    precision = LayerPrecision(
        weight=draw.randint(2, 8),
        input=draw.randint(2, 8),
        accumulator=draw.choice([None, 5, 9, 12, 16, 24]),
    )
    hardware = Hardware(
        style="rtl" if rtl else "hls",
        res_type=draw.choice(["lut", "dsp"]),
        mem_mode=draw.choice(["internal_decoupled", "internal_embedded", "external"]),
        ram_style=draw.choice(["auto", "block", "distributed"]),
        ram_style_thresholds=draw.choice(["distributed", "auto", "block"]),
        dsp_block="DSP58" if rtl and depthwise else draw.choice(list(PARTS)),
    )
    folding = Folding(draw.choice(divisors(outputs)), draw.choice(divisors(inputs)))
    return Case(shape, precision, folding, hardware)


def finn_estimates(nodes: list[dict]) -> list[dict[str, int]]:
    try:
        interpreter = python()
    except NoFinn as reason:
        pytest.skip(str(reason))
    done = subprocess.run(
        [interpreter, _ESTIMATES],
        input=json.dumps(nodes),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_nodes_are_estimated_as_finn_does() -> None:
    cases = [random_case(seed) for seed in range(2000)]
    for case, theirs in zip(cases, finn_estimates([c.node() for c in cases]), strict=True):
        ours = asdict(estimate(case.shape, case.precision, case.folding, case.hardware))
        assert {k: ours[k] for k in RESOURCES} == {k: theirs[f] for k, f in RESOURCES.items()}, case


def test_standalone_thresholds_are_estimated_as_finn_does() -> None:
    cases = [
        (channels, pe, accumulator, bits)
        for channels in (1, 48, 128, 4096)
        for pe in (1, channels)
        for accumulator in (5, 8, 16, 17, 24)
        for bits in (1, 2, 4, 8)
    ]
    nodes = [
        {
            "part": PARTS["DSP48E2"],
            "op_type": "Thresholding_rtl",
            "attributes": {
                "NumChannels": channels,
                "PE": pe,
                "inputDataType": f"INT{accumulator}",
                "weightDataType": f"INT{accumulator + 1}",
                "outputDataType": f"UINT{bits}",
                "numSteps": 2**bits - 1,
                "numInputVectors": [1, 3, 3],
            },
        }
        for channels, pe, accumulator, bits in cases
    ]
    seen = set()
    for (channels, pe, accumulator, bits), theirs in zip(cases, finn_estimates(nodes), strict=True):
        shape = LayerShape("layer", "dense", 8, channels, 9, output_bits=bits)
        ours = asdict(thresholding(shape, accumulator, pe))
        words = {**RESOURCES, "uram": "URAM"}
        assert {k: ours[k] for k in words} == {k: theirs[f] for k, f in words.items()}
        seen |= {key for key, value in ours.items() if value}
    assert seen == {"lut", "bram", "uram", "cycles"}, "the grid must reach every kind of memory"


class Net(nn.Sequential):
    """Dense, depthwise and pointwise convolutions and a linear layer, as FINN wants them."""

    def __init__(self) -> None:
        def conv(inputs: int, outputs: int, size: int, bits: int, **options: Any) -> list:
            return [
                qnn.QuantConv2d(
                    inputs, outputs, size, bias=False, weight_bit_width=bits, **options
                ),
                nn.BatchNorm2d(outputs),
                qnn.QuantReLU(bit_width=3, return_quant_tensor=True),
            ]

        super().__init__(
            qnn.QuantIdentity(bit_width=8, return_quant_tensor=True),
            *conv(3, 8, 3, 4),
            *conv(8, 8, 3, 3, groups=8),
            *conv(8, 12, 1, 4),
            nn.Flatten(),
            qnn.QuantLinear(12 * 16, 10, bias=False, weight_bit_width=4),
        )


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> tuple[nn.Module, tuple, Path]:
    torch.manual_seed(0)
    model, x = Net(), torch.randn(1, 3, 8, 8)
    with torch.no_grad(), calibration_mode(model.eval()):
        model(torch.randn(64, 3, 8, 8))
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    export_qonnx(model.eval(), x, path)
    return model, (x,), path


@pytest.mark.parametrize("standalone", [False, True])
def test_an_exported_net_is_estimated_as_finn_does(net, tmp_path, standalone) -> None:
    """Shapes and node types come from the Brevitas model; widths P are those that FINN found."""
    model, args, path = net
    hardware = Hardware("auto", standalone)
    kinds = compare_nodes(model, args, path, tmp_path, hardware)
    assert ("MVAU_rtl" in kinds) == standalone, "the net must reach both kinds of unit"


class Functional(nn.Module):
    """Functions between layers and quantizers: ReLU, a scaling, and a residual addition."""

    def __init__(self) -> None:
        super().__init__()

        def conv(inputs: int, bits: int) -> nn.Module:
            return qnn.QuantConv2d(
                inputs, 4, 3, padding=1, bias=False, weight_bit_width=3,
                input_quant=Uint8ActPerTensorFloat, input_bit_width=bits,
            )  # fmt: skip

        self.convs = nn.ModuleList([conv(3, 8), conv(4, 3), conv(4, 2)])
        self.join = qnn.QuantIdentity(bit_width=5)
        self.relu = qnn.QuantReLU(bit_width=4, return_quant_tensor=True)
        self.head = qnn.QuantLinear(4 * 64, 5, bias=False, weight_bit_width=4)

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = self.convs
        x = self.join(second(F.relu(0.5 * first(x))))
        y = self.join(third(F.relu(x)))
        return self.head(self.relu(x + y).flatten(1))


def test_functions_in_front_of_thresholds_are_estimated_as_finn_does(tmp_path) -> None:
    torch.manual_seed(0)
    model, x = Functional().eval(), torch.rand(1, 3, 8, 8)
    with torch.no_grad(), calibration_mode(model):
        model(torch.rand(64, 3, 8, 8))
    export_qonnx(model.eval(), x, tmp_path / "net.onnx")
    shapes = layer_shapes(model, (x,))
    assert [shape.output_bits for shape in shapes.values()] == [3, 5, 5, None]
    compare_nodes(model, (x,), tmp_path / "net.onnx", tmp_path / "finn", Hardware("auto"))


def compare_nodes(
    model: nn.Module, args: tuple, path: Path, folder: Path, hardware: Hardware
) -> Counter:
    """Compares the estimates of all matrix units; returns how many there are of each kind."""
    shapes = layer_shapes(model, args)
    free = full_plan(model, args)
    chosen = choose_foldings(shapes, free, 400, hardware)
    standalone = hardware.standalone_thresholds
    folding: dict[str, dict[str, int | str]] = {}
    count = Counter()
    for name, shape in shapes.items():
        in_dsp = estimate(shape, free[name], chosen[name], hardware).dsp > 0
        dense = shape.kind == "dense"
        op_type = f"{'MVAU' if dense else 'VVAU'}_{'rtl' if in_dsp else 'hls'}"
        node = f"{op_type}_{count[op_type]}"
        count[op_type] += 1
        folding[node] = {"PE": chosen[name].pe, "SIMD": chosen[name].simd}
        if dense:
            folding[node]["ram_style_thresholds"] = "distributed"
    finn = through_finn(path, folder, standalone_thresholds=standalone, stages=[], folding=folding)
    assert not finn.errors
    assert [node["name"] for node in finn.matrix_units] == list(folding)
    for (name, shape), node in zip(shapes.items(), finn.matrix_units, strict=True):
        accumulator = int(node["attributes"]["accDataType"].removeprefix("INT"))
        precision = replace(free[name], accumulator=accumulator)
        if standalone:  # the thresholds behind it are another node
            shape = replace(shape, output_bits=None)
        ours = asdict(estimate(shape, precision, chosen[name], hardware))
        theirs = {**node["resources"], "cycles": node["cycles"]}
        assert {k: ours[k] for k in RESOURCES} == {k: theirs[f] for k, f in RESOURCES.items()}, node
    return count


def test_foldings_keep_finn_s_pace_with_no_more_hardware() -> None:
    cases = []
    for seed in range(300):
        case = random_case(seed)
        faster = random.Random(seed).choice([1, 3, 16, 200])
        cases.append((case, max(case.shape.vectors, case.shape.macs // faster)))
    nodes = [{**case.node(), "max_cycles": target} for case, target in cases]
    cheaper = met = 0
    for (case, target), theirs in zip(cases, finn_estimates(nodes), strict=True):
        if theirs["cycles"] > target:
            continue  # FINN keeps weight words narrow and gives up; nothing to compare
        met += 1
        shape, precision, hardware = case.shape, case.precision, case.hardware
        ours = choose_folding(shape, precision, target, hardware)
        mine = estimate(shape, precision, ours, hardware)
        assert mine.cycles <= target
        assert (mine.dsp, mine.lut) <= (theirs["DSP"], theirs["LUT"]), case
        cheaper += (mine.dsp, mine.lut) < (theirs["DSP"], theirs["LUT"])
    assert met > len(cases) / 2
    assert cheaper
