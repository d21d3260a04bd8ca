"""The command `methods`: every method of every room, and the page that lists them."""

from __future__ import annotations

from pathlib import Path

from brevitas_axe import registry
from brevitas_axe.cli import main
from brevitas_axe.cli.methods import catalogue, markdown
from brevitas_axe.registry import Facts


def test_the_catalogue_lists_every_method_of_every_room(capsys) -> None:
    assert main(["methods", "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = [tuple(line.strip("| ").split(" | ")[:2]) for line in lines[2:]]
    rooms = registry.catalogue().items()
    assert listed == [(room, name) for room, found in rooms for name in found]
    assert ("sensitivity", "local") in listed
    assert ("solvers", "qronos") in listed


def test_options_are_listed_with_what_they_are_by_default(capsys) -> None:
    assert main(["methods"]) == 0
    shown = capsys.readouterr().out
    assert "options" in shown
    rows = {(row[0], row[1]): row[2] for row in catalogue()}
    assert rows["sensitivity", "local"] == "probes=4, solver=gpfq, rows=8"
    assert rows["allocate", "uniform"] == rows["cost", "bops"] == ""


def test_a_bar_does_not_end_a_cell() -> None:
    assert markdown([("room", "a|b")])[-1] == "| room | a\\|b |"


def test_the_documented_catalogue_is_current() -> None:
    documented = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
    table = [line for line in documented.splitlines() if line.startswith("|")]
    assert table == markdown(catalogue())


def test_facts_are_complete() -> None:
    for found in registry.catalogue().values():
        for name, method in found.items():
            facts: Facts = method.facts
            assert all((facts.kind, facts.granularity, facts.signal, facts.export)), name
            assert facts.source, name
