"""FINN's environment appears whole or not at all, and its refusals are told by stage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from brevitas import nn as qnn

from brevitas_axe import export_qonnx
from tests.finn import environment
from tests.finn.nets import Maker, Style, train
from tests.finn.runner import through_finn


def test_without_packages_nothing_is_left_and_the_reason_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BREVITAS_AXE_FINN_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(environment.NoFinn, match=r"cannot be built here: .*No matching dist"):
        environment.python()
    assert not any(tmp_path.iterdir())


@pytest.mark.finn
def test_one_environment_per_pins_and_machine() -> None:
    try:
        first = environment.python()
    except environment.NoFinn as reason:
        pytest.skip(str(reason))
    assert first.exists()
    assert environment.python() == first


@pytest.mark.finn
def test_a_refusal_of_finn_is_told_by_stage(tmp_path: Path) -> None:
    """FINN shifts when it averages: the rounding that Brevitas takes by default is refused."""
    torch.manual_seed(0)
    make = Maker(Style())
    model = torch.nn.Sequential(
        make.unsigned(8),
        make.block(qnn.QuantConv2d, 1, 4, 3),
        qnn.TruncAvgPool2d(6),
        torch.nn.Flatten(),
        make.head(4),
    )
    images = torch.rand(64, 1, 8, 8)
    train(model, images, torch.randint(0, 10, (64,)), steps=1)
    path = tmp_path / "model.onnx"
    export_qonnx(model, images[:1], path, target="qonnx")
    finn = through_finn(path, tmp_path / "finn")
    assert finn.stages == []
    assert [(e["step"], e["type"]) for e in finn.errors] == [("step_qonnx_to_finn", "ValueError")]
    assert "rounding_mode set to 'FLOOR'" in finn.errors[0]["message"]
    assert not finn.matrix_units
