"""Virtual environments for tools whose pins are not ours.

An environment lies under `.cache/<tool>-venv-<digest of its pins>` of this repository, or in the
folder that an environment variable names, and appears there whole or not at all.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_CACHE = Path(__file__).parents[1] / ".cache"


class NoEnvironment(Exception):
    """An environment could not be built here; the message says why."""


def _nothing(packages: Path) -> None:
    """No more to do in a new environment."""


@dataclass(frozen=True)
class Environment:
    """What an environment holds, and where it goes.

    Attributes:
        tool: its name in messages.
        alone: requirements that are installed without their dependencies.
        requirements: everything else.
        caches: environment variables that may name the folder, the first that is set counts.
        failure: raised where it cannot be built.
        finish: called with the folder of its packages before it appears.
    """

    tool: str
    alone: tuple[str, ...]
    requirements: tuple[str, ...]
    caches: tuple[str, ...]
    failure: type[NoEnvironment] = NoEnvironment
    finish: Callable[[Path], None] = _nothing

    def python(self) -> Path:
        """The environment's Python; the first call on a machine builds it.

        Raises:
            NoEnvironment: Python is older than 3.11, or pip could not fetch the packages.
        """
        if sys.version_info < (3, 11):
            raise self.failure(f"{self.tool} needs Python 3.11 or newer.")
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        pins = "\n".join([version, *self.alone, *self.requirements])
        digest = hashlib.sha256(pins.encode()).hexdigest()[:12]
        named = (os.environ[name] for name in self.caches if name in os.environ)
        cache = Path(next(named, _CACHE))
        home = cache / f"{self.tool.lower()}-venv-{digest}"
        if not home.exists():
            cache.mkdir(parents=True, exist_ok=True)
            self._build(home)
        return home / "bin" / "python"

    def _build(self, home: Path) -> None:
        """Builds beside `home` and renames, so that a killed build leaves nothing that looks ready.

        A virtual environment may be moved as long as it is used through its Python alone.
        """
        with tempfile.TemporaryDirectory(dir=home.parent, prefix=f".{self.tool.lower()}-") as place:
            new = Path(place) / "venv"
            pip = [str(new / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-input"]
            for command in (
                [sys.executable, "-m", "venv", str(new)],
                [*pip, *self.requirements],
                [*pip, "--no-deps", *self.alone],
            ):
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    lines = done.stderr.strip().splitlines() or ["no message"]
                    message = f"{self.tool}'s environment cannot be built here: {lines[-1]}"
                    raise self.failure(message)
            self.finish(next(new.glob("lib/python*/site-packages")))
            try:
                new.rename(home)
            except OSError:
                # Another process was faster, and built the same.
                if not home.exists():
                    raise
