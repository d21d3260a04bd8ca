"""A walk that is killed goes on to the same integers; benchmarks/kills.py kills it more often."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kills.py"


def test_nothing_is_lost_by_kills() -> None:
    command = [sys.executable, "-W", "ignore", str(SCRIPT), "--kills", "2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["same"]
    assert found["kills"] == 2
