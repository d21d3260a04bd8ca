"""The order of the rooms, read from the source: data and imports flow one way."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "brevitas_axe"
MODULES = sorted(PACKAGE.rglob("*.py"))

# A wing may import its own shelf and those above it, never one below.
SHELVES = [
    ["errors", "files", "accumulator", "display", "facts", "registry"],
    ["plan"],
    ["proof"],
    ["model"],
    ["methods"],
    ["export"],
    ["run"],
    ["show"],
    ["applications"],
    ["cli"],
    ["__init__"],
]
RANK = {wing: rank for rank, shelf in enumerate(SHELVES) for wing in shelf}

WINGS = {path.name.removesuffix(".py") for path in PACKAGE.iterdir()} - {"__pycache__"}
VOCABULARY = {"errors", "files", "accumulator", "display", "facts", "registry", "plan"}

# What a whole wing may use, where the order alone would allow more.
MAY_IMPORT = {
    "accumulator": {"errors"},
    # The proof and the emulator share no code with what they judge.
    "proof": VOCABULARY,
}

FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "base", "common", "misc", "general"}
MAX_LINES = 420  # "about 400"


def wing_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) for every import of ours, those inside functions included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: import by full name, not relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == PACKAGE.name:
                yield node.lineno, name


def imported_wings(path: Path) -> Iterator[tuple[int, str]]:
    """(line, wing) for every import of ours."""
    for line, name in imported_modules(path):
        wing = f"{name}.".split(".")[1]
        yield line, wing if wing in WINGS else "__init__"


def identify(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", MODULES, ids=identify)
def test_no_arrow_points_back(path: Path) -> None:
    wing = wing_of(path)
    assert wing in RANK, f"{wing} stands on no shelf: give it a place in SHELVES"
    for line, target in imported_wings(path):
        # The last wings are users of the package, so they may use its public names.
        public = target == "__init__" and wing in {"applications", "cli"}
        assert public or RANK[target] <= RANK[wing], f"{path}:{line}: {wing} imports {target}"
        allowed = MAY_IMPORT.get(wing)
        assert allowed is None or target in {*allowed, wing}, f"{path}:{line}: imports {target}"


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


def test_tests_mirror_the_packages() -> None:
    packages = {path.parent.relative_to(PACKAGE) for path in PACKAGE.rglob("__init__.py")}
    tests = Path(__file__).parent
    missing = [str(package) for package in sorted(packages) if not (tests / package).is_dir()]
    assert not missing, f"no tests for: {', '.join(missing)}"
