"""The order of the rooms, read from the source: data and imports flow one way."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "brevitas_axe"
MODULES = sorted(PACKAGE.rglob("*.py"))

# A room may import its own shelf and those above it, never one below.
SHELVES = [
    ["errors", "files", "accumulator", "registry"],
    ["plan"],
    ["layers"],
    ["quantizers", "proxies", "transforms"],
    ["apply", "prepare"],
    ["ptq"],
    # A scorer applies widths and runs the budgeted solvers.
    ["cost", "sensitivity"],
    ["allocate"],
    ["certify"],
    ["finetune"],  # a certificate at every epoch
    ["emulate", "export", "report"],
    ["quantize"],
    ["blocks"],
    ["quickstart"],
    ["cli"],
    ["__init__"],
]
RANK = {room: rank for rank, shelf in enumerate(SHELVES) for room in shelf}

ROOMS = {path.name.removesuffix(".py") for path in PACKAGE.iterdir()} - {"__pycache__"}

# The proof and the emulator share no code with what they judge.
INDEPENDENT = {"certify", "emulate"}
JUDGED = {"quantizers", "proxies", "transforms", "apply", "prepare", "ptq", "finetune", "quantize"}

FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "base", "common", "misc", "general"}
MAX_LINES = 420  # "about 400"


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> Iterator[tuple[int, str]]:
    """(line, room) for every import of ours, those inside functions included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: import by full name, not relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            first, _, rest = name.partition(".")
            if first == PACKAGE.name:
                room = rest.split(".")[0]
                yield node.lineno, room if room in ROOMS else "__init__"


def identify(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", MODULES, ids=identify)
def test_no_arrow_points_back(path: Path) -> None:
    room = room_of(path)
    assert room in RANK, f"{room} stands on no shelf: give it a place in SHELVES"
    for line, target in imported_rooms(path):
        # The last rooms are users of the package, so they may use its public names.
        public = target == "__init__" and room in {"quickstart", "cli"}
        assert public or RANK[target] <= RANK[room], f"{path}:{line}: {room} imports {target}"
        if room in INDEPENDENT:
            assert target not in JUDGED, (
                f"{path}:{line}: {room} judges {target}, so not by its code"
            )


def test_accumulator_needs_only_errors() -> None:
    assert {room for _, room in imported_rooms(PACKAGE / "accumulator.py")} <= {"errors"}


@pytest.mark.parametrize("path", MODULES, ids=identify)
def test_files_stay_small_and_well_named(path: Path) -> None:
    assert path.stem not in FORBIDDEN_NAMES
    assert path.parent.name not in FORBIDDEN_NAMES
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{path} has {lines} lines: split it by subject"


@pytest.mark.parametrize("path", MODULES, ids=identify)
def test_brevitas_is_used_through_its_lasting_names(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            assert name.split(".")[0] != "dependencies", "go through brevitas.inject"
            assert not f"{name}.".startswith("brevitas.fx."), "use torch.fx"
            assert not f"{name}.".startswith("brevitas_examples."), "only benchmarks compare"


def test_every_room_has_mirrored_tests() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    tests = Path(__file__).parent
    missing = [
        room
        for room in sorted(rooms)
        if not (tests / room).is_dir() and not (tests / f"test_{room}.py").exists()
    ]
    assert not missing, f"no tests for: {', '.join(missing)}"
