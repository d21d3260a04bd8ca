"""`brevitas-axe export` and `check --target hls4ml` as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from brevitas_axe.cli import main

USER_FILE = """
import torch
from torch import nn
from brevitas_axe.export import prepare_for_hls4ml

def data():
    return [torch.rand(32, 12, generator=torch.Generator().manual_seed(1))]

def fixed():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    return prepare_for_hls4ml(net, data())

def floating():
    from brevitas_axe.model.prepare import as_batches, to_brevitas
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    return to_brevitas(net, as_batches(data()))
"""


@pytest.fixture
def user_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "fixed_point_model.py"
    path.write_text(USER_FILE)
    return path


def test_a_model_goes_to_hls4ml_by_way_of_a_file(user_file: Path, capsys) -> None:
    name = user_file.name
    traced = ["--calibration", f"{name}:data"]
    assert main(["export", f"{name}:fixed", "net.onnx", "--target", "qonnx", *traced]) == 0
    assert main(["check", "net.onnx", "--target", "hls4ml"]) == 0
    assert "hls4ml builds it as it is" in capsys.readouterr().out
    assert main(["export", "net.onnx", "project", "--target", "hls4ml", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["accumulators"]
    assert [row["layer"] for row in rows] == ["0", "2"]
    assert all(row["accum_t"].startswith(f"fixed<{row['bits']},") for row in rows)
    assert {path.name for path in Path("project").iterdir()} == {
        "model.onnx",
        "hls4ml.yml",
        "certificate.json",
    }


def test_what_hls4ml_would_compute_otherwise_is_refused(user_file: Path, capsys) -> None:
    name = user_file.name
    traced = ["--calibration", f"{name}:data"]
    assert main(["export", f"{name}:floating", "net.onnx", "--target", "qonnx", *traced]) == 0
    assert "next: brevitas-axe certify net.onnx" in capsys.readouterr().out
    assert main(["check", "net.onnx", "--target", "hls4ml", "--json"]) == 1
    rules = {found["rule"] for found in json.loads(capsys.readouterr().out)["findings"]}
    assert "float_scale" in rules
    assert main(["export", "net.onnx", "project", "--target", "hls4ml"]) == 2
    assert "no power of two" in capsys.readouterr().err
    assert not Path("project").exists()


def test_a_file_cannot_be_traced(user_file: Path, capsys) -> None:
    there = user_file.with_name("net.onnx")
    there.write_bytes(b"")
    assert main(["export", str(there), "again.onnx", "--target", "finn"]) == 2
    assert "give my_model.py:function" in capsys.readouterr().err
    assert main(["export", f"{user_file.name}:fixed", "project", "--target", "hls4ml"]) == 2
    assert "--calibration" in capsys.readouterr().err
