"""The commands `allocate` and `methods`."""

from __future__ import annotations

from pathlib import Path

import pytest

from brevitas_axe.allocate import allocators
from brevitas_axe.cli import main
from brevitas_axe.cli.methods import catalogue, markdown
from brevitas_axe.plan import Plan
from brevitas_axe.sensitivity import scorers
from tests.cli.test_main import USER_FILE


@pytest.fixture
def user(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user_allocate.py").write_text(USER_FILE)
    return "user_allocate.py"


def arguments(user: str, *more: str) -> list[str]:
    command = [
        "allocate",
        f"{user}:build",
        "--calibration",
        f"{user}:data",
        "--budget",
        "bops=2500",
    ]
    return [*command, "--weight-bits", "2", "4", "8", "--input-bits", "4", "8", *more]


def test_a_plan_is_written(user, tmp_path, capsys) -> None:
    assert main(arguments(user, "--budget", "memory=1000", "--accumulator-bits", "12", "16")) == 0
    plan = Plan.load(tmp_path / "plan.json")
    assert set(plan.layers) == {"0", "2"}
    assert all(p.accumulator in (12, 16) and p.input in (4, 8) for p in plan.layers.values())
    assert "bops" in capsys.readouterr().out


def test_the_plan_is_what_quantize_takes(user, tmp_path) -> None:
    assert main(arguments(user, "--accumulator-bits", "12", "16")) == 0
    plan = Plan.load(tmp_path / "plan.json")
    quantize = ["quantize", f"{user}:build", "--calibration", f"{user}:data", "--quality", "fast"]
    assert main([*quantize, "--plan", "plan.json", "--output", "solved"]) == 0
    assert Plan.load(tmp_path / "solved" / "plan.json") == plan


def test_a_report_shows_front_bits_and_sensitivity(user, tmp_path) -> None:
    assert main(arguments(user, "--report", "report.html", "--allocator", "greedy")) == 0
    page = (tmp_path / "report.html").read_text()
    for part in ("Harm against cost", "harm against bops", "bits of every layer", "Sensitivity"):
        assert part in page
    assert page.count('<span class="name">') == 2
    assert "<script" not in page


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--budget", "bops"), "NAME=VALUE"),
        (("--budget", "bops=many"), "NAME=VALUE"),
        (("--budget", "bops=3"), "given twice"),
        (("--budget", "watts=3"), "'watts' is not registered"),
        (("--scorer", "guess"), "'guess' is not registered"),
        (("--allocator", "guess"), "'guess' is not registered"),
        (("--backend", "abacus"), "no backend 'abacus'"),
        (("--budget", "memory=1"), "no allocation with"),
    ],
)
def test_bad_input_is_one_sentence(user, more, says, capsys) -> None:
    assert main(arguments(user, *more)) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    assert says in message


def test_the_catalogue_lists_everything(capsys) -> None:
    assert main(["methods", "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = {line.split(" | ")[1] for line in lines[2:]}
    assert names == {*scorers(), *allocators(), "channel_split", "kv_cache"}
    assert main(["methods"]) == 0


def test_the_documented_catalogue_is_current() -> None:
    documented = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
    assert "\n".join(markdown(catalogue())) in documented
