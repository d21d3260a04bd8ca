"""Scripts by which a shell completes commands and options."""

from __future__ import annotations

import subprocess
import sys

import pytest

from brevitas_axe.cli import main
from brevitas_axe.cli.completion import SHELLS


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_knows_every_command(shell: str, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--print-completion", shell])
    assert end.value.code == 0
    script = capsys.readouterr().out
    assert all(command in script for command in ("quickstart", "quantize", "certify", "tune"))
    assert "accumulator-bits" in script


def test_bash_takes_the_script(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["--print-completion", "bash"])
    script = capsys.readouterr().out
    checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_another_shell_and_a_missing_package_are_one_sentence(monkeypatch, capsys) -> None:
    assert main(["--print-completion", "fish"]) == 2
    assert "fish" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--print-completion", "bash"]) == 2
    assert "pip install 'brevitas_axe[completion]'" in capsys.readouterr().err
