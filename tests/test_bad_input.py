"""Bad input gets one clear sentence, from an error class of ours, that names the layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from brevitas import nn as qnn
from brevitas.graph.calibrate import calibration_mode
from brevitas.quant import Int8WeightPerChannelFloat, Uint8ActPerTensorFloat
from torch import nn

from brevitas_axe import errors
from brevitas_axe.export import export_qonnx
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.proof.certificate import certify
from brevitas_axe.run.quantize import quantize
from brevitas_axe.run.solve import axe_mode

X = torch.rand(8, 16, generator=torch.Generator().manual_seed(0))


def linear(inputs=16, outputs=6, act=Uint8ActPerTensorFloat, weight=Int8WeightPerChannelFloat):
    return qnn.QuantLinear(
        inputs, outputs, input_quant=act, weight_quant=weight, weight_bit_width=4
    )


def model(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(*(layers or (linear(), nn.ReLU(), linear(6, 3)))).eval()
    with torch.no_grad(), calibration_mode(net):
        net(X)
    return net


def broken(value: float) -> nn.Module:
    net = model()
    net[2].weight.data[1, 1] = value
    return net


def run(net: nn.Module | None = None, calibration=(X,), **options):
    options = {"accumulator_bit_width": 12, "progress": False, **options}
    return quantize(net or model(), calibration, **options)


def planned(**layers: LayerPrecision):
    names = {name.removeprefix("layer"): precision for name, precision in layers.items()}
    return run(accumulator_bit_width=None, plan=Plan(names))


class Twice(nn.Module):
    """Two layers that read one activation."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = linear(act=None), linear(act=None)

    def forward(self, x):
        return self.one(x) + self.two(x)


class Bare:
    """Not iterable."""


# name: (what the user does, error class, words that must appear)
CASES = {
    "no input quantizer": (
        lambda: run(model(linear(), nn.ReLU(), linear(6, 3, act=None))),
        "MissingInputQuantizer",
        ["'2'", "input_quant", "exclude"],
    ),
    "only unquantized layers": (
        lambda: axe_mode(nn.Sequential(nn.Linear(16, 3)), accumulator_bit_width=12),
        "UnquantizedLayer",
        ["'0'", "quantize"],
    ),
    "no layers at all": (
        lambda: axe_mode(nn.ReLU(), accumulator_bit_width=12),
        "UnquantizedLayer",
        ["no"],
    ),
    "NaN weights": (lambda: run(broken(float("nan"))), "NonFiniteValues", ["'2'", "NaN"]),
    "infinite weights": (lambda: run(broken(float("inf"))), "NonFiniteValues", ["'2'"]),
    "NaN calibration": (
        lambda: run(calibration=[X, X * float("nan")]),
        "NonFiniteValues",
        ["batch 1", "NaN"],
    ),
    "NaN inside the model": (
        lambda: run(model(linear(), nn.ReLU(), linear(6, 3)), [X * 1e38 * 1e38 / 1e30]),
        "NonFiniteValues",
        ["batch 0"],
    ),
    "empty calibration": (lambda: run(calibration=[]), "EmptyCalibration", ["no batch"]),
    "empty batch": (lambda: run(calibration=[X[:0]]), "EmptyCalibration", ["batch 0"]),
    "calibration is no iterable": (
        lambda: run(calibration=Bare()),
        "InvalidOption",
        ["iterable"],
    ),
    "width below 2": (lambda: run(accumulator_bit_width=1), "AccumulatorTooNarrow", ["2", "1"]),
    "width above 64": (lambda: run(accumulator_bit_width=65), "AccumulatorTooNarrow", ["65"]),
    "width not whole": (lambda: run(accumulator_bit_width=12.5), "AccumulatorTooNarrow", ["12.5"]),
    "width that leaves only zeros": (
        lambda: run(accumulator_bit_width=8),
        "AccumulatorTooNarrow",
        ["'0'", "9 bits"],
    ),
    "tile of zero": (lambda: run(tile_size=0), "InvalidTile", ["0"]),
    "tile not whole": (lambda: run(tile_size=2.5), "InvalidTile", ["2.5"]),
    "tile larger than a planned layer": (
        lambda: planned(layer2=LayerPrecision(accumulator=12, tile=7)),
        "InvalidTile",
        ["'2'", "7", "6 inputs"],
    ),
    "unknown layer in a plan": (
        lambda: planned(layer9=LayerPrecision(accumulator=12)),
        "InvalidPlan",
        ["9", "0, 2"],
    ),
    "two widths of one quantizer": (
        lambda: run(
            model(
                qnn.QuantIdentity(Uint8ActPerTensorFloat, return_quant_tensor=True),
                Twice(),
            ),
            accumulator_bit_width=None,
            plan=Plan(
                {
                    "1.one": LayerPrecision(input=4, accumulator=12),
                    "1.two": LayerPrecision(input=5, accumulator=12),
                }
            ),
        ),
        "InvalidPlan",
        ["'1.one'", "'1.two'", "4 and 5"],
    ),
    "former keyword": (lambda: run(algorithm="gptq"), "InvalidOption", ["'algorithm'", "solver"]),
    "unknown keyword": (lambda: run(acumulator=3), "InvalidOption", ["'acumulator'", "tile_size"]),
    "a recipe for float models": (
        lambda: run(activations="dynamic"),
        "InvalidOption",
        ["'inputs'", "float model"],
    ),
    "unknown excluded layer": (lambda: run(exclude=("head",)), "InvalidOption", ["'head'", "0, 2"]),
    "exclude is one unknown string": (
        lambda: run(exclude="head"),
        "InvalidOption",
        ["'head'", "0, 2"],
    ),
    "everything excluded": (
        lambda: run(exclude=("0", "2")),
        "UnquantizedLayer",
        ["no", "exclude"],
    ),
    "recurrent layer": (
        lambda: axe_mode(nn.Sequential(qnn.QuantLSTM(4, 4)), accumulator_bit_width=12),
        "UnsupportedLayer",
        ["'0'", "recurrent", "exclude"],
    ),
    "plan and width": (
        lambda: run(plan=Plan({"0": LayerPrecision(accumulator=12)})),
        "InvalidOption",
        ["plan", "not both"],
    ),
    "unknown solver": (
        lambda: run(solver="adaround"),
        "InvalidOption",
        ["'adaround'", "gpfq, gptq, learned_rounding, nearest, qronos"],
    ),
    "unknown quality": (lambda: run(quality="ok"), "InvalidOption", ["'ok'", "fast"]),
    "not a model": (lambda: quantize("model.pt", [X]), "InvalidOption", ["torch", "str"]),
    "a model the data do not fit": (
        lambda: run(nn.Sequential(nn.Linear(5, 3))),
        "InvalidOption",
        ["16", "batch 0"],
    ),
    "state is a file": (
        lambda: run(state=Path(__file__)),
        "InvalidState",
        ["test_bad_input.py"],
    ),
    "export of an unquantized model": (
        lambda: export_qonnx(nn.Sequential(nn.Linear(16, 3)), X, "/nowhere/m.onnx"),
        "ExportRefused",
        ["'0'", "quantize"],
    ),
    "certify without inputs": (lambda: certify(model()), "InvalidOption", ["args"]),
}


@pytest.mark.parametrize("case", CASES)
def test_one_sentence_that_names_what_is_wrong(case):
    action, kind, words = CASES[case]
    with pytest.raises(errors.AxeError) as caught:
        action()
    sentence = str(caught.value)
    assert type(caught.value) is getattr(errors, kind), repr(caught.value)
    assert all(word in sentence for word in words), sentence
    assert sentence.endswith((".", "…"))
    assert "\n" not in sentence
    assert sentence.count(". ") == 0, sentence


def test_the_model_is_still_usable_after_each(tmp_path):
    net = model()
    expected = net(X)
    for options in ({"accumulator_bit_width": 8}, {"exclude": ("x",)}, {"tile_size": 0}):
        with pytest.raises(errors.AxeError):
            run(net, **options)
    assert torch.equal(net(X), expected)
