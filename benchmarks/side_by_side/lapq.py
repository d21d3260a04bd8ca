"""The range of one tensor in a p-norm: the authors' LAPQ and ours.

    python benchmarks/side_by_side/lapq.py

Runs `LpNormQuantization` of ynahshan/nn-quantization-pytorch (no licence: fetched, never kept here)
and the first step of our `lapq` on the same numbers and the same grid: signed with both ends, its
step 2 alpha / (2^b - 1), or unsigned, its step alpha / (2^b - 1).
"""

from __future__ import annotations

import argparse
import sys

import torch
from official import official
from records import add_arguments, print_table, write_json
from torch import Tensor, nn

from brevitas_axe.methods.ranges.lapq import lapq
from brevitas_axe.methods.ranges.protocol import RangeCase

REPOSITORY = "ynahshan/nn-quantization-pytorch"
COMMIT = "12cd3bf4b5430128483220a2521998c7a7ae9bd1"
BITS = 4


def tensors(count: int) -> dict[str, tuple[Tensor, bool]]:
    """Name → (numbers, whether they are signed)."""
    x = torch.randn(count, generator=torch.Generator().manual_seed(0))
    return {"gauss": (x, True), "half gauss": (x.relu(), False), "heavy tail": (x**3, True)}


def rounded(x: Tensor, alpha: float, signed: bool) -> Tensor:
    """The authors' grid, written down here."""
    step = (2 if signed else 1) * alpha / (2**BITS - 1)
    low, high = (-(2 ** (BITS - 1)), 2 ** (BITS - 1) - 1) if signed else (0, 2**BITS - 1)
    return (x / step).clamp(low, high).round() * step


def ours(x: Tensor, signed: bool, power: float) -> float:
    """The range that our first step finds."""
    widest = float(x.abs().max())
    case = RangeCase(
        {"x": x},
        {"x": widest},
        lambda _, share: rounded(x, share * widest, signed),
        lambda shares: 0.0,
    )
    return lapq.least_errors(case, [power])[0]["x"] * widest


def main() -> None:
    """Prints both ranges and both errors for three distributions and three norms."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sys.path.insert(0, str(official(REPOSITORY, COMMIT)))
    from quantization.methods.clipped_uniform import LpNormQuantization

    rows = []
    for name, (x, signed) in tensors(2000 if arguments.quick else 20000).items():
        for power in (2.0, 3.0, 4.0):
            method = LpNormQuantization(
                nn.Module(), x, BITS, symmetric=signed, uint=not signed, kwargs={"lp": power}
            )
            found = {"official": float(method.alpha), "ours": ours(x, signed, power)}
            errors = {
                who: float((rounded(x, alpha, signed) - x).abs().double().pow(power).mean())
                for who, alpha in found.items()
            }
            rows.append(
                {
                    "numbers": name,
                    "p": power,
                    **{f"alpha, {who}": alpha for who, alpha in found.items()},
                    **{f"error, {who}": error for who, error in errors.items()},
                    "ours not worse": errors["ours"] <= errors["official"] * 1.001,
                }
            )
    print_table(f"LAPQ's first step, {BITS} bits; {REPOSITORY} at {COMMIT[:12]}", rows)
    write_json(arguments.output, {"benchmark": "side_by_side/lapq", "commit": COMMIT, "rows": rows})


if __name__ == "__main__":
    main()
