"""The first cell of every notebook installs the package where there is none, and only there."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FIRST_CELLS = {}
for _path in sorted((ROOT / "notebooks").glob("*.ipynb")):
    _cells = json.loads(_path.read_text(encoding="utf-8"))["cells"]
    FIRST_CELLS[_path.stem] = next("".join(c["source"]) for c in _cells if c["cell_type"] == "code")


@pytest.fixture
def commands(monkeypatch, tmp_path) -> list[list[str]]:
    """What the cell runs in an empty folder."""
    monkeypatch.chdir(tmp_path)
    found: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: found.append(command))
    return found


def run() -> None:
    exec(compile(FIRST_CELLS["quickstart"], "first cell", "exec"), {})


def test_all_notebooks_begin_with_the_same_cell_and_are_listed() -> None:
    assert len(set(FIRST_CELLS.values())) == 1
    page = (ROOT / "docs" / "notebooks.md").read_text(encoding="utf-8")
    assert all(f"../notebooks/{name}.ipynb" in page for name in FIRST_CELLS)


def test_where_the_package_is_nothing_is_installed(commands) -> None:
    run()
    assert commands == []


def test_a_fresh_place_installs_the_wheel_or_the_clone(commands, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="Upload the wheel"):
        run()
    clone = tmp_path / "notebooks"
    clone.mkdir()
    (tmp_path / "setup.cfg").touch()
    monkeypatch.chdir(clone)
    run()
    (clone / "brevitas_axe-0.1.0-py3-none-any.whl").touch()
    run()
    assert [command[-1] for command in commands] == ["..", "brevitas_axe-0.1.0-py3-none-any.whl"]
