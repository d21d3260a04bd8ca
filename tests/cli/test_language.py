"""`brevitas-axe quantize --hf` on a tiny model of characters, from the disk."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from brevitas_axe.accumulator import fits
from brevitas_axe.cli import main

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
    (place / "text.txt").write_text(TEXT)
    return place


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
        (("--rows", "16x"), "64x16, not '16x'"),
        (("--rows", "16x14", "--tile-size", "4"), "not both"),
        (("--accumulator-bits", "14"), "no usable tokenizer"),
        (("--accumulator-bits", "14", "--characters", "--context", "999"), "shorter --context"),
    ],
)
def test_bad_options_are_one_sentence(folder: Path, capsys, options: tuple, message: str) -> None:
    assert run(folder, *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_what_is_no_language_model_is_refused(folder: Path, capsys) -> None:
    assert run(folder, "--accumulator-bits", "14", kind="bert") == 2
    assert "no causal language model (BertModel)" in capsys.readouterr().err
    assert run(folder, "--accumulator-bits", "14", kind="absent") == 2
    assert "cannot be loaded" in capsys.readouterr().err


def test_without_transformers_one_sentence_says_how(folder: Path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert run(folder, "--accumulator-bits", "14") == 2
    assert "pip install 'brevitas_axe[transformers]'" in capsys.readouterr().err


def test_a_text_without_a_model_is_refused(tmp_path: Path, capsys) -> None:
    assert main(["quantize", "--text", "x.txt", "--accumulator-bits", "14"]) == 2
    assert "--hf and --text" in capsys.readouterr().err
