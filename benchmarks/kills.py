"""Kills the command line at random moments and lets it go on: nothing is lost, same integers.

    python benchmarks/kills.py --kills 30

One walk is allocate → quantize → finetune → certify → export → check → emulate over a small
residual net. It is run once without a kill, and then again and again in new folders, each time
killed (SIGKILL) once at a random moment of each command, started anew with the same commands after
every kill, and led to its end. There, integers, plans, certificates and the exported file must be
those of the first walk.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

USER_FILE = """
import torch
from torch import nn
import torch.nn.functional as F


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(self.norm(self.inner(x)) + x)
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def build():
    torch.manual_seed(0)
    return Net()


def images():
    return [torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(2)]


def labelled():
    generator = torch.Generator().manual_seed(9)
    return [(x, torch.randint(4, (16,), generator=generator)) for x in images()]
"""
_DATA = ["--calibration", "user.py:images"]
COMMANDS: tuple[list[str], ...] = (
    ["allocate", "user.py:build", *_DATA, "--budget", "bops=2000000", "--state", "scores",
     "--weight-bits", "3", "4", "--input-bits", "4", "6", "--accumulator-bits", "14"],
    ["quantize", "user.py:build", *_DATA, "--plan", "plan.json", "--state", "layers",
     "--output", "solved"],
    ["finetune", "solved", "--data", "user.py:labelled", "--epochs", "4", "--state", "epochs",
     "--output", "tuned"],
    ["certify", "tuned"],
    ["export", "tuned", "tuned/model.onnx", "--target", "qonnx"],
    ["check", "tuned"],
    ["emulate", "tuned", "--inputs", "x.npy", "--output", "y.npy"],
)  # fmt: skip
# Files whose bytes must be the same at the end.
_COMPARED = ("plan.json", "solved/model/model.tensors", "solved/model/certificate.json",
             "tuned/model/model.tensors", "tuned/certificate.json", "tuned/model.onnx",
             "y.npy")  # fmt: skip


def walk(folder: Path) -> None:
    """All commands, one after the other, in this process."""
    import numpy as np

    from brevitas_axe.cli import main

    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    Path("user.py").write_text(USER_FILE)
    np.save("x.npy", np.full((1, 3, 8, 8), 0.5, np.float32))
    times: list[tuple[str, float]] = []
    for command in COMMANDS:
        Path("at").write_text(command[0])
        times.append((command[0], time.monotonic()))
        status = main(command)
        # `check` finds what FINN would refuse, with status 1.
        if status != 0 and command[0] != "check":
            raise SystemExit(f"{' '.join(command)} ended with {status}")
    Path("times").write_text(json.dumps([*times, ("", time.monotonic())]))


def started(folder: Path) -> int:
    """A walk in a process of its own, forked so that nothing is imported again."""
    child = os.fork()
    if child == 0:
        with open(os.devnull, "w") as nowhere, (folder.parent / "log").open("a") as log:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(log.fileno(), 2)
            try:
                walk(folder)
                os._exit(0)
            except BaseException as error:  # the child must not go on as its parent
                print(repr(error), file=sys.stderr, flush=True)
                os._exit(1)
    return child


def result(folder: Path) -> dict[str, str]:
    """One number for each file that counts."""
    return {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in _COMPARED}


def ended(child: int, until: Callable[[], bool] = lambda: False) -> bool:
    """Whether a walk came to its end before a condition held, at which it is killed.

    Raises:
        SystemExit: it failed.
    """
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if status:
                raise SystemExit(f"the walk failed with status {status}")
            return True
        if until():
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return False
        time.sleep(0.002)


def moment(folder: Path, command: str, seconds: float) -> Callable[[], bool]:
    """Whether so much time has gone by since a walk came to a command."""
    at, seen = folder / "at", [math.inf]
    at.unlink(missing_ok=True)

    def reached() -> bool:
        if seen[0] == math.inf and at.is_file() and at.read_text() == command:
            seen[0] = time.monotonic()
        return time.monotonic() - seen[0] >= seconds

    return reached


def run(kills: int, seed: int, root: Path) -> Counter[str]:
    """Kills walks so many times; returns how often in which command.

    Raises:
        SystemExit: a walk failed, or ended with something else than the first.
    """
    import brevitas_axe.cli.quantize  # noqa: F401 (imported once, here, for all walks)
    from brevitas_axe import export_qonnx, finetune, load, quantize  # noqa: F401

    draw = random.Random(seed)
    ended(started(root / "first"))
    expected, lasts = result(root / "first"), durations(root / "first")
    print(f"seconds: {lasts}", file=sys.stderr, flush=True)
    where: Counter[str] = Counter()
    names = [command[0] for command in COMMANDS]
    number = 0
    while where.total() < kills:
        folder, number = root / f"walk-{number}", number + 1
        for name in names[: kills - where.total()]:
            if ended(started(folder), moment(folder, name, draw.uniform(0, lasts[name]))):
                continue  # it was faster than the first one
            where[name] += 1
            print(f"kill {where.total()} of {kills}, in {name}", file=sys.stderr, flush=True)
        ended(started(folder))
        found = result(folder)
        other = [name for name in expected if found[name] != expected[name]]
        if other:
            raise SystemExit(f"walk {number} ended with another {', '.join(other)}")
        print(f"walk {number} ended with the same files", file=sys.stderr, flush=True)
    return where


def durations(folder: Path) -> dict[str, float]:
    """Seconds of each command of a walk."""
    times = json.loads((folder / "times").read_text())
    return {name: round(times[i + 1][1] - start, 2) for i, (name, start) in enumerate(times[:-1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        where = run(arguments.kills, arguments.seed, Path(folder))
    print(json.dumps({"kills": where.total(), "in": dict(where), "same": True}))


if __name__ == "__main__":
    main()
