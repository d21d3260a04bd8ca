"""The check and FINN agree: no false alarm, and nothing that FINN refuses is let through.

FINN refuses a file if it raises, if it leaves a layer or floating-point arithmetic between its own
units, or if what it builds computes something else than the file. A tie is no refusal: FINN builds
the file, and computes something else where a value lies halfway between two levels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from brevitas_axe.export import check_finn, export_qonnx, mend_for_finn
from tests.export.finn.cases import ACCEPTED, CASES, TIED
from tests.export.finn.models import build, samples, write
from tests.finn.runner import Finn, through_finn

_UNITS = ("MVAU", "VVAU", "Thresholding")


def reason(finn: Finn, layers: int) -> str:
    """How FINN fails; empty if it builds the file as it is."""
    if finn.errors:
        return f"raises {finn.errors[0]['type']} at {finn.errors[0]['stage']}"
    kinds = [node["op_type"] for node in finn.nodes]
    if len(finn.matrix_units) < layers:
        return "leaves a layer to the host"
    last = max(i for i, kind in enumerate(kinds) if kind.startswith(_UNITS))
    for node in finn.nodes[:last]:
        if node["op_type"].startswith("Elementwise") and "FLOAT32" in node["inputs"]:
            return "computes in float between its layers"
    if any(n["attributes"].get("accDataType") == "UINT0" for n in finn.matrix_units):
        return "has an accumulator without bits"
    expected, found = finn.outputs["qonnx"], finn.outputs["minimized"]
    if found.size != expected.size:
        return "gives another shape"
    error = np.abs(found.reshape(expected.shape) - expected).max()
    return "" if error <= 1e-4 * max(1.0, np.abs(expected).max()) else "computes something else"


@pytest.mark.slow
@pytest.mark.finn
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", CASES)
def test_the_check_agrees_with_finn(name: str, tmp_path: Path) -> None:
    case, path = CASES[name], tmp_path / "model.onnx"
    model = write(case, path)
    layers = sum(hasattr(module, "weight_quant") for module in model.modules())
    finn = through_finn(path, tmp_path / "finn", samples(case, 4).numpy())
    failure = reason(finn, layers)
    assert bool(check_finn(path)) == bool(failure), failure or "FINN builds it"
    assert (name in ACCEPTED) == (not failure), failure or "FINN builds it"


@pytest.mark.slow
@pytest.mark.finn
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", TIED)
def test_finn_computes_something_else_until_ties_are_mended(name: str, tmp_path: Path) -> None:
    case = TIED[name]
    model, x = build(case), samples(case)
    layers = sum(hasattr(module, "weight_quant") for module in model.modules())
    mended, _ = mend_for_finn(model, x[:1])
    failures = []
    for kind, net in (("tied", model), ("mended", mended)):
        path = tmp_path / f"{kind}.onnx"
        export_qonnx(net, x[:1], path)
        assert bool(check_finn(path)) == (kind == "tied")
        failures.append(reason(through_finn(path, tmp_path / kind, x.numpy()), layers))
    assert failures == ["computes something else", ""]
