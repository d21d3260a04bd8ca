"""How far the solvers on a GPU are from what the card allows, and whether integers are the CPU's.

    python benchmarks/gpu_solvers.py --output gpu_solvers.json

The limit is that of solver_speed.py: matrix products and, for OPTQ and Qronos, one Cholesky
factorization, in float32, in the same process on the same card. All times are medians of several
runs after a first that compiles. Brevitas's A2GPTQ and A2GPFQ run once, at the first size.
Integers are compared at 512x512: none may differ in float64; in float32 those next to ties may.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from brevitas_reference import solve as solve_with_brevitas
from rich.console import Console
from rich.table import Table
from solver_speed import limit_seconds, median_seconds

from brevitas_axe.methods.solvers import LayerProblem
from brevitas_axe.registry import method

SIZES = ("4096x4096", "4096x14336", "14336x4096")
SOLVERS = ("gptq", "gpfq", "qronos")
BIT_WIDTH, TILE = 16, 128
# Multiples of the limit that are aimed at: of "fast" at the first size and the others, of "best".
GOALS = {"gptq": (2.5, 2.0), "gpfq": (2.5, 2.0), "qronos": (3.0, 3.0)}
GOAL_OF_BEST = 12.0


def layer(rows: int, columns: int, device: str, dtype: torch.dtype) -> LayerProblem:
    """A random layer with correlated 8-bit inputs, whose float inputs differ a little."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=torch.float64)

    samples = 2 * columns
    inputs = (normal(samples, columns // 4) @ normal(columns // 4, columns)).relu()
    inputs = inputs / inputs.max() + 0.05 * normal(samples, columns).abs()
    step = inputs.max() / 255
    quantized = (inputs / step).round() * step
    weight = normal(1, rows, columns)
    return LayerProblem(
        weight=weight.to(dtype),
        hessian=(quantized.T @ quantized / samples)[None].to(dtype),
        cross=(quantized.T @ inputs / samples)[None].to(dtype),
        scale=(weight.abs().amax(-1) / 7).to(dtype),
        weight_low=-7,
        weight_high=7,
        input_low=0,
        input_high=255,
        accumulator_bit_width=BIT_WIDTH,
        tile_size=TILE,
    )


def measure(name: str, size: str, options: argparse.Namespace) -> dict[str, object]:
    """One row of the table of times."""
    rows, columns = map(int, size.split("x"))
    problem, solve = layer(rows, columns, options.device, torch.float32), method("solvers", name)
    limit = limit_seconds("gptq" if name == "qronos" else name, problem, options.runs)
    row: dict[str, object] = {"solver": name, "size": size, "limit_ms": 1e3 * limit}
    fast = median_seconds(lambda: solve(problem), options.runs)
    goal = GOALS[name][size != options.sizes[0]]
    row |= {"fast_ms": 1e3 * fast, "fast_is": fast / limit, "fast_goal": goal}
    if size != options.sizes[0]:
        return row
    best = median_seconds(lambda: solve(problem, quality="best"), 3)
    row |= {"best_ms": 1e3 * best, "best_is": best / limit, "best_goal": GOAL_OF_BEST}
    if name != "qronos":
        brevitas = solve_with_brevitas(
            name, rows, columns, bit_width=BIT_WIDTH, tile_size=TILE, dtype=torch.float32,
            device=options.device,
        ).seconds  # fmt: skip
        row |= {"brevitas_s": brevitas, "faster_than_brevitas": brevitas / fast}
    return row


def differing(name: str, dtype: torch.dtype, device: str) -> str:
    """How many integers of a layer are not those of the CPU."""
    problem, solve = layer(512, 512, device, dtype), method("solvers", name)
    there, here = solve(problem), solve(problem.to("cpu"))
    return f"{int((there.integers.cpu() != here.integers).sum())} of {here.integers.numel()}"


def as_table(rows: list[dict[str, object]]) -> Table:
    """Rows for people; what was not measured stays empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(*names)
    for row in rows:
        values = (row.get(name, "") for name in names)
        table.add_row(*(f"{v:.2f}" if isinstance(v, float) else str(v) for v in values))
    return table


def main() -> None:
    """Measures every solver and size, prints two tables and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="rows x columns")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("There is no GPU that torch can use: nothing was measured.")
    card = torch.cuda.get_device_name() if options.device.startswith("cuda") else options.device
    console = Console(width=150)
    console.print(f"{card}, torch {torch.__version__}")
    times = [measure(name, size, options) for size in options.sizes for name in SOLVERS]
    console.print(as_table(times))
    numbers: dict[str, torch.dtype] = {"float64": torch.float64, "float32": torch.float32}
    equal = [
        {"solver": name, "numbers": word, "differing": differing(name, dtype, options.device)}
        for name in SOLVERS
        for word, dtype in numbers.items()
    ]
    console.print(as_table(equal))
    if options.output:
        content = {"card": card, "torch": torch.__version__, "times": times, "integers": equal}
        options.output.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
