"""When, by which command and with which versions something was made."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from brevitas_axe.run.saving.folder import versions

_PACKAGES = ("brevitas_axe", "brevitas", "torch")


def origin() -> dict[str, str]:
    """Date, command, and versions by package, of what is made now."""
    program, *words = sys.argv
    return {
        "date": datetime.now().astimezone().isoformat(" ", "minutes"),
        "command": shlex.join([Path(program).name, *words]),
        **versions(_PACKAGES),
    }


def told(found: Mapping[str, str]) -> str:
    """An origin as one line."""
    versions = (f"{name} {found[name]}" for name in _PACKAGES if name in found)
    parts = (found.get("date"), *versions, found.get("command"))
    return " · ".join(part for part in parts if part)
