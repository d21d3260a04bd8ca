"""Bad input of every command: exit status 2 and one sentence on stderr, before any long work."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.cli.refusals import refused

DATA = "--calibration user.py:images"
SOLVE = f"quantize user.py:build {DATA}"
TRAIN = "finetune solved --data user.py:labelled"
EMULATE = "emulate solved --inputs x.npy --output y.npy"
ALLOCATE = f"allocate prepared {DATA} --budget bops=1e9"

# Command → words of the sentence. Files of the place are made by `place`.
CASES = {
    # the command itself
    "": "required: COMMAND",
    "quantise": "invalid choice: 'quantise'",
    "certify": "required: model",
    "certify solved --bits 3": "unrecognized arguments: --bits 3",
    f"{SOLVE} --accumulator-bits twelve": "invalid int value: 'twelve'",
    f"{SOLVE} --quality good": "invalid choice: 'good'",
    f"{SOLVE} --target vitis": "invalid choice: 'vitis'",
    f"{TRAIN} --learning-rate fast": "invalid float value: 'fast'",
    # functions and files of the user
    "prepare user.py --calibration user.py:images": "'user.py' is not of the form",
    "prepare nowhere.py:build --calibration user.py:images": "does not exist",
    "prepare user.py:nobody --calibration user.py:images": "no function named 'nobody'",
    "prepare user.py:images --calibration user.py:images": "must return a torch.nn.Module",
    "prepare user.py:build --calibration user.py:build": "must return an iterable",
    "prepare user.py:build --calibration user.py:stops": "SystemExit: 1 (user.py, line",
    "prepare broken.py:build --calibration user.py:images": "SyntaxError",
    "prepare notes.txt:build --calibration user.py:images": "does not name a Python file",
    "prepare user.py:build --calibration user.py:one": "such as a DataLoader or [x]",
    "prepare user.py:build --calibration user.py:size": "missing 1 required positional argument",
    # quantize
    "quantize": "give FILE.py:FUNCTION and --calibration",
    SOLVE: "give --accumulator-bits",
    "quantize user.py:build --accumulator-bits 12": "--calibration",
    f"{SOLVE} --accumulator-bits 1": "between 2 and 64",
    f"{SOLVE} --accumulator-bits 99": "between 2 and 64",
    f"{SOLVE} --accumulator-bits 7": "cannot store one input of layer '0'",
    f"{SOLVE} --accumulator-bits 12 --tile-size 0": "tile_size is 0",
    f"{SOLVE} --accumulator-bits 12 --weight-bits 1": "leaves no weight but zero",
    f"{SOLVE} --accumulator-bits 12 --input-bits 0": "input bits must be an integer",
    f"{SOLVE} --accumulator-bits 12 --weight-bits 40": "weight bits must be an integer",
    f"{SOLVE} --accumulator-bits 12 --plan good.json": "either a plan or one accumulator",
    f"{SOLVE} --plan nowhere.json": "nowhere.json cannot be read: No such file",
    f"{SOLVE} --plan broken.json": "not valid JSON",
    f"{SOLVE} --plan stranger.json": "does not have: nobody",
    f"{SOLVE} --accumulator-bits 12 --recipe nowhere.yaml": "no recipe 'nowhere.yaml'",
    f"{SOLVE} --accumulator-bits 12 --recipe broken.yaml": "'sovler' is no key of a recipe",
    f"{SOLVE} --accumulator-bits 12 --solver magic": "'magic' is not registered",
    f"{SOLVE} --accumulator-bits 12 --solver gptq:speed=9": "'speed=9' is no option of 'gptq'",
    f"{SOLVE} --accumulator-bits 12 --exclude nobody": "'nobody' is not in the model",
    f"{SOLVE} --accumulator-bits 12 --exclude nobody.*": "'nobody.*' applies to no layer",
    f"{SOLVE} --accumulator-bits 12 --exclude /(/": "no regular expression",
    f"{SOLVE} --accumulator-bits 12 --include type:Conv3d": "'type:Conv3d' applies to no layer",
    f"{SOLVE} --accumulator-bits 12 --rule 0:weight": "--rule is PATTERN:KEY=N",
    f"{SOLVE} --accumulator-bits 12 --rule weight=4": "--rule is PATTERN:KEY=N",
    f"{SOLVE} --accumulator-bits 12 --rule 0:wieght=4": "keys among weight",
    f"{SOLVE} --accumulator-bits 12 --rule 0:weight=99": "weight bits must be an integer",
    f"{SOLVE} --accumulator-bits 12 --validate user.py:nobody": "no function named 'nobody'",
    f"{SOLVE} --accumulator-bits 12 --workers 0": "workers is 0",
    f"{SOLVE} --accumulator-bits 12 --state user.py": "user.py is a file",
    f"{SOLVE} --accumulator-bits 12 --log runs": "a log is tensorboard:FOLDER or mlflow:EXPERIMENT",
    f"{SOLVE} --accumulator-bits 12 --output user.py": "user.py",
    f"{SOLVE} --accumulator-bits 12 --budget bops=80%": "set widths to auto",
    f"{SOLVE} --accumulator-bits 12 --rows 64x16": "--rows: for language models only",
    "quantize solved/model.onnx --calibration user.py:images --accumulator-bits 12": "not of the",
    "quantize --hf nowhere --text user.py --accumulator-bits 16": "nowhere cannot be loaded",
    "quantize --hf nowhere --accumulator-bits 16": "--hf goes with --text FILE",
    "quantize --hf nowhere --text user.py": "give --accumulator-bits, or --rows",
    "quantize --hf nowhere --text user.py --rows 64by16": "not '64by16'",
    "quantize --hf nowhere --text user.py --accumulator-bits 16 --validate user.py:size": "--hf",
    f"{SOLVE} --accumulator-bits 12 --function int": "invalid choice: 'int'",
    # allocate
    f"allocate prepared {DATA}": "required: --budget",
    f"{ALLOCATE} --reference 4bit": "such as W4A4, not '4bit'",
    f"{ALLOCATE} --weight-bits 0": "weight bits must be an integer",
    f"allocate prepared {DATA} --budget bops=-5%": "a number or a share",
    f"{ALLOCATE} --choices nowhere.json": "nowhere.json cannot be read: No such file",
    # folders
    "finetune nowhere --data user.py:labelled": "nowhere does not exist",
    "mend user.py": "user.py",
    "cost nowhere": "nowhere does not exist",
    "compare solved nowhere": "nowhere is no folder",
    "certify damaged": "damaged",
    "certify solved --model user.py:labelled": "must return a torch.nn.Module",
    # finetune
    f"{TRAIN} --epochs 0": "whole number of epochs from 1",
    f"{TRAIN} --budget bops=80%": "--budget goes with --search",
    f"{TRAIN} --search reinforce": "give one cost to come near to, such as bops; 0 are given",
    f"{TRAIN} --search grid --budget bops=80%": "'grid' asks for no plan twice",
    f"{TRAIN} --search reinforce --validation user.py:labelled": "takes no --validation",
    f"{TRAIN} --exclude nobody": "'nobody' is not in the model",
    f"{TRAIN} --include type:Conv3d": "'type:Conv3d' applies to no layer",
    f"{TRAIN} --loss user.py:nobody": "no function named 'nobody'",
    f"{TRAIN} --validation user.py:labelled --validate user.py:size": "either --validation or",
    f"{TRAIN} --validate user.py:divides": "division by zero (user.py, line",
    f"{TRAIN} --validate user.py:word": "must return a number",
    # certify, check, emulate, export
    "certify nowhere.onnx": "nowhere.onnx",
    "certify user.py --accumulator-bits 8": "user.py",
    "certify solved/model.onnx --input-type x": "--input-type is NAME=TYPE",
    "certify solved/model.onnx --exclude nobody": "exclude names 'nobody'",
    "certify solved/model.onnx --include type:Attention": "they are: type:",
    "certify solved --include nobody*": "include names 'nobody*'",
    "cost solved --exclude nobody": "'nobody' is not in the model",
    f"{EMULATE} --accumulator-bits 8 --include nobody": "include names 'nobody'",
    "certify solved/model.onnx --report user.py/page.html": "no folder in which you may write",
    "certify solved --report solved": "--report solved is a folder; name a file",
    "compare solved --report user.py/page.html": "--report user.py/page.html cannot be written",
    f"{ALLOCATE} --report user.py/page.html": "--report user.py/page.html",
    f"{ALLOCATE} --output solved": "--output solved is a folder",
    "emulate solved --inputs x.npy --output user.py/y.npy": "--output user.py/y.npy cannot be",
    "quantize nowhere --calibration user.py:images --accumulator-bits 9": "nowhere does not exist",
    "export nowhere out.onnx": "nowhere does not exist",
    "check nowhere.onnx": "nowhere.onnx does not exist",
    "prepare user.py:identity --calibration user.py:images": "without a linear or convolutional",
    "check prepared": "has no model.onnx; write it first",
    "check user.py": "user.py",
    "emulate solved": "give --inputs X.npy and --output Y.npy, or --validate",
    "emulate solved --inputs x.npy": "give --inputs X.npy and --output Y.npy",
    "emulate solved --inputs nowhere.npy --output y.npy": "nowhere.npy does not exist",
    "emulate solved --inputs user.py --output y.npy": "not a plain .npy array",
    "emulate solved/model.onnx --inputs x.npy --output y.npy": "give --accumulator-bits",
    "emulate solved --inputs wrong.npy --output y.npy": "shape",
    f"{EMULATE} --accumulator-bits 70": "between 2 and 64",
    f"{EMULATE} --plan stranger.json": "nobody",
    "export solved/model.onnx again.onnx": "is a file already",
    "export user.py:build again.onnx": "give --calibration",
    "export solved user.py/model.onnx": "user.py",
    "methods --room attic": "unrecognized arguments",
}  # fmt: skip


@pytest.fixture(scope="module")
def place(solved_place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The solved place, with files that are wrong in one way each."""
    place = tmp_path_factory.mktemp("refusals")
    for path in solved_place.iterdir():
        (place / path.name).symlink_to(path)
    np.save(place / "x.npy", np.zeros((1, 3, 8, 8), dtype=np.float32))
    np.save(place / "wrong.npy", np.zeros((1, 5), dtype=np.float32))
    for name, text in {
        "broken.py": "def build(:\n",
        "notes.txt": "notes",
        "broken.json": "{",
        "broken.yaml": "sovler: gptq\n",
        "good.json": (solved_place / "solved" / "plan.json").read_text(),
    }.items():
        (place / name).write_text(text)
    stranger = json.loads((place / "good.json").read_text())
    stranger["layers"] = {"nobody": next(iter(stranger["layers"].values()))}
    (place / "stranger.json").write_text(json.dumps(stranger))
    (place / "damaged" / "model").mkdir(parents=True)
    for path in (solved_place / "solved" / "model").iterdir():
        (place / "damaged" / "model" / path.name).write_bytes(path.read_bytes()[:-3])
    return place


def test_there_are_sixty_and_more() -> None:
    assert len(CASES) >= 60


@pytest.mark.parametrize("command", CASES)
def test_bad_input_is_one_sentence(command, place, monkeypatch, capsys) -> None:
    monkeypatch.chdir(place)
    before = {*place.iterdir()}
    sentence = refused(capsys, *command.split())
    assert CASES[command] in sentence
    assert sentence.rstrip().endswith(".")
    assert {*place.iterdir()} - before <= {place / "results", place / "finetuned"}
