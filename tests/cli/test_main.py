"""The command line as a user meets it: exit status, one sentence, no traceback."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from brevitas import nn as qnn
from brevitas.quant import Uint8ActPerTensorFloat
from torch import nn

from brevitas_axe.cli import main
from brevitas_axe.export import export_qonnx
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.recipe import Recipe
from tests.cli.refusals import refused

USER_FILE = """
import torch

def build():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))

def data():
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(32, 12, generator=generator) for _ in range(2)]

def labelled():
    return [(x, torch.zeros(32)) for x in data()]

def named():
    return [{"input": x} for x in data()]

def small(model):
    return -float(model(data()[0]).square().mean())

def nothing():
    return []

def number():
    return 7

def broken():
    raise ValueError("no such checkpoint")
"""


@pytest.fixture(scope="module")
def model_file(tmp_path_factory) -> Path:
    """Two layers of known integers: 3 bits of weights, 4 bits of inputs."""
    torch.manual_seed(0)
    model = nn.Sequential(
        qnn.QuantIdentity(act_quant=Uint8ActPerTensorFloat, bit_width=4, return_quant_tensor=True),
        qnn.QuantLinear(6, 5, bias=True, weight_bit_width=3),
    )
    model(torch.rand(16, 6))
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    export_qonnx(model.eval(), torch.rand(1, 6), path)
    return path


@pytest.fixture
def user_file(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "my_model.py"
    path.write_text(USER_FILE)
    return path


def test_certify_says_proven_and_not_proven(model_file, capsys) -> None:
    assert main(["certify", str(model_file), "--accumulator-bits", "16"]) == 0
    assert main(["certify", str(model_file), "--accumulator-bits", "4"]) == 1
    assert "NOT proven" in capsys.readouterr().out


def test_certify_prints_json_and_nothing_else(model_file, capsys) -> None:
    assert main(["certify", str(model_file), "--accumulator-bits", "16", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True


def test_certify_takes_a_plan_and_exclusions(model_file, tmp_path, capsys) -> None:
    Plan({"1": LayerPrecision(accumulator=4)}).save(tmp_path / "plan.json")
    command = ["certify", str(model_file), "--plan", str(tmp_path / "plan.json")]
    assert main(command) == 1
    # With everything excluded there is nothing left that is proven.
    assert main([*command, "--exclude", "1"]) == 1
    capsys.readouterr()
    assert "nobody" in refused(capsys, *command, "--exclude", "nobody")


def test_check_says_what_finn_would_refuse(model_file, tmp_path, capsys) -> None:
    assert main(["check", str(model_file), "--target", "finn"]) == 0
    assert "builds it as it is" in capsys.readouterr().out
    model = nn.Sequential(qnn.QuantLinear(6, 5, bias=True, weight_bit_width=3))
    path = tmp_path / "model.onnx"
    export_qonnx(model.eval(), torch.rand(1, 6), path, target="qonnx")
    assert main(["check", str(path)]) == 1
    shown = capsys.readouterr().out
    assert "1 finding " in shown
    assert "float_input" in shown
    assert main(["check", str(path), "--json"]) == 1
    finding = json.loads(capsys.readouterr().out)["findings"][0]
    assert (finding["layer"], finding["severity"]) == ("0", "refused")
    assert "input_quant" in finding["way_out"]
    refused(capsys, "check", str(tmp_path / "nothing.onnx"))


@pytest.mark.parametrize("content", [None, b"", b"not onnx", b"\x08\x07" * 50])
def test_certify_refuses_what_is_no_model(content, tmp_path, capsys) -> None:
    path = tmp_path / "x.onnx"
    if content is not None:
        path.write_bytes(content)
    refused(capsys, "certify", str(path), "--accumulator-bits", "16")


def test_certify_refuses_a_plan_that_is_no_plan(model_file, tmp_path, capsys) -> None:
    (tmp_path / "plan.json").write_text("{")
    sentence = refused(capsys, "certify", str(model_file), "--plan", str(tmp_path / "plan.json"))
    assert "JSON" in sentence


@pytest.mark.parametrize("bits", ["1", "65", "-3"])
def test_certify_refuses_impossible_widths(bits, model_file, capsys) -> None:
    assert bits in refused(capsys, "certify", str(model_file), f"--accumulator-bits={bits}")


def test_certify_refuses_a_tile_of_nothing(model_file, capsys) -> None:
    command = ["certify", str(model_file), "--accumulator-bits", "16", "--tile-size", "0"]
    assert "tile" in refused(capsys, *command)


def test_emulate_writes_outputs_and_counts_overflows(model_file, tmp_path, capsys) -> None:
    inputs, output = tmp_path / "x.npy", tmp_path / "y.npy"
    np.save(inputs, np.random.default_rng(0).random((4, 6), dtype=np.float32))
    command = ["emulate", str(model_file), "--inputs", str(inputs), "--output", str(output)]
    assert main([*command, "--accumulator-bits", "32"]) == 0
    exact = np.load(output)
    assert exact.shape == (4, 5)
    assert main([*command, "--accumulator-bits", "4"]) == 0
    assert "overflows" in capsys.readouterr().out
    assert not np.array_equal(np.load(output), exact)


@pytest.mark.parametrize("content", [None, b"", b"text", b"\x93NUMPY\x01\x00"])
def test_emulate_refuses_what_is_no_array(content, model_file, tmp_path, capsys) -> None:
    inputs = tmp_path / "x.npy"
    if content is not None:
        inputs.write_bytes(content)
    command = ["emulate", str(model_file), "--inputs", str(inputs), "--output", "y.npy"]
    assert "x.npy" in refused(capsys, *command, "--accumulator-bits", "8")


def test_emulate_does_not_unpickle(model_file, tmp_path, capsys) -> None:
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    command = ["emulate", str(model_file), "--inputs", str(tmp_path / "x.npy")]
    refused(capsys, *command, "--output", "y.npy", "--accumulator-bits", "8")


def test_quantize_leaves_a_folder_that_proves_itself(user_file, tmp_path, capsys) -> None:
    command = ["quantize", "my_model.py:build", "--calibration", "my_model.py:data"]
    status = main([*command, "--accumulator-bits", "12", "--output", "out", "--quality", "fast"])
    assert status == 0, capsys.readouterr()
    names = {
        "model.onnx",
        "plan.json",
        "recipe.yaml",
        "certificate.json",
        "summary.json",
        "report.html",
        "model",
    }
    assert names == {path.name for path in (tmp_path / "out").iterdir()}
    onnx.checker.check_model(str(tmp_path / "out" / "model.onnx"))
    assert Plan.load(tmp_path / "out" / "plan.json").layers
    assert Recipe.load(tmp_path / "out" / "recipe.yaml").quality == "fast"
    assert main(["certify", "out/model.onnx", "--plan", "out/plan.json"]) == 0


@pytest.mark.parametrize("calibration", ["labelled", "named"])
def test_quantize_takes_batches_with_labels_or_by_name(calibration, user_file, capsys) -> None:
    command = ["quantize", "my_model.py:build", "--calibration", f"my_model.py:{calibration}"]
    status = main([*command, "--accumulator-bits", "12", "--output", "out", "--quality", "fast"])
    assert status == 0, capsys.readouterr()


@pytest.mark.parametrize(
    ("model", "calibration", "says"),
    [
        ("my_model.py", "my_model.py:data", "not of the form"),
        ("absent.py:build", "my_model.py:data", "does not exist"),
        ("my_model.py:absent", "my_model.py:data", "no function named 'absent'"),
        ("my_model.py:number", "my_model.py:data", "torch.nn.Module"),
        ("my_model.py:broken", "my_model.py:data", "no such checkpoint (my_model.py, line"),
        ("my_model.py:build", "my_model.py:nothing", "no batch"),
        ("my_model.py:build", "my_model.py:number", "iterable"),
    ],
)
def test_quantize_refuses_by_name(model, calibration, says, user_file, capsys) -> None:
    command = ["quantize", model, "--calibration", calibration, "--accumulator-bits", "12"]
    assert says in refused(capsys, *command)


def test_quantize_refuses_a_file_that_cannot_be_imported(user_file, capsys) -> None:
    user_file.write_text("import no_such_module_anywhere\n")
    command = ["quantize", "my_model.py:build", "--calibration", "my_model.py:data"]
    assert "no_such_module_anywhere" in refused(capsys, *command, "--accumulator-bits", "12")


def test_quantize_wants_a_width(user_file, capsys) -> None:
    command = ["quantize", "my_model.py:build", "--calibration", "my_model.py:data"]
    assert "--accumulator-bits" in refused(capsys, *command)


def test_quantize_chooses_widths_by_a_function_of_the_user(user_file, tmp_path, capsys) -> None:
    command = ["quantize", "my_model.py:build", "--calibration", "my_model.py:data"]
    command += ["--widths", "auto", "--quality", "fast", "--output", str(tmp_path / "out")]
    limits = ["--accumulator-bits", "9", "--budget", "bops=90%", "--validate", "my_model.py:small"]
    assert main([*command, *limits]) == 0
    assert "validation" in capsys.readouterr().out
    plan = Plan.load(tmp_path / "out" / "plan.json")
    assert [p.accumulator for p in plan.layers.values()] == [9, 9]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    best = max(row["validation"] for row in summary["tried"])
    assert len(summary["tried"]) >= 2
    assert Recipe.load(tmp_path / "out" / "recipe.yaml").widths is None
    assert best < 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--widths", "auto"], "give --accumulator-bits"),
        (["--widths", "auto", "--accumulator-bits", "9", "--input-bits", "4"], "leave out input"),
        (["--accumulator-bits", "9", "--budget", "bops=80%"], "set widths to auto"),
        (["--widths", "auto", "--budget", "bops"], "a positive number"),
        (["--widths", "auto", "--budget", "bops=1", "--budget", "bops=2"], "given twice"),
    ],
)
def test_quantize_says_what_does_not_go_with_chosen_widths(
    options, says, user_file, capsys
) -> None:
    command = ["quantize", "my_model.py:build", "--calibration", "my_model.py:data"]
    assert says in refused(capsys, *command, *options)


def test_quantize_wants_weights_other_than_zero(user_file, capsys) -> None:
    command = ["quantize", "my_model.py:build", "--calibration", "my_model.py:data"]
    sentence = refused(capsys, *command, "--accumulator-bits", "12", "--weight-bits", "1")
    assert "--weight-bits 1 leaves no weight but zero" in sentence


@pytest.mark.parametrize("command", ["quickstart", "quantize", "certify", "emulate"])
def test_every_command_has_help(command, capsys) -> None:
    with pytest.raises(SystemExit) as exit:
        main([command, "--help"])
    assert exit.value.code == 0
    assert command in capsys.readouterr().out
