"""The order of the package, as docs/architecture.md has it: data and imports flow one way."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "brevitas_axe"
DOCUMENT = PACKAGE.parent / "docs" / "architecture.md"
MODULES = sorted(PACKAGE.rglob("*.py"))

FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "base", "common", "misc", "general"}
MAX_LINES = 420  # "about 400"
MAX_FUNCTION = 80  # "about 60"


def order(document: str) -> dict[str, set[str]]:
    """Entry → entries that it may import, from the table in the document; from top to bottom."""
    found: dict[str, set[str]] = {}
    for row in re.findall(r"^\| `[^`]+` \|.*$", document.split("### ")[0], re.MULTILINE):
        entry, sentence, rule = (cell.strip() for cell in row.strip("|").split("|"))
        assert len(sentence) > 10, f"{entry} needs a sentence"
        name = entry.strip("`").removesuffix("/").removesuffix(".py")
        assert name not in found, f"{entry} stands twice in the table"
        named = set(re.findall(r"`([^`]+)`", rule))
        found[name] = named | (set(found) if rule.startswith("what stands above") else set())
    return found


MAY_IMPORT = order(DOCUMENT.read_text(encoding="utf-8"))


def wing_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def name_of(path: Path) -> str:
    """Full name of a module; a package's is that of its `__init__`."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path) for path in MODULES}


def imported_names(path: Path) -> Iterator[tuple[int, str]]:
    """(line, full name) for every import of ours, those inside functions included."""
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


def module_of(name: str) -> str:
    """The module that an imported name belongs to, or is."""
    return name if name in NAMES else name.rpartition(".")[0]


def identify(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def test_the_document_has_every_entry_and_no_other() -> None:
    entries = {path.name.removesuffix(".py") for path in PACKAGE.iterdir()} - {"__pycache__"}
    assert set(MAY_IMPORT) == entries
    for entry, allowed in MAY_IMPORT.items():
        assert allowed <= entries, f"{entry} may import what does not exist"


@pytest.mark.parametrize("path", MODULES, ids=identify)
def test_imports_follow_the_document(path: Path) -> None:
    wing = wing_of(path)
    for line, name in imported_names(path):
        top = f"{name}.".split(".")[1]
        target = top if top in MAY_IMPORT else "__init__"
        assert target in {wing, *MAY_IMPORT[wing]}, f"{path}:{line}: {wing} imports {target}"


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = {
        name_of(path): {module_of(name) for _, name in imported_names(path)} for path in MODULES
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"these import each other: {' → '.join(error.args[1])}")


@pytest.mark.parametrize("path", MODULES, ids=identify)
def test_files_stay_small_and_well_named(path: Path) -> None:
    assert path.stem not in FORBIDDEN_NAMES
    assert path.parent.name not in FORBIDDEN_NAMES
    text = path.read_text(encoding="utf-8")
    lines = len(text.splitlines())
    assert lines <= MAX_LINES, f"{path} has {lines} lines: split it by subject"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            assert lines <= MAX_FUNCTION, f"{path}: {node.name} has {lines} lines: divide it"


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
