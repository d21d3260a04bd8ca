"""The command `allocate`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from brevitas_axe.cli import main
from brevitas_axe.methods.allocate.search import Search
from brevitas_axe.methods.allocate.shares import Shares
from brevitas_axe.methods.sensitivity import Trials
from brevitas_axe.plan import Choices, LayerPrecision, Plan
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


def test_formats_are_chosen_reported_and_quantized(user, tmp_path, capsys) -> None:
    asked = arguments(user, "--report", "report.html", "--weight-bits", "e2m1")
    asked[asked.index("bops=2500")] = "bops=9e9"
    assert main([*asked, "--input-bits", "8", "e4m3"]) == 0
    assert "e2m1" in (tmp_path / "report.html").read_text()
    plan = Plan.load(tmp_path / "plan.json")
    assert {p.weight for p in plan.layers.values()} == {"e2m1"}
    quantize = ["quantize", f"{user}:build", "--calibration", f"{user}:data", "--quality", "fast"]
    quantize += ["--plan", "plan.json", "--output", "solved"]
    assert main([*quantize, "--target", "finn"]) == 2
    assert "'0' is planned in e2m1, but FINN builds only integers" in capsys.readouterr().err
    assert not (tmp_path / "solved").exists()
    assert main(quantize) == 0
    assert Plan.load(tmp_path / "solved" / "plan.json") == plan
    assert "e2m1" in (tmp_path / "solved" / "report.html").read_text()


def test_a_report_shows_front_bits_and_sensitivity(user, tmp_path) -> None:
    assert main(arguments(user, "--report", "report.html", "--allocator", "greedy")) == 0
    page = (tmp_path / "report.html").read_text()
    for part in ("Harm against cost", "harm against bops", "bits of every layer", "Sensitivity"):
        assert part in page
    assert page.count('<span class="name">') == 2
    assert "<script" not in page


def test_choices_of_a_file_are_the_only_ones(user, tmp_path) -> None:
    only = {"0": (LayerPrecision(3, 5), LayerPrecision(2, 4)), "2": (LayerPrecision(5, 4),)}
    Choices(only).save("choices.json")
    assert main(arguments(user, "--choices", "choices.json")) == 0
    plan = Plan.load(tmp_path / "plan.json")
    assert plan["0"] in only["0"]
    assert plan["2"] == only["2"][0]


def test_a_backend_leaves_only_its_types(user, tmp_path) -> None:
    more = ("--budget", "memory=9999", "--accumulator-bits", "12", "32")
    assert main([*arguments(user, *more, "--backend", "generic-int8"), "--budget", "finn_lut=1e9"])
    types = {"kinds": ["linear"], "weight": [4, 4], "input": [4, 4], "accumulator": [2, 12]}
    form = {"format": "brevitas_axe.backend.v1", "name": "own", "power_of_two": False}
    own = json.dumps({**form, "types": [{**types, "tiles": False}]})
    Path("own.json").write_text(own)
    assert main(arguments(user, *more, "--backend", "own.json")) == 0
    plan = Plan.load(tmp_path / "plan.json")
    assert set(plan.layers.values()) == {LayerPrecision(4, 4, 12)}


def test_scores_are_kept_and_workers_change_nothing(user, tmp_path, monkeypatch) -> None:
    assert main(arguments(user, "--state", "scores", "--workers", "2")) == 0
    (kept,) = (tmp_path / "scores").iterdir()
    lines, plan = kept.read_text(), (tmp_path / "plan.json").read_text()
    assert lines

    def again(*_):
        raise AssertionError("a kept score is measured again")

    monkeypatch.setattr(Trials, "_keep", again)
    assert main(arguments(user, "--state", "scores")) == 0
    assert kept.read_text() == lines
    assert (tmp_path / "plan.json").read_text() == plan
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert main(arguments(user)) == 0
    assert (tmp_path / "plan.json").read_text() == plan


def test_a_target_limits_the_measured_loss(user, tmp_path) -> None:
    def weights(target: str) -> int:
        bisection = ("--allocator", "bisection", "--target", target, "--budget", "memory=9999")
        command = arguments(user, *bisection)
        command[command.index("bops=2500")] = "bops=1e9"
        assert main(command) == 0
        plan = Plan.load(tmp_path / "plan.json")
        return sum(precision.weight or 0 for precision in plan.layers.values())

    assert weights("1e-4") > weights("10") == 4


def test_search_starts_from_every_metric(user, tmp_path, monkeypatch) -> None:
    given = []
    whole = Search.__call__
    monkeypatch.setattr(Search, "__call__", lambda s, p: given.append(p) or whole(s, p))
    assert (
        main(arguments(user, "--allocator", "search:trials=1", "--metric", "kl", "mse", "kl")) == 0
    )
    (problem,) = given
    assert list(problem.metrics) == ["mse"]
    own, other = (np.concatenate(h.single) for h in (problem.harm, problem.metrics["mse"]))
    assert own.shape == other.shape
    assert not np.allclose(own, other)
    assert set(Plan.load(tmp_path / "plan.json").layers) == {"0", "2"}


def test_foldings_keep_the_pace_and_are_shown(user, tmp_path, monkeypatch, capsys) -> None:
    axes = []
    monkeypatch.setattr("brevitas_axe.show.write_allocation", lambda *a: axes.append(a[-1]))
    command = arguments(user, "--max-cycles", "8", "--report", "report.html")
    command[command.index("bops=2500")] = "finn_lut=1e6"
    assert main(command) == 0
    shown = capsys.readouterr().out
    rows = {cells[0]: cells for cells in table_rows(shown)}
    assert rows["layer"][-2:] == ["PE", "SIMD"]
    for name, products in (("0", 12 * 8), ("2", 8 * 3)):
        pe, simd = map(int, rows[name][-2:])
        assert products / (pe * simd) <= 8
    assert axes == ["LUTs (MVAU_hls), every layer in at most 8 cycles"]
    # What folded hardware costs is what is charged: the serial one is cheaper.
    spent = float(re.findall(r"finn_lut (\S+) of", shown)[0])
    assert main([*command[: command.index("--max-cycles")], "--budget", "memory=9999"]) == 0
    assert float(re.findall(r"finn_lut (\S+) of", capsys.readouterr().out)[0]) < spent


def table_rows(shown: str) -> list[list[str]]:
    lines = [line for line in shown.splitlines() if line[:1] in "┃│" and line]
    return [[cell.strip() for cell in re.split("[┃│]", line)[1:-1]] for line in lines]


def test_groups_of_layers_have_metrics_of_their_own(user, tmp_path, monkeypatch) -> None:
    given = []
    whole = Shares.__call__
    monkeypatch.setattr(Shares, "__call__", lambda s, p: given.append((s, p.parts)) or whole(s, p))
    groups = ("--scorer", "decoupled:content=^2$", "--allocator", "shares:steps=2")
    assert main(arguments(user, *groups)) == 0
    assert given == [(Shares(steps=2), {"sqnr": ("0",), "ssim": ("2",)})]
    assert set(Plan.load(tmp_path / "plan.json").layers) == {"0", "2"}


@pytest.mark.parametrize("backend", [(), ("--backend", "finn")])
@pytest.mark.parametrize(
    ("layers", "says"),
    [
        ({"nope": (LayerPrecision(4, 4),)}, "nope"),
        ({}, "no layer to choose bits for"),
    ],
)
def test_choices_that_fit_no_layer_are_one_sentence(user, layers, says, backend, capsys) -> None:
    Choices(layers).save("choices.json")
    assert main(arguments(user, "--choices", "choices.json", *backend)) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    assert says in message
    assert not Path("plan.json").exists()


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
        (("--metric", "luck"), "metric 'luck' is unknown; choose from kl"),
        (("--metric", "kl", "mse"), "'ilp' looks at one metric; give one, or use 'search'"),
        (("--budget", "memory=1"), "no allocation with"),
        (("--workers", "0"), "workers is 0"),
        (("--target", "0.1"), "'ilp' takes no target; leave it out, or use 'bisection'"),
        (("--allocator", "bisection", "--target", "nan"), "target is not a number"),
        (("--exclude", "0", "--exclude", "2"), "no layer to choose bits for"),
        (("--max-cycles", "0"), "max_cycles must be at least 1"),
        (("--max-cycles", "1", "--exclude", "0", "--exclude", "2"), "no layer to choose bits for"),
        (("--budget", "finn_cycles=9"), "--max-cycles N"),
        (("--scorer", "local:content=0"), "'content=0' is no option of 'local'; it has: probes"),
        (("--scorer", "decoupled:content=("), "no regular expression"),
        (("--scorer", "decoupled:content=x"), "found in none of the layers' names"),
        (("--allocator", "shares"), "'local' judges all of these layers alike"),
        (("--allocator", "shares", "--scorer", "decoupled"), "'decoupled' judges all of these"),
        (("--allocator", "shares:steps=few"), "option 'steps' of 'shares' is a number"),
        (("--budget", "bops:unit=3=5"), "'unit=3' is no option of 'bops'; it has none"),
    ],
)
def test_bad_input_is_one_sentence(user, more, says, capsys) -> None:
    assert main(arguments(user, *more)) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    assert says in message
    assert not Path("plan.json").exists()
