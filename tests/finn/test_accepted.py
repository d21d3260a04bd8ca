"""FINN builds what we export: our integers, within our accumulators, with torch's outputs.

Every net meets every value of every axis: weights per channel and per tensor, float and
power-of-two scales, uniform and mixed widths, integers from our solver, from fine-tuning and from
Brevitas's A2Q+, thresholds fused and of their own.

What FINN does otherwise than torch: its thresholds round halves up, torch rounds them to even. In
the residual net with power-of-two scales the sums of two branches lie halfway: their grid is finer
than the step of the ReLU they meet. FINN then equals torch with halves rounded up, and only so;
after `mend_for_finn` it equals torch as it is. With float scales a value lies halfway up to float
rounding, where two quantizers saturate or by chance: whether one does depends on the training, so
these nets are mended where the check finds it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from brevitas.quant.scaled_int import Int8AccumulatorAwareZeroCenterWeightQuant
from qonnx.core.datatype import DataType
from torch import nn

from brevitas_axe import LayerPrecision, Plan, export_qonnx, quantize
from brevitas_axe.export import check_finn, mend_for_finn
from brevitas_axe.model.layers import find_layers, integer_weight
from brevitas_axe.model.quantizers import Int8WeightPerTensorFixedPointAXE
from brevitas_axe.model.running import observe_inputs
from brevitas_axe.run.finetune import finetune
from tests.export.finn.models import halves_up
from tests.finn.layers import accumulator_bits, match
from tests.finn.nets import NETS, Style, Widths, build, digits
from tests.finn.runner import through_finn

MIXED = (Widths(8, 3, 16), Widths(3, 4, 11), Widths(4, 2, 12), Widths(2, 6, 10))
STYLES = {
    "solved": Style(),
    "fine-tuned": Style(Int8WeightPerTensorFixedPointAXE, True, MIXED, bounded=True),
    "A2Q+": Style(Int8AccumulatorAwareZeroCenterWeightQuant, widths=MIXED, bounded=True),
}
RECIPES = {"resnet": "resnet", "temporal": "conv1d"}
TIES = ("resnet", "fine-tuned")
# FINN runs node by node, and the residual net has by far the most of them.
SAMPLES, FEW = 32, 8


def finished(name: str, origin: str) -> tuple[nn.Module, dict[str, int]]:
    """A net that holds its accumulators, and their widths by layer."""
    model, accumulators = build(name, STYLES[origin])
    if origin == "solved":
        plan = Plan({n: LayerPrecision(accumulator=bits) for n, bits in accumulators.items()})
        model = quantize(model, [digits(name)[0][:128]], plan=plan, progress=False).model
    if origin == "fine-tuned":
        images, labels = (part[:512].split(64) for part in digits(name))
        loader = list(zip(images, labels, strict=True))
        model = finetune(model, loader, epochs=1, progress=False).model
    return model, accumulators


def samples(name: str) -> torch.Tensor:
    """Half of them images that were not trained on, half of them noise."""
    count = FEW if name == "resnet" else SAMPLES
    images = digits(name)[0][-count // 2 :]
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(1))
    return torch.cat([images, noise])


def integers(model: nn.Module, x: torch.Tensor) -> dict[str, np.ndarray]:
    layers = find_layers(model)
    observe_inputs(model, layers, (x,))
    return {name: integer_weight(name, layer)[0].numpy() for name, layer in layers.items()}


@pytest.mark.slow
@pytest.mark.finn
@pytest.mark.filterwarnings("ignore:.*halfway between two levels:UserWarning")
@pytest.mark.parametrize("origin", STYLES)
@pytest.mark.parametrize("name", NETS)
def test_finn_builds_it(name: str, origin: str, tmp_path: Path) -> None:
    model, accumulators = finished(name, origin)
    x, path = samples(name), tmp_path / "model.onnx"
    export_qonnx(model, x[:1], path)
    found = {finding.rule for finding in check_finn(path, notes=True)}
    assert found <= {"tie"}
    if (name, origin) == TIES:
        assert found, "the grid is to be finer than the step it meets"
    elif found:
        model, _ = mend_for_finn(model, x[:1])
        export_qonnx(model, x[:1], path)
        assert check_finn(path) == []
    standalone = origin == "A2Q+"
    options = {"stages": ["minimized"], "standalone_thresholds": standalone}
    options["recipe"] = RECIPES.get(name, "default")
    finn = through_finn(path, tmp_path / "finn", x.numpy(), **options)

    assert not finn.errors
    # Images come channels-first; the rearrangement is left to the host, as always in FINN.
    assert finn.unmapped in ([], ["Transpose_0"])
    units = match(finn, integers(model, x[:1]), model)
    assert list(accumulators) == list(units) or name == "resnet"
    flips = 0
    for layer, unit in units.items():
        flips += check_signs(model, layer, unit["signs"])
        bits = accumulator_bits(finn.weights[unit["name"]], unit)
        given = DataType[unit["attributes"]["accDataType"]].bitwidth()
        assert bits <= accumulators[layer]
        # Where nothing follows, FINN rounds up to whole bytes.
        assert given == (bits if unit is not finn.nodes[-1] else -(-bits // 8) * 8)
        assert (f"{unit['name']}.thresholds" in finn.weights) == (
            not standalone and layer != list(accumulators)[-1]
        )
    assert flips

    output = finn.outputs["minimized"].reshape(len(x), -1)
    if (name, origin) == TIES:
        assert distance(output, model, x) > 1e-4, "no sample met a tie"
        model = halves_up(model)
    assert distance(output, model, x) < 1e-4


@pytest.mark.slow
@pytest.mark.finn
def test_without_ties_finn_rounds_as_torch_does(tmp_path: Path) -> None:
    model, _ = finished(*TIES)
    x, path = samples(TIES[0]), tmp_path / "model.onnx"
    mended, changes = mend_for_finn(model, x[:1])
    assert {change.rule for change in changes} == {"tie"}
    export_qonnx(mended, x[:1], path)
    assert check_finn(path) == []
    finn = through_finn(
        path, tmp_path / "finn", x.numpy(), stages=["minimized"], recipe=RECIPES[TIES[0]]
    )
    assert not finn.errors
    output = finn.outputs["minimized"].reshape(len(x), -1)
    assert distance(output, mended, x) < 1e-4
    # What FINN computed of the model as it was.
    assert distance(output, halves_up(model), x) < 1e-4


def distance(output: np.ndarray, model: nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        return float(np.abs(output - model(x).numpy()).max())


def check_signs(model: nn.Module, layer: str, signs: np.ndarray) -> int:
    """FINN flips the columns whose batch norm has a negative gain; returns how many."""
    block = model.get_submodule(layer.rpartition(".")[0])
    norm = getattr(block, "norm", None)
    gains = np.ones(len(signs)) if norm is None else np.sign(norm.weight.detach().numpy())
    assert np.array_equal(signs[signs != 0], gains[signs != 0])
    return int((signs < 0).sum())
