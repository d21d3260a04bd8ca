"""The command line, `brevitas-axe COMMAND`.

Rules of this package: one file per command, each with `add(commands)` that declares its options and
`run(arguments) -> exit status`; language.py is the part of `quantize` behind --hf. `--help` must
answer at once, so the files of this package import nothing at their top that loads NumPy, torch,
Brevitas or rich; `run` does.
Exit status: 0 done or proven, 1 not proven, 2 unusable input, said in one sentence on stderr.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence

from brevitas_axe import __version__
from brevitas_axe.cli import (
    allocate,
    certify,
    check,
    compare,
    cost,
    emulate,
    export,
    finetune,
    mend,
    methods,
    prepare,
    quantize,
    quickstart,
)
from brevitas_axe.errors import AxeError

# In the order of a user's work.
_COMMANDS = (
    quickstart, prepare, allocate, quantize, finetune, mend, certify, emulate, check, export, cost,
    compare, methods,
)  # fmt: skip
_UNUSABLE = 2
_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    arguments = _parser().parse_args(argv)
    try:
        with warnings.catch_warnings():
            # Warnings of Brevitas and torch are meant for their developers.
            warnings.simplefilter("ignore")
            status = arguments.run(arguments)
        # Inside the try: a closed pipe is only noticed when the last lines are flushed.
        sys.stdout.flush()
        return status
    except AxeError as error:
        return _fail(str(error))
    except BrokenPipeError:
        # Python would report the same error once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}.")
    except KeyboardInterrupt:
        return _fail("interrupted.", _INTERRUPTED)


def _fail(message: str, status: int = _UNUSABLE) -> int:
    print(f"error: {message}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="brevitas-axe",
        description="Quantize a Brevitas model so that no accumulator can overflow, and prove it.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add(commands)
    return parser
