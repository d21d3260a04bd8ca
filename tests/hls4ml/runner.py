"""Calls flow.py in hls4ml's environment, and reads what it wrote."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.hls4ml.environment import NoHls4ml, python

_FLOW = Path(__file__).with_name("flow.py")


@dataclass(frozen=True)
class Result:
    """What hls4ml made of a project under one job's changes.

    Attributes:
        error: what ended the job early, empty if nothing did.
        types: precisions of every layer that hls4ml builds, by name.
        outputs: float64 [samples, size], one per output.
        log: the end of what hls4ml said.
    """

    error: str
    types: dict[str, dict[str, str]]
    outputs: list[np.ndarray]
    log: str = ""

    def accumulators(self, nodes: list[str]) -> dict[str, int]:
        """Bits of the accumulators by node, as hls4ml has them at the end.

        It renames some layers, and with io_stream it adds ones that only pass a layer's values on.
        """
        summing = [name for name, types in self.types.items() if "accum_t" in types]
        found = {}
        for node in nodes:
            name = next(n for n in summing if n == node or n.endswith(f"_{node}"))
            found[node] = int(self.types[name]["accum_t"].split("<")[1].split(",")[0])
        return found


def run_hls4ml(
    folder: Path, samples: list[np.ndarray], jobs: list[dict[str, Any]] | None = None
) -> list[Result]:
    """Converts, compiles and executes a project; raises NoHls4ml where that is impossible.

    Args:
        folder: with model.onnx and hls4ml.yml.
        samples: for each input one array [samples, ...].
        jobs: see flow.py; one without changes by default.
    """
    interpreter = python()
    jobs = jobs or [{}]
    named: dict[str, Any] = {f"input_{index:03}": array for index, array in enumerate(samples)}
    np.savez(folder / "samples.npz", **named)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [interpreter, _FLOW, folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode < 0:  # an assertion or a wrong address in the C++ takes Python with it
        return [Result(f"C++ ended by signal {-done.returncode}", {}, []) for _ in jobs]
    if done.returncode:
        raise RuntimeError(f"flow.py failed:\n{done.stderr}")
    results = []
    for index in range(len(jobs)):
        report = json.loads((folder / f"job_{index}.json").read_text())
        arrays = np.load(folder / f"job_{index}.npz")
        outputs = [arrays[f"arr_{i}"] for i in range(len(arrays.files))]
        results.append(Result(report["error"], report["types"], outputs, report["log"]))
    return results


def through_hls4ml(
    folder: Path, samples: list[np.ndarray], jobs: list[dict[str, Any]] | None = None
) -> list[Result]:
    """As `run_hls4ml`; skips the test where hls4ml cannot be run."""
    try:
        return run_hls4ml(folder, samples, jobs)
    except NoHls4ml as reason:
        pytest.skip(str(reason))
