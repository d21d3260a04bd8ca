"""FINN in a virtual environment of its own, since its pins are not ours.

It lies where `tests.environments` says, or in the folder that BREVITAS_AXE_FINN_CACHE names. Run
as a script it prints the environment's Python.
"""

from __future__ import annotations

from pathlib import Path

from tests.environments import Environment, NoEnvironment

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


class NoFinn(NoEnvironment):
    """FINN's environment could not be built here; the message says why."""


def _without_torch(packages: Path) -> None:
    """FINN's LayerNorm imports torch at its top, for what flow.py never does."""
    for module in ("torch/__init__.py", "torch/nn/__init__.py", "torch/nn/functional.py"):
        (packages / module).parent.mkdir(exist_ok=True)
        (packages / module).touch()


ENVIRONMENT = Environment(
    "FINN", (FINN,), REQUIREMENTS, ("BREVITAS_AXE_FINN_CACHE",), NoFinn, _without_torch
)


def python() -> Path:
    """The Python of FINN's environment, which is built by the first call on a machine.

    Raises:
        NoFinn: Python is older than 3.11, or pip could not fetch the packages.
    """
    return ENVIRONMENT.python()


if __name__ == "__main__":
    print(python())
