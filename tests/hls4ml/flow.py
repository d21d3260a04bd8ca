"""Runs in hls4ml's environment: converts, compiles and executes what brevitas_axe wrote.

    python flow.py FOLDER

FOLDER holds model.onnx, hls4ml.yml, samples.npz and jobs.json: a list of jobs, each with the
precisions that it changes (`changes`: layer → {value: type}, `auto` for hls4ml's own inference),
and whether it is compiled and executed. What comes of a job goes to job_<i>.npz and job_<i>.json.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import io
import json
import subprocess
import sys
import traceback
from pathlib import Path

import numpy as np
import yaml
from hls4ml import converters  # pyright: ignore[reportAttributeAccessIssue]


def main(folder: Path) -> None:
    jobs = json.loads((folder / "jobs.json").read_text())
    samples = [array for _, array in sorted(np.load(folder / "samples.npz").items())]
    for index, job in enumerate(jobs):
        report, outputs = _run(folder, index, job, samples)
        (folder / f"job_{index}.json").write_text(json.dumps(report))
        np.savez(folder / f"job_{index}.npz", *outputs)


def _run(
    folder: Path, index: int, job: dict, samples: list[np.ndarray]
) -> tuple[dict, list[np.ndarray]]:
    log = io.StringIO()
    report: dict = {"error": "", "types": {}}
    outputs: list[np.ndarray] = []
    try:
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            model = converters.convert_from_config(_configuration(folder, index, job))
            report["types"] = {
                layer.name: {
                    "class": layer.class_name,
                    **{name: str(kind.precision) for name, kind in layer.types.items()},
                }
                for layer in model.get_layers()
            }
            if job.get("compile", True):
                outputs = _execute(model, samples)
    except Exception as error:  # what hls4ml cannot do is what some tests look for
        report["error"] = f"{type(error).__name__}: {error}"
        report["traceback"] = traceback.format_exc()
    report["log"] = log.getvalue()[-2000:]
    return report, outputs


def _configuration(folder: Path, index: int, job: dict) -> dict:
    configuration = copy.deepcopy(yaml.safe_load((folder / "hls4ml.yml").read_text()))
    configuration["OnnxModel"] = str(folder / configuration["OnnxModel"])
    configuration["OutputDir"] = str(folder / f"job_{index}")
    layers = configuration["HLSConfig"]["LayerName"]
    for name, changes in job.get("changes", {}).items():
        layers[name]["Precision"].update(changes)
    return configuration


def _execute(model, samples: list[np.ndarray]) -> list[np.ndarray]:
    """As hls4ml's build_lib.sh, in one run of the compiler, whose time is most of a test."""
    model.write()
    folder = Path(model.config.get_output_dir())
    name, library = model.config.get_project_name(), folder / "firmware" / "network.so"
    weights = f'"{folder / "firmware" / "weights"}"'
    command = ["g++", "-O1", "-w", "-fPIC", "-std=c++11", "-fno-gnu-unique", "-shared"]
    command += ["-Ifirmware/ap_types/", "-D", f"WEIGHTS_DIR={weights}"]
    command += ["-include", f"firmware/{name}.cpp", f"{name}_bridge.cpp", "-o", str(library)]
    built = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if built.returncode:
        errors = [line for line in built.stderr.splitlines() if "error" in line]
        raise RuntimeError(f"g++: {(errors or ['no message'])[0]}")
    model._top_function_lib = ctypes.cdll.LoadLibrary(str(library))
    inputs = [np.ascontiguousarray(array.astype(np.float64)) for array in samples]
    found = model.predict(inputs if len(inputs) > 1 else inputs[0])
    count = len(inputs[0])
    found = found if isinstance(found, list) else [found]
    return [np.asarray(array).reshape(count, -1) for array in found]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
