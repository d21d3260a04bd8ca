"""The check and hls4ml agree: no false alarm, and what hls4ml refuses or gets wrong is named.

Each file goes to hls4ml as a user would send it, with hls4ml's own inference of every type. It
fails if it raises, if g++ does not compile it, or if it computes something else than torch.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import yaml
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.transformation.general import GiveReadableTensorNames, GiveUniqueNodeNames

from brevitas_axe.export.hls4ml.project import CONFIGURATION, MODEL, channels_last
from tests.export.hls4ml.cases import CASES, samples, write
from tests.hls4ml.runner import through_hls4ml


def write_plain(proto: onnx.ModelProto, folder: Path) -> None:
    """The file in hls4ml's layout, and a configuration that leaves every type to hls4ml."""
    wrapped = ModelWrapper(proto)
    for step in (GiveUniqueNodeNames(), GiveReadableTensorNames()):
        wrapped = wrapped.transform(step)
    last = channels_last(wrapped.model, False)
    names = [*(value.name for value in last.graph.input), *(node.name for node in last.graph.node)]
    layers = {name: {"Precision": {"default": "auto"}} for name in names}
    configuration = {
        "OnnxModel": MODEL,
        "OutputDir": "project",
        "ProjectName": "network",
        "Backend": "Vitis",
        "IOType": "io_parallel",
        "HLSConfig": {
            "Model": {"Precision": {"default": "fixed<16,6>"}, "ReuseFactor": 1},
            "LayerName": layers,
        },
    }
    (folder / MODEL).write_bytes(last.SerializeToString())
    (folder / CONFIGURATION).write_text(yaml.safe_dump(configuration))


@pytest.mark.slow
@pytest.mark.hls4ml
@pytest.mark.filterwarnings("ignore:Computing zero point of output accumulator:UserWarning")
@pytest.mark.parametrize("name", CASES)
def test_the_check_agrees_with_hls4ml(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model, proto = write(case, tmp_path / "given.onnx")
    x = samples(case)
    try:
        write_plain(proto, tmp_path)
    except Exception:
        assert case.rule in ("operator", "twice")  # qonnx itself cannot bring it into the layout
        return
    result = through_hls4ml(tmp_path, [x.numpy()])[0]
    failed = bool(result.error)
    if not failed:
        with torch.no_grad():
            expected = model(x)
        expected = getattr(expected, "value", expected).numpy().reshape(len(x), -1)
        found = result.outputs[0]
        failed = found.shape != expected.shape or bool(np.abs(found - expected).max() > 1e-6)
    assert failed == bool(case.rule), result.error
