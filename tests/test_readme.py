"""What the README and the pages of the user guide promise is what runs."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from brevitas_axe.cli import main
from brevitas_axe.export import check_finn
from brevitas_axe.plan import Plan
from brevitas_axe.proof.certificate import certify_file

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
VISION = (ROOT / "docs" / "tutorial_vit.md").read_text(encoding="utf-8")


def blocks(language: str, document: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", document, re.MULTILINE | re.DOTALL)


def test_two_commands_are_blocks_of_their_own() -> None:
    commands = [block.strip() for block in blocks("bash")]
    assert "pip install -c constraints.txt -e . && brevitas-axe quickstart" in commands
    assert "pip install -c constraints.txt -e '.[test]' && pytest" in commands
    # .ci/run takes them from here by this pattern.
    assert len(re.findall(r"^pip install -c constraints.txt", README, re.MULTILINE)) == 2


def run_examples(page: str) -> None:
    """Runs the examples of a page one after the other; the later ones go on from the first."""
    names: dict = {}
    for example in blocks("python", (ROOT / page).read_text(encoding="utf-8")):
        if "tcp://" not in example:  # there is no such machine
            exec(compile(example, page, "exec"), names)


def test_examples_of_the_readme_run_as_printed(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    run_examples("README.md")
    assert capsys.readouterr().out.splitlines() == ["True"]
    assert certify_file(tmp_path / "model.onnx", accumulator_bit_width=14).ok
    assert certify_file(tmp_path / "finn.onnx", accumulator_bit_width=12).ok


def test_examples_of_costs_and_allocation_run_as_printed(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    run_examples("docs/allocation.md")
    [price] = capsys.readouterr().out.splitlines()
    planned, unplanned = (float(number) for number in price.split(" LUT instead of "))
    assert 0 < planned <= unplanned
    assert set(Plan.load(tmp_path / "plan.json").layers) == {"1", "3"}


@pytest.mark.parametrize("page", ["docs/finetuning.md", "docs/transformers.md"])
def test_examples_of_pages_run_as_printed(page, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_examples(page)


def test_the_tutorial_goes_from_a_net_to_finn_as_printed(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (own,) = blocks("python", TUTORIAL)
    (tmp_path / "my_model.py").write_text(own)
    commands = [shlex.split(block) for block in blocks("bash", TUTORIAL)]
    assert len(commands) <= 7
    for program, *arguments in commands:
        assert program == "brevitas-axe"
        assert main(arguments) == 0, capsys.readouterr()
        assert capsys.readouterr().out.splitlines()[-1].startswith("next: ")
    plan = Plan.load("mended/plan.json")
    assert len({(p.weight, p.input, p.accumulator) for p in plan.layers.values()}) > 2
    certificate = certify_file("mended/model.onnx", plan=plan)
    assert certificate.ok
    assert not certificate.unlimited
    assert not [f for f in check_finn("mended/model.onnx") if f.severity != "note"]
    scores = [epoch["score"] for epoch in json.loads(Path("finetuned/history.json").read_text())]
    assert len(scores) == 4
    assert max(scores) > 0.9
    assert main(["emulate", "mended", "--validate", "my_model.py:accuracy"]) == 0


@pytest.mark.slow
def test_the_tutorial_of_a_vision_transformer_does_what_it_says(
    tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    (own,) = blocks("python", VISION)
    (tmp_path / "my_vit.py").write_text(own)
    for program, *arguments in [shlex.split(block) for block in blocks("bash", VISION)]:
        assert program == "brevitas-axe"
        assert main(arguments) == 0, capsys.readouterr()
    proven = certify_file("vit/finn.onnx", accumulator_bit_width=16)
    assert proven.ok
    assert len(proven.judged) == 18
    assert not check_finn("vit/finn.onnx")
    [scores] = json.loads(Path("vit/summary.json").read_text())["validation"].values()
    assert scores["unquantized"] > 0.8
    assert scores["limited"] > scores["unquantized"] - 0.03


@pytest.mark.parametrize("page", ["README.md", *sorted(p.name for p in DOCS.glob("*.md"))])
def test_linked_files_exist(page: str) -> None:
    path = ROOT / page if page == "README.md" else DOCS / page
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (path.parent / target).exists(), target
