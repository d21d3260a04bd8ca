"""Runs in hls4ml's environment: converts, compiles and executes what brevitas_axe wrote.

    python flow.py FOLDER

FOLDER holds model.onnx, hls4ml.yml, samples.npz and jobs.json: a list of jobs, each with the
precisions that it changes (`changes`: layer → {value: type}, `auto` for hls4ml's own inference),
and whether it is compiled and executed. What comes of a job goes to job_<i>.npz and job_<i>.json.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import re
import subprocess
import sys
import traceback
from pathlib import Path

import hls4ml
import numpy as np
import yaml

# The compiler's own time is most of a test: no optimization, and warnings do not matter.
_FLAGS = (("-O3", "-O1 -w"), ("-std=c++23", "-std=c++11"))


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
            model = hls4ml.converters.convert_from_config(_configuration(folder, index, job))
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
    model.write()
    folder = Path(model.config.get_output_dir())
    script = folder / "build_lib.sh"
    text = script.read_text()
    for old, new in _FLAGS:
        text = text.replace(old, new)
    script.write_text(text)
    built = subprocess.run(["bash", "build_lib.sh"], cwd=folder, capture_output=True, text=True)
    if built.returncode:
        errors = [line for line in built.stderr.splitlines() if re.search(r"error", line)]
        raise RuntimeError(f"g++: {(errors or ['no message'])[0]}")
    model._top_function_lib = None
    library = next((folder / "firmware").glob("*.so"))
    import ctypes

    model._top_function_lib = ctypes.cdll.LoadLibrary(str(library))
    inputs = [np.ascontiguousarray(array.astype(np.float64)) for array in samples]
    found = model.predict(inputs if len(inputs) > 1 else inputs[0])
    count = len(inputs[0])
    return [np.asarray(a).reshape(count, -1) for a in (found if isinstance(found, list) else [found])]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
