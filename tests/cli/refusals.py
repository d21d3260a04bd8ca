"""What a command says that cannot be done."""

from __future__ import annotations

from brevitas_axe.cli import main


def refused(capsys, *argv: str) -> str:
    """The one sentence of a refusal."""
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err
