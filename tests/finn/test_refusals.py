"""The check and FINN agree: no false alarm, and nothing that FINN refuses is let through.

FINN refuses a file if a step of its builder raises or never ends, if it leaves a layer to the host,
adds branches in float or has an accumulator without bits, or if what it builds computes something
else than the file. A tie is no refusal: FINN builds the file, and computes something else where a
value lies halfway between two levels. Neither are functions of one tensor that are computed in
float32 between layers, which are notes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brevitas_axe.export import check_finn, export_qonnx, mend_for_finn
from tests.export.finn.cases import ACCEPTED, CASES, TIED
from tests.export.finn.models import build, samples, write
from tests.finn.runner import Finn, through_finn

_VERSAL = "xcvc1902-vsva2197-2MP-e-S"


def reason(finn: Finn, layers: int) -> str:
    """How FINN fails; empty if it builds the file as it is."""
    if finn.errors:
        return f"raises {finn.errors[0]['type']} at {finn.errors[0]['step']}"
    if len(finn.matrix_units) < layers:
        return "leaves a layer to the host"
    last = finn.nodes.index(finn.matrix_units[-1])
    for node in finn.nodes[:last]:
        styles = [node["attributes"].get(side) for side in ("lhs_style", "rhs_style")]
        adds = node["op_type"].startswith("ElementwiseAdd") and styles == ["input", "input"]
        if adds and "FLOAT32" in node["inputs"]:
            return "adds branches in float between its layers"
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
    options: dict[str, Any] = {"recipe": case.recipe, "seconds": case.seconds}
    if case.versal:
        options["part"] = _VERSAL
    finn = through_finn(path, tmp_path / "finn", samples(case, 4).numpy(), **options)
    failure = reason(finn, layers)
    assert bool(check_finn(path)) == bool(failure), failure or "FINN builds it"
    assert (name in ACCEPTED) == (not failure), failure or "FINN builds it"


@pytest.mark.slow
@pytest.mark.finn
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", [n for n, case in ACCEPTED.items() if case.versal])
def test_finn_builds_some_functions_for_versal_devices_only(name: str, tmp_path: Path) -> None:
    write(ACCEPTED[name], tmp_path / "model.onnx")
    notes = check_finn(tmp_path / "model.onnx", notes=True)
    assert any("for Versal devices only" in note.problem for note in notes)
    (error,) = through_finn(tmp_path / "model.onnx", tmp_path / "finn").errors
    assert error["step"] == "step_specialize_layers"


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
        finn = through_finn(path, tmp_path / kind, x.numpy(), recipe=case.recipe)
        failures.append(reason(finn, layers))
    assert failures == ["computes something else", ""]
