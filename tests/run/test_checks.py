"""What is told in one sentence before the long work, and what is moved where it belongs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from brevitas import nn as qnn
from brevitas.quant import (
    Int8WeightPerTensorFixedPoint,
    SignedBinaryWeightPerTensorConst,
    SignedTernaryWeightPerTensorConst,
)
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from brevitas_axe.errors import InvalidOption, NotEnoughDisk, NotEnoughMemory, UnsupportedLayer
from brevitas_axe.export.finn.prepare import prepare_for_finn
from brevitas_axe.export.hls4ml.prepare import prepare_for_hls4ml
from brevitas_axe.model.running import evaluating
from brevitas_axe.recipe import Run
from brevitas_axe.run import checks
from brevitas_axe.run.checks import check_disk, check_memory, check_training, parameter_bytes
from brevitas_axe.run.finetune import finetune
from brevitas_axe.run.quantize import quantize
from brevitas_axe.run.quantize_blocks import quantize_blocks
from brevitas_axe.run.saving.save import save
from brevitas_axe.run.solve import axe_mode
from brevitas_axe.run.tune import tune
from tests.cli.refusals import refused

X = torch.rand(32, 16, generator=torch.Generator().manual_seed(0))


def net(**options) -> nn.Module:
    torch.manual_seed(0)
    start = qnn.QuantIdentity(bit_width=8, return_quant_tensor=True)
    model = nn.Sequential(start, qnn.QuantLinear(16, 5, bias=True, **options))
    model(X)
    return model.eval()


def test_weights_of_one_bit_are_refused_by_name() -> None:
    model = net(weight_quant=SignedBinaryWeightPerTensorConst)
    with pytest.raises(UnsupportedLayer, match=r"layer '1' has binary or ternary weights.*exclude"):
        quantize(model, [X], accumulator_bit_width=14, progress=False)


def test_a_constant_scale_is_solved() -> None:
    options = {"weight_scaling_impl_type": "const", "weight_scaling_init": 0.1}
    fixed = {**options, "weight_quant": Int8WeightPerTensorFixedPoint}
    for each in (options, fixed, {"weight_quant": SignedTernaryWeightPerTensorConst}):
        result = quantize(net(**each), [X], accumulator_bit_width=14, progress=False)
        assert result.certificate.ok


def test_memory_is_estimated_before_the_work(monkeypatch) -> None:
    layers: dict[str, Any] = {"few": qnn.QuantLinear(8, 2), "many": qnn.QuantLinear(1000, 2)}
    monkeypatch.setattr(checks, "_free_memory", lambda device: 20_000_000)
    with pytest.raises(NotEnoughMemory, match=r"layer 'many' multiplies 1,000 inputs.*exclude"):
        check_memory(layers)
    monkeypatch.setattr(checks, "_free_memory", lambda device: 25_000_000)
    check_memory(layers)
    monkeypatch.setattr(checks, "_free_memory", lambda device: None)
    check_memory(layers)
    check_memory({})


def test_bfloat16_is_refused_by_name_and_half_works() -> None:
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    with pytest.raises(UnsupportedLayer, match=r"'0.weight' is in bfloat16.*model.float"):
        quantize(model.bfloat16(), [X.bfloat16()], accumulator_bit_width=14, progress=False)
    half = quantize(model.half(), [X.half()], accumulator_bit_width=14, progress=False)
    assert half.certificate.ok


@pytest.mark.parametrize("prepare", [prepare_for_finn, prepare_for_hls4ml])
def test_a_wrong_batch_is_told_apart_from_what_is_ours(prepare) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with pytest.raises(InvalidOption, match="the model fails on calibration batch 0"):
        prepare(model, [torch.rand(4, 1, 8, 8)])
    assert all(module.training for module in model.modules())


class Routed(nn.Module):
    """Data decides which expert reads a sample, so the quantized model may decide otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.g = nn.Linear(32, 32), nn.Linear(32, 4, bias=False)
        self.e = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))

    def forward(self, x):
        h = torch.tanh(self.i(x))
        chosen, out = self.g(h).argmax(-1), torch.zeros_like(h)
        for k, expert in enumerate(self.e):
            rows = (chosen == k).nonzero()[:, 0]
            out = out.index_copy(0, rows, expert(h[rows])) if len(rows) else out
        return out


@pytest.mark.filterwarnings("ignore:.* is quantized layer by layer:UserWarning")
def test_routing_that_quantization_changes_is_told_with_the_layer() -> None:
    torch.manual_seed(0)
    model, x = Routed().eval(), torch.randn(256, 32)
    with pytest.raises(UnsupportedLayer, match=r"layer 'e.\d' gets other samples.*solver='gptq'"):
        quantize(model, [x], accumulator_bit_width=16, quality="best", progress=False)
    fast = {"quality": "fast", "solver": "gptq", "progress": False}
    result = quantize(model, [x], accumulator_bit_width=16, **fast)
    assert result.certificate.ok


def test_modules_keep_their_own_modes_and_new_ones_get_the_model_s() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2)).train()
    model[1].eval()
    with evaluating(model):
        assert not any(module.training for module in model.modules())
        model[2] = nn.Linear(2, 2).eval()
    assert [module.training for module in model] == [True, False, True]


ENDS: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0}


class Room(NamedTuple):
    """As shutil.disk_usage tells it, in bytes."""

    total: int
    used: int
    free: int


@pytest.fixture
def free(monkeypatch) -> Callable[[int], None]:
    """Sets how many bytes are free on every file system."""

    def set_free(number: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Room(2**40, 0, number))

    return set_free


def test_the_state_of_a_solve_is_estimated_before_the_work(free, tmp_path) -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
    layer = parameter_bytes(model)
    assert layer == 4 * (2 * 16 * 32 + 48)
    run = Run(state=tmp_path / "state", offload=None)
    free(layer // 4)
    check_disk(model, run)
    free(layer // 4 - 1)
    with pytest.raises(NotEnoughDisk, match=r"state needs about 0.0 MiB.*0.0 MiB are free; make"):
        check_disk(model, run)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "layer-0000.solved").write_bytes(b"1")
    check_disk(model, run)  # a run that goes on has written its part


def test_a_solve_that_would_fill_the_disk_is_refused_before_its_first_layer(free, tmp_path) -> None:
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    free(0)
    told: list[str] = []
    options: dict[str, Any] = {"progress": False, "log": lambda name, *_: told.append(name)}
    options["state"] = tmp_path / "state"
    with pytest.raises(NotEnoughDisk, match="name a folder on another one"):
        quantize(model, [X], accumulator_bit_width=14, **options)
    with pytest.raises(NotEnoughDisk, match="name a folder on another one"):
        tune(model, [X], validate=lambda _: 1.0, accumulator_bit_width=14, run=Run(**options))
    assert told == []
    assert not (tmp_path / "state").exists()
    del options["state"]
    assert quantize(
        model, [X], accumulator_bit_width=14, **options
    ).certificate.ok  # writes nothing
    assert told


def test_blocks_that_find_no_room_stay_as_they_are(free, tmp_path) -> None:
    torch.manual_seed(0)
    config = GPT2Config(n_embd=8, n_layer=1, n_head=2, n_positions=8, vocab_size=11, **ENDS)
    model, tokens = GPT2LMHeadModel(config).eval(), torch.arange(8)[None]
    before = model(tokens).logits
    free(0)
    with pytest.raises(NotEnoughDisk):
        quantize_blocks(
            model, [tokens], accumulator_bit_width=14, state=tmp_path / "state", progress=False
        )
    assert not (tmp_path / "state").exists()
    assert torch.equal(model(tokens).logits, before)


def test_a_training_that_finds_no_room_is_refused(free, tmp_path) -> None:
    free(8 * parameter_bytes(net()) - 1)
    check_training(nn.Linear(1, 1), tmp_path)
    with pytest.raises(NotEnoughDisk):
        check_training(net(), tmp_path)
    y = torch.zeros(len(X), dtype=torch.long)
    result = quantize(net(), [X], accumulator_bit_width=14, progress=False)
    free(0)
    with pytest.raises(NotEnoughDisk):
        finetune(result, [(X, y)], epochs=1, state=tmp_path / "state", progress=False)
    assert not (tmp_path / "state").exists()


USER_FILE = """
import torch

def build():
    return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))

def data():
    return [torch.rand(8, 4)]

def labelled():
    return [(torch.rand(8, 4), torch.zeros(8, dtype=torch.long))]

def good(model):
    return 1.0
"""


@pytest.mark.parametrize(
    "command",
    [
        "quantize user.py:build --calibration user.py:data --accumulator-bits 12",
        "tune user.py:build --calibration user.py:data --validate user.py:good "
        "--accumulator-bits 12",
        "finetune solved --data user.py:labelled",
        "quantize --hf gpt2 --text text.txt --characters --accumulator-bits 14 --context 8 "
        "--windows 2",
    ],
)
def test_commands_refuse_a_full_disk_before_they_solve(
    command, free, tmp_path, monkeypatch, capsys
) -> None:
    (tmp_path / "user.py").write_text(USER_FILE)
    monkeypatch.chdir(tmp_path)
    options = command.split()
    if "solved" in options:
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
        x = torch.rand(8, 4, generator=torch.Generator().manual_seed(0))
        save(quantize(model, [x], accumulator_bit_width=12, progress=False), tmp_path / "solved")
    if "--hf" in options:
        config = GPT2Config(n_embd=8, n_layer=1, n_head=2, n_positions=8, vocab_size=3, **ENDS)
        GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
        (tmp_path / "text.txt").write_text("abc" * 100)
    capsys.readouterr()  # what transformers tells while it writes a model
    free(0)
    monkeypatch.setattr(axe_mode, "update", lambda self: pytest.fail("a layer was solved"))
    sentence = refused(capsys, *options, "--output", "out")
    assert "the folder out needs about" in sentence
    assert not list(tmp_path.glob("out/**/*.*"))
