"""hls4ml in a virtual environment of its own, since its pins are not ours, and a C++ compiler.

It lies where `tests.environments` says, or in the folder that BREVITAS_AXE_HLS4ML_CACHE or
BREVITAS_AXE_FINN_CACHE names. Run as a script it prints the environment's Python.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.environments import Environment, NoEnvironment

# Without their dependencies: of these, hls4ml's QONNX front end needs only what follows.
ALONE = ("hls4ml==1.3.0", "quantizers==1.2.2", "pydigitalwavetools==1.1")
REQUIREMENTS = (
    "qonnx==1.0.0",
    "onnx==1.22.0",
    "onnxruntime==1.31.1",
    "protobuf==7.36.2",
    "numpy==2.4.6",
    "h5py==3.16.0",
    "pyyaml==6.0.3",
)


class NoHls4ml(NoEnvironment):
    """hls4ml cannot be run here; the message says why."""


ENVIRONMENT = Environment(
    "hls4ml",
    ALONE,
    REQUIREMENTS,
    ("BREVITAS_AXE_HLS4ML_CACHE", "BREVITAS_AXE_FINN_CACHE"),
    NoHls4ml,
)


def python() -> Path:
    """The Python of hls4ml's environment, which is built by the first call on a machine.

    Raises:
        NoHls4ml: there is no g++, Python is older than 3.11, or pip could not fetch the packages.
    """
    if shutil.which("g++") is None:
        raise NoHls4ml("hls4ml's models are compiled with g++, which is not on this machine.")
    return ENVIRONMENT.python()


if __name__ == "__main__":
    print(python())
