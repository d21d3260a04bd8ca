"""The names at the top of the package: lazy, complete, and none hidden by a module."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import brevitas_axe

HEAVY = ("torch", "brevitas", "numpy", "scipy", "numba", "onnx", "qonnx", "rich", "matplotlib")
COMMANDS = (
    "quickstart",
    "prepare",
    "sensitivity",
    "allocate",
    "quantize",
    "tune",
    "finetune",
    "mend",
    "certify",
    "emulate",
    "check",
    "export",
    "cost",
    "compare",
    "methods",
    "wildfire",
)


def in_new_process(code: str) -> list[str]:
    """The lines that some code prints, in a process that has imported nothing yet."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not done.stderr, done.stderr
    return done.stdout.splitlines()


def annotated_names() -> set[str]:
    """Names that type checkers see: those imported under TYPE_CHECKING."""
    tree = ast.parse(Path(brevitas_axe.__file__).read_text(encoding="utf-8"))
    [block] = [
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    found = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            found[alias.name] = node.module
    for name, module in found.items():
        assert getattr(importlib.import_module(module), name) is getattr(brevitas_axe, name)
    return set(found)


def test_every_name_is_found_and_seen_by_type_checkers() -> None:
    assert annotated_names() == set(brevitas_axe.__all__) == set(brevitas_axe._MODULE_OF)
    assert set(brevitas_axe.__all__) <= set(dir(brevitas_axe))
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = brevitas_axe.quantise


def test_no_module_hides_a_name() -> None:
    modules = {info.name for info in pkgutil.iter_modules(brevitas_axe.__path__)}
    assert not modules & set(brevitas_axe.__all__)


def test_version_is_that_of_the_metadata() -> None:
    assert brevitas_axe.__version__ == importlib.metadata.version("brevitas-axe")


def test_help_and_version_load_nothing_heavy() -> None:
    arguments = [["--help"], ["--version"], *([command, "--help"] for command in COMMANDS)]
    [*_, last] = in_new_process(
        "import json, sys\n"
        "import brevitas_axe\n"
        "from brevitas_axe.cli import main\n"
        f"for arguments in {arguments!r}:\n"
        "    try:\n"
        "        main(arguments)\n"
        "    except SystemExit as exit:\n"
        "        assert exit.code == 0\n"
        "print(json.dumps(sorted(sys.modules)))\n"
    )
    assert not set(HEAVY) & set(json.loads(last))


def test_every_command_is_tested_for_its_help() -> None:
    [usage] = [line for line in in_new_process(_PRINT_COMMANDS) if line.startswith("[")]
    assert sorted(json.loads(usage)) == sorted(COMMANDS)


_PRINT_COMMANDS = """
import json
from brevitas_axe.cli import _parser
[commands] = [a for a in _parser()._actions if a.dest == "command"]
print(json.dumps(list(commands.choices)))
"""


def test_what_brevitas_says_at_import_is_left_out_and_filters_stay() -> None:
    code = """
import warnings
warnings.simplefilter("default")
before = list(warnings.filters)
import brevitas_axe
brevitas_axe.quantize
import torch
assert [f for f in before if f in warnings.filters] == before
assert not any("fast_hadamard" in str(f[1]) for f in warnings.filters)
assert any(f[2] is torch.jit.TracerWarning for f in warnings.filters)  # torch's own is still there
warnings.warn("fast_hadamard_transform package not found", UserWarning)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said = [line for line in done.stderr.splitlines() if "fast_hadamard" in line]
    # The user's own warning of the same words, after the import, and nothing of Brevitas's.
    assert [line for line in said if "equalize.py" in line] == []
    assert len([line for line in said if line.startswith("<string>")]) == 1
