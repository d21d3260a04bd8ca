"""Calls flow.py in FINN's environment, and reads what it wrote."""

from __future__ import annotations

import atexit
import json
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

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


class Worker:
    """A process of FINN's that answers one request after another."""

    def __init__(self, interpreter: Path) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="finn-")
        self.log = Path(self.folder.name) / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [interpreter, _FLOW],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=self.folder.name,
            )
        atexit.register(self.end)

    def ask(self, request: dict[str, Any], seconds: int) -> str | None:
        """FINN's answer, empty if all went well; None if it gave none in time, or died."""
        requests, answers = _streams(self.process)
        alarm = threading.Timer(seconds, self.process.kill)
        alarm.start()
        try:
            print(json.dumps(request), file=requests, flush=True)
            answer = answers.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            alarm.cancel()
        return answer.rstrip("\n") if answer else None

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.folder.cleanup()


def _streams(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


@cache
def _worker() -> Worker:
    try:
        return Worker(python())
    except NoFinn as reason:
        pytest.skip(str(reason))


def through_finn(
    path: Path, folder: Path, *samples: np.ndarray, seconds: int = 300, **options: Any
) -> Finn:
    """Sends a QONNX file through FINN; skips the test where FINN cannot be installed.

    Args:
        path: a QONNX file with batch size 1.
        folder: where FINN's models and reports go.
        samples: for each input of the file one array [samples, ...]; none, and nothing is run.
        seconds: a file that takes FINN longer keeps it busy for ever.
        options: see `flow.Options`.
    """
    worker = _worker()
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "samples.npz", *samples)
    request = {"model": path, "folder": folder, "samples": folder / "samples.npz"}
    request = {key: str(value.absolute()) for key, value in request.items()}
    answer = worker.ask({**request, "options": options}, seconds)
    if answer is None:
        _worker.cache_clear()
        about = {"type": "NoAnswer", "message": worker.log.read_text()[-2000:], "traceback": ""}
        worker.end()
        return Finn([], [], [{"step": "", **about}], [], {}, {})
    if answer:
        raise RuntimeError(f"flow.py failed: {answer}\n{worker.log.read_text()[-2000:]}")
    report: dict[str, Any] = json.loads((folder / "flow.json").read_text())
    for name in ("weights", "outputs"):
        report[name] = dict(np.load(folder / f"{name}.npz"))
    return Finn(**report)
