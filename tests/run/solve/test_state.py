"""A run that was killed goes on to the same integers, or says by name why it cannot."""

from __future__ import annotations

import contextlib
import hashlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from brevitas import nn as qnn
from brevitas.graph.calibrate import calibration_mode
from brevitas.quant import Int8WeightPerChannelFloat, Uint8ActPerTensorFloat
from torch import nn

from brevitas_axe.errors import InvalidState
from brevitas_axe.methods.solvers.problem import LayerSolution
from brevitas_axe.model.fingerprint import Fingerprint
from brevitas_axe.model.layers import find_layers, integer_weight
from brevitas_axe.run.solve import axe_mode
from brevitas_axe.run.solve.state import SavedLayers


def build(bits: int = 4, seed: int = 0, act=nn.ReLU) -> nn.Module:
    torch.manual_seed(seed)
    kinds = {
        "weight_quant": Int8WeightPerChannelFloat,
        "weight_bit_width": bits,
        "input_quant": Uint8ActPerTensorFloat,
    }
    model = nn.Sequential(
        qnn.QuantLinear(24, 32, **kinds),
        act(),
        qnn.QuantLinear(32, 32, **kinds),
        act(),
        qnn.QuantLinear(32, 4, **kinds),
    ).eval()
    with torch.no_grad(), calibration_mode(model):
        model(data())
    return model


def data(seed: int = 1) -> torch.Tensor:
    return torch.rand(64, 24, generator=torch.Generator().manual_seed(seed))


def run(model: nn.Module, state: Path | None, x=None, **options) -> dict[str, torch.Tensor]:
    options = {"accumulator_bit_width": 13, "solver": "qronos", **options}
    with torch.no_grad(), axe_mode(model, state=state, **options) as axe:
        axe.model(data() if x is None else x)
        while axe.update():
            pass
    run.resumed = [entry["resumed"] for entry in axe.log]
    return {name: integer_weight(name, layer)[0] for name, layer in find_layers(model).items()}


def same(one: dict, other: dict) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("solved", [0, 1, 2, 3])
def test_a_run_that_stops_after_any_layer_goes_on(tmp_path, monkeypatch, solved):
    expected, outputs = run(model := build(), None), model(data())
    save = SavedLayers.save

    def save_then_stop(self, index, *args):
        if index == solved:
            raise Killed
        save(self, index, *args)

    with monkeypatch.context() as patch, contextlib.suppress(Killed):
        patch.setattr(SavedLayers, "save", save_then_stop)
        run(build(), tmp_path)
    again = build()
    assert same(run(again, tmp_path), expected)
    assert run.resumed == [index < solved for index in range(3)]
    assert torch.equal(again(data()), outputs)


KILLED_IN_THE_ACT = """
import os, signal, sys
import brevitas_axe.files as files
sys.path.insert(0, {tests!r})
import test_state

replace, count = os.replace, 0
def replace_or_die(*args):
    global count
    count += 1
    if count == 3:
        os.kill(os.getpid(), signal.SIGKILL)  # the third file is written, but has no name yet
    replace(*args)
os.replace = replace_or_die
from pathlib import Path
test_state.run(test_state.build(), Path({state!r}))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_kill_9_in_the_middle_of_a_write(tmp_path):
    script = KILLED_IN_THE_ACT.format(tests=str(Path(__file__).parent), state=str(tmp_path))
    killed = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert sorted(p.name for p in tmp_path.glob("layer-*")) == [
        "layer-0000.solved",
        "layer-0001.solved",
    ]
    assert len(list(tmp_path.iterdir())) == 3
    assert same(run(build(), tmp_path), run(build(), None))


@pytest.mark.parametrize(
    "change",
    [
        {"x": data(2)},
        {"x": data()[:32]},
        {"accumulator_bit_width": 14},
        {"accumulator_tile_size": 8},
        {"solver": "gpfq"},
        {"quality": "fast"},
        {"act_order": False},
        {"seed": 3},
        {"bits": 5},
        {"act": nn.Identity},
    ],
    ids=str,
)
def test_the_state_of_another_run_is_refused(tmp_path, change):
    run(build(), tmp_path)
    of_model = {key: change[key] for key in ("bits", "seed", "act") if key in change}
    of_run = {key: value for key, value in change.items() if key not in of_model}
    with pytest.raises(InvalidState, match="another model, calibration set or setting"):
        run(build(**of_model), tmp_path, **of_run)


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "folder", "other layer"])
def test_a_damaged_file_is_named(tmp_path, damage):
    run(build(), tmp_path)
    path = tmp_path / "layer-0001.solved"
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage == "other layer":
        path.write_bytes((tmp_path / "layer-0000.solved").read_bytes())
    else:
        new = {"truncated": content[: len(content) // 2], "garbage": b"\x93" * 99, "empty": b""}
        path.write_bytes(new[damage])
    match = "belongs to another" if damage == "other layer" else r"layer-0001\.solved is corrupted"
    with pytest.raises(InvalidState, match=match):
        run(build(), tmp_path)


def test_every_flipped_byte_is_noticed(tmp_path):
    saved = SavedLayers(tmp_path)
    solution = LayerSolution(
        torch.arange(12, dtype=torch.int32).view(1, 3, 4), torch.ones(1, 3), torch.zeros(1, 3)
    )
    saved.save(0, "a", "run", solution)
    path = tmp_path / "layer-0000.solved"
    content = path.read_bytes()
    for position in range(0, len(content), 7):
        path.write_bytes(
            content[:position] + bytes([content[position] ^ 0x55]) + content[position + 1 :]
        )
        with pytest.raises(InvalidState, match="corrupted"):
            saved.load(0, "a", "run", solution.integers.shape)


def test_a_solution_comes_back_as_it_was(tmp_path):
    saved = SavedLayers(tmp_path / "new" / "folder")
    shape = torch.Size((1, 2, 3))
    solution = LayerSolution(torch.ones(shape, dtype=torch.int32), torch.rand(1, 2))
    assert saved.load(4, "a", "run", shape) is None
    saved.save(4, "a", "run", solution)
    loaded = saved.load(4, "a", "run", shape)
    assert torch.equal(loaded.integers, solution.integers)
    assert torch.equal(loaded.scale, solution.scale)
    assert loaded.bias_shift is None


def test_fingerprints_see_values_types_shapes_and_names():
    values = [
        torch.zeros(4),
        torch.zeros(2, 2),
        torch.zeros(4, dtype=torch.int32),
        torch.zeros(4, dtype=torch.bfloat16),
        {"a": torch.zeros(4)},
        {"b": torch.zeros(4)},
        ((torch.ones(1),), {}),
        nn.Linear(2, 2),
        nn.Sequential(nn.ReLU()),
        nn.Sequential(nn.GELU()),
        3,
        None,
    ]
    digests = set()
    for value in values:
        fingerprint = Fingerprint({"solver": "gptq"})
        fingerprint.add(value)
        digests.add(fingerprint.hexdigest())
    assert len(digests) == len(values)
    assert Fingerprint({"a": 1}).hexdigest() != Fingerprint({"a": 2}).hexdigest()


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04", b"\x93NUMPY", b"\x80."])
def test_a_valid_digest_around_garbage(tmp_path, content):
    (tmp_path / "layer-0000.solved").write_bytes(hashlib.sha256(content).digest() + content)
    saved = SavedLayers(tmp_path)
    with pytest.raises(InvalidState, match="delete it"):
        saved.load(0, "name", "run", torch.Size([1]))
    with pytest.raises(InvalidState, match="delete it"):
        saved.entry(0)
