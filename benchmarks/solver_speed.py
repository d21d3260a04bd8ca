"""How long a layer takes: our solvers, Brevitas's A2GPFQ and A2GPTQ, and the physical limit.

On an otherwise idle machine:

    python benchmarks/solver_speed.py --output solver_speed.json
    python benchmarks/solver_speed.py --device cuda --sizes 4096x4096 4096x14336

All in one process with the same number of threads. Ours and the limit are medians of several runs
after a first that compiles; Brevitas, which is slow, runs once per size. The limit is the time of
the matrix products (and of the Cholesky factorization for OPTQ) that the algorithm cannot do
without. `best` is the quality level of that name.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from brevitas_reference import clock
from brevitas_reference import solve as solve_with_brevitas
from rich.console import Console
from rich.table import Table

from brevitas_axe.methods.solvers import LayerProblem
from brevitas_axe.registry import method

SIZES = ((256, 256), (768, 768), (256, 2304), (1024, 4096))
BIT_WIDTH = 16


def median_seconds(work: Callable[[], object], runs: int) -> float:
    """Median wall time of some runs after one that is not counted."""
    work()
    times = []
    for _ in range(runs):
        begun = clock()
        work()
        times.append(clock() - begun)
    return statistics.median(times)


def limit_seconds(name: str, problem: LayerProblem, runs: int) -> float:
    """Time of the matrix products and the factorization alone, in float32."""
    hessian, weight = problem.hessian[0], problem.weight[0].mT.contiguous()
    columns = problem.columns
    if name == "gpfq":
        # Half of H and half of G.
        return median_seconds(lambda: hessian @ weight, runs)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(columns).to(hessian)
    half = columns // 2
    left, right = hessian[:, :half].contiguous(), weight[:half]
    product = median_seconds(lambda: left @ right, runs)
    return product + median_seconds(lambda: torch.linalg.cholesky(damped), runs)


def measure(name: str, rows: int, columns: int, runs: int, device: str) -> dict[str, object]:
    """One row of the table."""
    samples = max(columns, 512)
    reference = solve_with_brevitas(
        name,
        rows,
        columns,
        samples=samples,
        bit_width=BIT_WIDTH,
        dtype=torch.float32,
        device=device,
    )
    problem, solve = reference.problem, method("solvers", name)
    fast = median_seconds(lambda: solve(problem), runs)
    best = median_seconds(lambda: solve(problem, quality="best"), 1)
    limit = limit_seconds(name, problem, runs)
    return {
        "solver": name,
        "rows": rows,
        "columns": columns,
        "brevitas_s": reference.seconds,
        "fast_s": fast,
        "best_s": best,
        "limit_s": limit,
        "fast_speedup": reference.seconds / fast,
        "best_speedup": reference.seconds / best,
        "times_limit": fast / limit,
        "differing": int((solve(problem).integers != reference.integers).sum()),
        "integers": reference.integers.numel(),
    }


def main() -> None:
    """Measures every size, prints a table and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", default=[f"{r}x{k}" for r, k in SIZES])
    parser.add_argument("--device", default="cpu", help="of all, as torch names it")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console(width=130)
    results = []
    for size in options.sizes:
        rows, columns = map(int, size.split("x"))
        for name in ("gpfq", "gptq"):
            results.append(measure(name, rows, columns, options.runs, options.device))
            console.print({k: v for k, v in results[-1].items() if not k.endswith("_s")})
    console.print(as_table(results))
    if options.output:
        content = {"threads": options.threads, "rows": results}
        options.output.write_text(json.dumps(content, indent=1))


def as_table(results: list[dict]) -> Table:
    """The results for people."""
    columns = ("solver", "size", "Brevitas", "fast", "best", "limit")
    table = Table(*columns, "fast is", "best is", "of limit", "differing")
    for row in results:
        table.add_row(
            row["solver"],
            f"{row['rows']}x{row['columns']}",
            *(f"{row[key]:.4f} s" for key in ("brevitas_s", "fast_s", "best_s", "limit_s")),
            *(f"{row[key]:.1f}x" for key in ("fast_speedup", "best_speedup", "times_limit")),
            f"{row['differing']} of {row['integers']}",
        )
    return table


if __name__ == "__main__":
    main()
