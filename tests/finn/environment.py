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
    # What finn.builder imports besides.
    "pandas==2.3.3",
    "mashumaro==3.23",
    "scikit-learn==1.7.2",
    "termcolor==3.3.0",
    "mip==1.17.0",
    "onnx-passes==0.4.1",
    "psutil==7.2.2",
)

_TORCH = {
    "torch/__init__.py": '''"""What FINN's LayerNorm takes of torch, which is not installed here."""
from numpy import asarray as from_numpy
from numpy import ndarray as Tensor
''',
    "torch/nn/__init__.py": "",
    "torch/nn/functional.py": '''"""torch's layer norm over the last axis, without gain and bias."""
import numpy as np


def layer_norm(x, shape, eps):
    assert list(shape) == [x.shape[-1]]
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(x.var(-1, keepdims=True) + np.float32(eps))
''',
}


class NoFinn(NoEnvironment):
    """FINN's environment could not be built here; the message says why."""


def _numpy_for_torch(packages: Path) -> None:
    for module, text in _TORCH.items():
        (packages / module).parent.mkdir(exist_ok=True)
        (packages / module).write_text(text)


ENVIRONMENT = Environment(
    "FINN", (FINN,), REQUIREMENTS, ("BREVITAS_AXE_FINN_CACHE",), NoFinn, _numpy_for_torch
)


def python() -> Path:
    """The Python of FINN's environment, which is built by the first call on a machine.

    Raises:
        NoFinn: Python is older than 3.11, or pip could not fetch the packages.
    """
    return ENVIRONMENT.python()


if __name__ == "__main__":
    print(python())
