"""The command line, `brevitas-axe COMMAND`.

Rules of this package: one file per command, each with `add(commands)` that declares its options and
`run(arguments) -> exit status`. Of `quantize`, language.py and pretrained.py are the part behind
--hf, and preview.py that behind --dry-run. What is printed goes through screen.py. `--help` must
answer at once, so the files of this package import nothing at their top that loads NumPy, torch,
Brevitas or rich; `run` does.
Exit status: 0 done or proven; 1 the answer is no; 2 unusable input, a user's broken function among
it, said in one sentence on stderr; 3 a fault of brevitas_axe, with its traceback; 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import NoReturn

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
    sensitivity,
    tune,
    wildfire,
)
from brevitas_axe.cli.completion import Completion
from brevitas_axe.cli.usercode import failure_of_the_user
from brevitas_axe.errors import AxeError, InvalidOption
from brevitas_axe.run.logs import opened

# In the order of a user's work.
_COMMANDS = (
    quickstart, prepare, sensitivity, allocate, quantize, tune, finetune, mend, certify, emulate,
    check, export, cost, compare, methods, wildfire,
)  # fmt: skip
_UNUSABLE, _FAULT = 2, 3
_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    arguments = argparse.Namespace()
    try:
        arguments = _parser().parse_args(argv)
        spec = getattr(arguments, "log", None)
        with warnings.catch_warnings(), opened(spec) as arguments.log:
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
        state = getattr(arguments, "state", None)
        way = f"; the same command goes on from {state}" if state else ""
        return _fail(f"interrupted{way}.", _INTERRUPTED)
    except Exception as error:
        sentence = failure_of_the_user(error)
        if sentence is not None:
            return _fail(sentence)
        traceback.print_exc()
        return _fail(
            "this is a fault of brevitas_axe; please report it with the lines above.", _FAULT
        )


def _fail(message: str, status: int = _UNUSABLE) -> int:
    print(f"error: {message}", file=sys.stderr)
    return status


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, instead of a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise InvalidOption(f"{message.rstrip('.')}; `{self.prog} --help` lists what there is.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="brevitas-axe",
        description="Quantize a Brevitas model so that no accumulator can overflow, and prove it.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("--print-completion", action=Completion)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add(commands)
    for each in commands.choices.values():
        each.add_argument(
            "--json",
            action="store_true",
            help="print JSON instead of text",
        )
        each.add_argument(
            "--quiet",
            action="store_true",
            help="print errors alone; the exit status tells the rest",
        )
    return parser
