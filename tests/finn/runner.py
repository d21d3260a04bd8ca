"""Calls flow.py in FINN's environment, and reads what it wrote."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.finn.environment import NoFinn, python

_FLOW = Path(__file__).with_name("flow.py")


@dataclass(frozen=True)
class Finn:
    """What FINN made of a file; see `flow.Flow` for the contents.

    Attributes:
        nodes: of the last stage reached, in topological order.
        unmapped: names of the nodes that FINN does not build.
        errors: what ended the run early, empty if nothing did.
        stages: those reached.
        weights: integers by node name, thresholds by `<name>.thresholds`.
        outputs: for the samples, by stage, [samples, *shape of the file's output].
    """

    nodes: list[dict[str, Any]]
    unmapped: list[str]
    errors: list[dict[str, str]]
    stages: list[str]
    weights: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]

    @property
    def matrix_units(self) -> list[dict[str, Any]]:
        """The nodes that hold dot products, in topological order."""
        return [n for n in self.nodes if n["op_type"].startswith(("MVAU", "VVAU"))]


def through_finn(path: Path, folder: Path, *samples: np.ndarray, **options: Any) -> Finn:
    """Sends a QONNX file through FINN; skips the test where FINN cannot be installed.

    Args:
        path: a QONNX file with batch size 1.
        folder: where FINN's models and reports go.
        samples: for each input of the file one array [samples, ...]; none, and nothing is run.
        options: see `flow.Options`.
    """
    try:
        interpreter = python()
    except NoFinn as reason:
        pytest.skip(str(reason))
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "samples.npz", *samples)
    (folder / "options.json").write_text(json.dumps(options))
    command = [interpreter, _FLOW, path, folder, "--samples", folder / "samples.npz"]
    command += ["--options", folder / "options.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"flow.py failed:\n{done.stderr}")
    report: dict[str, Any] = json.loads((folder / "flow.json").read_text())
    for name in ("weights", "outputs"):
        report[name] = dict(np.load(folder / f"{name}.npz"))
    return Finn(**report)
