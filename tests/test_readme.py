"""What the README promises is what runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from brevitas_axe.plan import Plan
from brevitas_axe.proof.certificate import certify_file

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_two_commands_are_blocks_of_their_own() -> None:
    commands = [block.strip() for block in blocks("bash")]
    assert "pip install -c constraints.txt -e . && brevitas-axe quickstart" in commands
    assert "pip install -c constraints.txt -e '.[test]' && pytest" in commands
    # .ci/run takes them from here by this pattern.
    assert len(re.findall(r"^pip install -c constraints.txt", README, re.MULTILINE)) == 2


def test_examples_run_as_printed(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for example in blocks("python"):  # the later ones go on from the first
        exec(compile(example, "README.md", "exec"), names)
    proven, price = capsys.readouterr().out.splitlines()
    assert proven == "True"
    planned, unplanned = (float(number) for number in price.split(" LUT instead of "))
    assert 0 < planned < unplanned
    assert certify_file(tmp_path / "model.onnx", accumulator_bit_width=14).ok
    assert set(Plan.load(tmp_path / "plan.json").layers) == {"1", "3"}


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#]+)\)", README))
def test_linked_files_exist(target: str) -> None:
    assert target.startswith("https://") or (ROOT / target).exists()
