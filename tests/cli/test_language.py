"""`brevitas-axe quantize --hf` on a tiny model of characters, from the disk."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    ViTConfig,
)

from brevitas_axe import load
from brevitas_axe.accumulator import fits
from brevitas_axe.cli import main
from brevitas_axe.run.result import BlocksResult

TEXT = "the quick brown fox jumps over the lazy dog. " * 60
LETTERS = sorted(set(TEXT))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    config = GPT2Config(vocab_size=len(LETTERS), bos_token_id=0, eos_token_id=0, **shape)
    place = tmp_path_factory.mktemp("model")
    GPT2LMHeadModel(config).save_pretrained(place / "gpt2")
    small: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    BertModel(BertConfig(vocab_size=50, num_hidden_layers=1, **small)).save_pretrained(
        place / "bert"
    )
    experts: dict[str, Any] = {"num_local_experts": 4, "output_router_logits": True}
    experts |= {"num_hidden_layers": 1, "num_key_value_heads": 2, "max_position_embeddings": 64}
    MixtralForCausalLM(MixtralConfig(vocab_size=len(LETTERS), **small, **experts)).save_pretrained(
        place / "mixtral"
    )
    (place / "text.txt").write_text(TEXT)
    return place


# With these and nothing else a run succeeds.
PLAIN = ("--accumulator-bits", "14", "--characters")


def run(folder: Path, *options: str, kind: str = "gpt2") -> int:
    model, text = str(folder / kind), str(folder / "text.txt")
    return main(
        ["quantize", "--hf", model, "--text", text, "--context", "16", "--windows", "8", *options]
    )


def test_rows_are_solved_judged_and_proven(folder: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "out"
    options = ("--characters", "--quality", "fast", "--output", str(output))
    assert run(folder, "--rows", "16x14", "16x12", *options) == 0
    plain, wide, narrow = json.loads((output / "rows.json").read_text())
    assert plain["perplexity"] == pytest.approx(len(LETTERS), rel=0.1)  # random weights
    assert [wide["inner"] <= 14, narrow["inner"] <= 12] == [True, True]
    assert wide["perplexity"] != narrow["perplexity"]
    assert "impossible" in capsys.readouterr().out
    for row, bits in (("16x14", 14), ("16x12", 12)):
        certificate = json.loads((output / row / "certificate.json").read_text())
        assert certificate["ok"]
        assert (output / row / "report.html").exists()
        with np.load(output / row / "integers.npz") as data:
            names = [key for key in data.files if key.endswith(".integers")]
            assert len(names) == 8
            assert all(fits(data[name], -128, 127, bits, 16).all() for name in names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--accumulator-bits, or --rows"),
        (("--rows", "16x"), "wholex16 or 64xany, not '16x'"),
        (("--rows", "16x14", "--tile-size", "4"), "not both"),
        (("--rows", "16x14", "16x65"), "between 2 and 64, but 65"),
        (("--rows", "16x14", "0x14"), "tile_size is 0"),
        (("--rows", "16x14", "wholex14", "--tile-scales"), "--tile-scales needs tiles"),
        ((*PLAIN, "--weight-bits", "1"), "--weight-bits 1 leaves no weight but zero"),
        ((*PLAIN, "--input-bits", "0"), "input bits must be an integer"),
        (("--accumulator-bits", "14"), "no usable tokenizer"),
        ((*PLAIN, "--context", "0"), "--context is 0"),
        ((*PLAIN, "--context", "-3"), "--context is -3"),
        ((*PLAIN, "--context", "65"), "--context 65 is more than the 64 positions"),
        ((*PLAIN, "--windows", "0"), "--windows is 0"),
        ((*PLAIN, "--windows", "-1"), "--windows is -1"),
        ((*PLAIN, "--calibration", "my_model.py:data"), "without FILE.py:FUNCTION, --calibration"),
        ((*PLAIN, "--plan", "plan.json"), "and --plan"),
    ],
)
def test_bad_options_are_one_sentence_and_leave_nothing(
    folder: Path, tmp_path: Path, capsys, options: tuple, message: str
) -> None:
    assert run(folder, *options, "--output", str(tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_short_text_is_refused(folder: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "short.txt").write_text("a lazy dog")
    assert run(folder, *PLAIN, "--text", str(tmp_path / "short.txt")) == 2
    assert "shorter --context" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["truncated", "garbage", "no config"])
def test_damaged_models_are_one_sentence(folder: Path, tmp_path: Path, capsys, damage: str) -> None:
    broken = shutil.copytree(folder / "gpt2", tmp_path / "gpt2")
    weights = broken / "model.safetensors"
    if damage == "no config":
        (broken / "config.json").write_text("{")
    else:
        data = weights.read_bytes()
        weights.write_bytes(data[: len(data) // 2] if damage == "truncated" else b"x" * 100)
    output = tmp_path / "out"
    assert run(folder, *PLAIN, "--hf", str(broken), "--output", str(output)) == 2
    error = capsys.readouterr().err
    assert "cannot be loaded" in error
    assert error.count("\n") == 1
    assert not output.exists()


def test_whole_rows_and_no_limit_have_names(folder: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "out"
    options = ("--characters", "--quality", "fast", "--output", str(output))
    assert run(folder, "--rows", "wholex16", "16xany", "wholexany", *options) == 0
    _, whole, free, neither = json.loads((output / "rows.json").read_text())
    assert (whole["tile"], whole["accumulator"], whole["inner"] <= 16) == (None, 16, True)
    assert (free["tile"], free["accumulator"]) == (16, None)
    assert (neither["row"], neither["tile"], neither["accumulator"]) == ("wholexany", None, None)
    assert free["perplexity"] == neither["perplexity"]
    assert "wholexany" in capsys.readouterr().out


def test_solved_blocks_move_out_and_tiles_have_scales(folder: Path, tmp_path: Path, capsys) -> None:
    rows = ("--characters", "--quality", "fast", "--rows", "16x14", "--tile-scales")
    more = ("--offload", str(tmp_path / "blocks"), "--workers", "1")
    files = []
    for name, options in (("in", ()), ("out", more)):
        assert run(folder, *rows, *options, "--output", str(tmp_path / name)) == 0
        with np.load(tmp_path / name / "16x14" / "integers.npz") as data:
            files.append(dict(data))
    assert list((tmp_path / "blocks" / "16x14").iterdir())
    here, there = files
    assert here.keys() == there.keys()
    assert all(np.array_equal(here[key], there[key]) for key in here)
    scales = next(value for key, value in here.items() if key.endswith(".scale"))
    assert scales.ndim == 2
    assert (scales[:, :16] == scales[:, :1]).all()
    assert (scales[:, 16] != scales[:, 0]).any()
    _, row = json.loads((tmp_path / "out" / "rows.json").read_text())
    assert row["outer"] is None


def test_an_encoder_is_judged_by_its_embeddings(folder: Path, tmp_path: Path, capsys) -> None:
    rows = ("--characters", "--quality", "fast", "--rows", "16x10", "16xany")
    assert run(folder, *rows, "--output", str(tmp_path / "out"), kind="bert") == 0
    shown = capsys.readouterr().out
    plain, narrow, free = json.loads((tmp_path / "out" / "rows.json").read_text())
    assert plain["cosine"] == pytest.approx(1)
    assert narrow["cosine"] < free["cosine"] < 1
    assert narrow["proven"]
    assert "cosine" in shown
    assert "next: brevitas-axe export" in shown
    assert "16xany" in shown.splitlines()[-1]  # the best of them


def test_a_mixture_of_experts_is_saved_whatever_its_router_returns(
    folder: Path, tmp_path: Path
) -> None:
    rows = ("--characters", "--quality", "fast", "--rows", "16x14")
    assert run(folder, *rows, "--output", str(tmp_path / "out"), kind="mixtral") == 0
    result = load(tmp_path / "out" / "16x14")
    assert isinstance(result, BlocksResult)
    assert result.certificate.ok
    assert "model.layers.0.mlp.gate.forward" in result.floats


def test_an_empty_text_is_called_empty(folder: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    assert run(folder, "--accumulator-bits", "14", "--text", str(tmp_path / "empty.txt")) == 2
    assert "empty.txt is empty" in capsys.readouterr().err


def test_what_is_no_language_model_is_refused(folder: Path, tmp_path: Path, capsys) -> None:
    ViTConfig(hidden_size=32).save_pretrained(tmp_path)
    assert run(folder, "--accumulator-bits", "14", "--hf", str(tmp_path)) == 2
    assert "neither generates text nor encodes it" in capsys.readouterr().err
    assert run(folder, "--accumulator-bits", "14", kind="absent") == 2
    assert "cannot be loaded" in capsys.readouterr().err


def test_without_transformers_one_sentence_says_how(folder: Path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert run(folder, "--accumulator-bits", "14") == 2
    assert "pip install 'brevitas_axe[transformers]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option",
    [
        ("--text", "x.txt"),
        ("--characters",),
        ("--rows", "16x14"),
        ("--context", "128"),
        ("--windows", "128"),
        ("--activations", "static"),
        ("--asymmetric",),
        ("--smooth", "0.5"),
        ("--rotate",),
        ("--tile-scales",),
        ("--offload", "blocks"),
    ],
)
def test_options_for_language_models_need_one(option: tuple, capsys) -> None:
    data = ("my_model.py:build", "--calibration", "my_model.py:data")
    assert main(["quantize", *data, "--accumulator-bits", "14", *option]) == 2
    assert f"error: {option[0]}: for language models only" in capsys.readouterr().err
