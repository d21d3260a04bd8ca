"""Random layers with every option of the solvers: no budget may be broken, nothing may crash.

    python benchmarks/random_layers.py [--layers 100000] [--seed 0] [--output FILE]

Every layer's integers are checked by worst-case sums in Python integers, which share no code with
the solvers. Only the package's own named errors are allowed; they are counted by class.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from brevitas_axe.errors import AxeError
from brevitas_axe.files import write_whole
from brevitas_axe.methods.solvers import LayerProblem
from brevitas_axe.registry import method, methods


def random_problem(draw: np.random.Generator) -> tuple[LayerProblem, str]:
    """A layer of up to 3 groups, 6 rows and 24 inputs, and a line that says what it is."""
    groups, rows, columns = (int(draw.integers(1, most + 1)) for most in (3, 6, 24))
    weight_bits, input_bits = int(draw.integers(2, 9)), int(draw.integers(1, 9))
    signed = bool(draw.integers(2)) and input_bits > 1
    low, high = (-(2 ** (input_bits - 1)) * signed, 2 ** (input_bits - signed) - 1)
    bits = None if draw.random() < 0.05 else int(draw.integers(2, 25))
    tile = None if draw.random() < 0.4 else int(draw.integers(1, columns + 3))
    samples = int(draw.integers(1, 3 * columns + 2))
    inputs = draw.integers(low, high + 1, (groups, columns, samples)).astype(np.float32)
    inputs *= draw.random((groups, columns, 1)) > 0.1  # some inputs are dead
    inputs += (draw.random() < 0.2) * 100  # some are strongly correlated
    quant = torch.from_numpy(inputs)
    real = quant + float(draw.random()) * torch.from_numpy(
        draw.standard_normal(inputs.shape).astype(np.float32)
    )
    weight = torch.from_numpy(draw.standard_normal((groups, rows, columns)).astype(np.float32))
    weight *= float(10 ** draw.uniform(-3, 2))
    power_of_two, shared = bool(draw.random() < 0.25), bool(draw.random() < 0.25)
    largest = 2 ** (weight_bits - 1) - 1
    scale = (weight.abs().amax(-1) / largest).clamp_min(1e-8)
    scale = scale.amax().expand_as(scale).clone() if shared else scale
    scale = scale.log2().ceil().exp2() if power_of_two else scale
    bias = draw.random() < 0.3
    cross = quant @ real.mT / samples if draw.random() < 0.7 else None
    bounds: tuple = (low, high)
    if draw.random() < 0.2:  # a range of its own for every input
        share = torch.from_numpy(draw.random((2, columns)))
        bounds = ((low * share[0]).long(), (high * share[1]).long())
    problem = LayerProblem(
        weight=weight,
        hessian=quant @ quant.mT / samples,
        scale=scale,
        weight_low=-largest,
        weight_high=largest,
        input_low=bounds[0],
        input_high=bounds[1],
        cross=cross,
        quant_mean=quant.mean(-1) if bias else None,
        float_mean=(quant if cross is None else real).mean(-1) if bias else None,
        accumulator_bit_width=bits,
        tile_size=tile,
        shared_scale=shared,
        power_of_two=power_of_two,
    )
    return problem, f"W{weight_bits} A{input_bits} signed={signed} P={bits} tile={tile}"


def varied(draw: np.random.Generator, problem: LayerProblem) -> tuple[LayerProblem, str]:
    """The layer with the options of branches, each in a part of the cases, and their names.

    Tiles of any lengths, an accumulator per tile, some of them without a limit, a range of the
    integer weights per column, a scale per tile.
    """
    columns = problem.columns
    said = []
    if draw.random() < 0.5:
        inner = np.flatnonzero(draw.random(columns) < draw.random()).tolist()
        problem = replace(problem, tile_size=None, tile_starts=tuple(sorted({0, *inner})))
        said.append(f"starts={problem.tile_starts}")
    if draw.random() < 0.5:
        widths = draw.integers(2, 25, problem.tiles) * (draw.random(problem.tiles) > 0.2)
        problem = replace(problem, accumulator_bit_width=torch.from_numpy(widths))
        said.append(f"widths={widths.tolist()}")
    if draw.random() < 0.5:
        low, high = torch.from_numpy(draw.integers(0, 2 ** draw.integers(1, 8), (2, columns)))
        problem = replace(problem, weight_low=-low, weight_high=high)
        said.append("weight range per column")
    if draw.random() < 0.3 and not problem.shared_scale:
        factor = torch.from_numpy(2.0 ** draw.integers(-2, 3, problem.tiles)).to(problem.scale)
        problem = replace(problem, scale=problem.scale.unsqueeze(-1) * factor)
        said.append("scale per tile")
    return problem, " ".join(said)


def violations(problem: LayerProblem, integers: torch.Tensor) -> int:
    """Tiles whose worst-case sum leaves ±(2^(P-1) - 1), and weights out of range."""
    values = integers.tolist()
    columns = len(values[0][0])
    smallest, largest, low, high = (
        torch.as_tensor(bound).expand(columns).tolist()
        for bound in (
            problem.weight_low,
            problem.weight_high,
            problem.input_low,
            problem.input_high,
        )
    )
    rows = [row for group in values for row in group]
    bad = sum(not smallest[k] <= row[k] <= largest[k] for row in rows for k in range(columns))
    size = problem.tile_size or columns
    starts = [*(problem.tile_starts or range(0, columns, size)), columns]
    widths = problem.accumulator_bit_width
    widths = widths.tolist() if torch.is_tensor(widths) else [widths] * (len(starts) - 1)
    for row in rows:
        for (first, last), bits in zip(pairwise(starts), widths, strict=True):
            if not bits:
                continue
            limit = 2 ** (bits - 1) - 1
            bad += sum(max(row[k] * low[k], row[k] * high[k]) for k in range(first, last)) > limit
            bad += sum(min(row[k] * low[k], row[k] * high[k]) for k in range(first, last)) < -limit
    return bad


def main() -> None:
    """Solves and judges the layers; exits with 1 when anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    counts: Counter[str] = Counter()
    failures = []
    for index in tqdm(range(arguments.layers), mininterval=5):
        draw = np.random.default_rng([arguments.seed, index])
        name = str(draw.choice(sorted(methods("solvers"))))
        quality, act_order = str(draw.choice(["fast", "best"])), bool(draw.integers(2))
        what = f"layer {index} {name} {quality} act_order={act_order}"
        try:
            problem, detail = random_problem(draw)
            problem, more = varied(draw, problem)
            detail = f"{detail} {more}"
            solution = method("solvers", name)(problem, act_order=act_order, quality=quality)
            broken = violations(problem, solution.integers)
            counts[f"{name} {quality}"] += 1
            if broken or not bool(torch.isfinite(solution.scale).all()):
                failures.append(f"{what} {detail}: {broken} violations")
        except AxeError as error:
            counts[type(error).__name__] += 1
        except Exception as error:  # a crash is what this script looks for
            failures.append(f"{what}: {type(error).__name__}: {error}")
    result = {"layers": arguments.layers, "failures": failures, "counts": dict(counts)}
    print(json.dumps(result, indent=1))
    if arguments.output:
        write_whole(arguments.output, json.dumps(result, indent=1).encode())
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    main()
