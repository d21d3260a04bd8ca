"""How long one waits for the package, beside what torch and Brevitas take by themselves.

    python benchmarks/start_up.py [--runs 7]

Every command runs in a process of its own, in turn, so that all meet the same load of the machine.
Printed are the median of the seconds and its ratio to that of `import torch, brevitas`.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

REFERENCE = "import torch, brevitas"
_CLI = "from brevitas_axe.cli import main; main"
COMMANDS = {
    REFERENCE: REFERENCE,
    "brevitas-axe --help": f"{_CLI}(['--help'])",
    "brevitas-axe quantize --help": f"{_CLI}(['quantize', '--help'])",
    "import brevitas_axe": "import brevitas_axe",
    "brevitas_axe.quantize": "import brevitas_axe; brevitas_axe.quantize",
}


def seconds(code: str) -> float:
    """Wall-clock time of one Python process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return time.perf_counter() - start


def measure(runs: int) -> dict[str, float]:
    """Median seconds of every command; the first round, which fills the disk's cache, is left out.

    Args:
        runs: rounds to measure.
    """
    rounds = [[seconds(code) for code in COMMANDS.values()] for _ in range(runs + 1)][1:]
    return dict(zip(COMMANDS, map(statistics.median, zip(*rounds, strict=True)), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    medians = measure(parser.parse_args().runs)
    for name, median in medians.items():
        print(f"{median:7.3f} s  {median / medians[REFERENCE]:6.3f}  {name}")


if __name__ == "__main__":
    main()
