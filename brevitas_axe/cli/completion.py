"""`brevitas-axe --print-completion SHELL`: what a shell needs to complete commands and options."""

from __future__ import annotations

import argparse
from typing import Any

from brevitas_axe.errors import InvalidOption

SHELLS = ("bash", "zsh", "tcsh")


class Completion(argparse.Action):
    """Prints the script of a shell and ends the program."""

    def __init__(self, *names: Any, **settings: Any) -> None:
        super().__init__(
            *names,
            **settings,
            choices=SHELLS,
            default=argparse.SUPPRESS,
            metavar="SHELL",
            help=f"print a script that completes commands and options ({', '.join(SHELLS)})",
        )

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        try:
            import shtab
        except ImportError:
            raise InvalidOption(
                "completion needs the package shtab; pip install 'brevitas_axe[completion]'."
            ) from None
        print(shtab.complete(parser, shell=values))
        parser.exit()
