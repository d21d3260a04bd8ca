"""FINN in a virtual environment of its own, since its pins are not ours.

It lies under `.cache/finn-venv-<digest of the pins>` of this repository, or in the folder that
BREVITAS_AXE_FINN_CACHE names, and appears there whole or not at all. Run as a script it prints
the environment's Python.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

# Without its dependencies: these would bring another onnx, torch and Brevitas.
FINN = "finn-plus==1.6.1"
REQUIREMENTS = (
    "qonnx==1.0.0",
    "onnx==1.22.0",
    "onnxruntime==1.31.1",
    "protobuf==7.36.2",
    "numpy==2.4.6",
    "scipy==1.17.1",
    "bitstring==4.3.1",
    "setuptools==80.10.2",
    "rich==15.0.0",
    "pyyaml==6.0.3",
    "pydantic==2.14.3",
    "click==8.5.1",
    "jinja2==3.1.6",
)
_CACHE = Path(__file__).parents[2] / ".cache"


class NoFinn(Exception):
    """FINN's environment could not be built here; the message says why."""


def python() -> Path:
    """The Python of FINN's environment, which is built by the first call on a machine.

    Raises:
        NoFinn: Python is older than 3.11, or pip could not fetch the packages.
    """
    if sys.version_info < (3, 11):
        raise NoFinn("FINN needs Python 3.11 or newer.")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    digest = hashlib.sha256("\n".join([version, FINN, *REQUIREMENTS]).encode()).hexdigest()[:12]
    cache = Path(os.environ.get("BREVITAS_AXE_FINN_CACHE", _CACHE))
    home = cache / f"finn-venv-{digest}"
    if not home.exists():
        cache.mkdir(parents=True, exist_ok=True)
        _build(home)
    return home / "bin" / "python"


def _build(home: Path) -> None:
    """Builds beside `home` and renames, so that a killed build leaves nothing that looks ready.

    A virtual environment may be moved as long as it is used through its Python alone.
    """
    with tempfile.TemporaryDirectory(dir=home.parent, prefix=".finn-") as folder:
        new = Path(folder) / "venv"
        pip = [str(new / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-input"]
        for command in (
            [sys.executable, "-m", "venv", str(new)],
            [*pip, *REQUIREMENTS],
            [*pip, "--no-deps", FINN],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                lines = done.stderr.strip().splitlines() or ["no message"]
                raise NoFinn(f"FINN's environment cannot be built here: {lines[-1]}")
        # FINN's LayerNorm imports torch at its top, for what flow.py never does.
        packages = next(new.glob("lib/python*/site-packages"))
        for module in ("torch/__init__.py", "torch/nn/__init__.py", "torch/nn/functional.py"):
            (packages / module).parent.mkdir(exist_ok=True)
            (packages / module).touch()
        try:
            new.rename(home)
        except OSError:
            # Another process was faster, and built the same.
            if not home.exists():
                raise


if __name__ == "__main__":
    print(python())
