"""A transformer through `quantize_blocks`: tiles and accumulators beside no limit at all.

    python benchmarks/blocks.py char_lm|minilm [--smooth 0.8] [--activations per_token] [--quick]

The models, data and metrics are those of char_lm.py and minilm.py; both limits of a row hold for
every linear layer of every block. `loss` is what the limit costs: the share of the metric of the
same recipe without a limit, positive where the limited model is worse.
"""

from __future__ import annotations

import argparse
import time
from copy import deepcopy
from functools import partial
from itertools import product
from pathlib import Path

import brevitas
import char_lm
import minilm
import torch
from arms import Experiment, bits_needed, model_fingerprint, solver_fingerprint
from records import print_table, recorded, write_json

from brevitas_axe.blocks import quantize_blocks

# What the integers depend on besides the solvers.
SOURCES = ("ptq", "accumulator.py", "blocks", "quantizers")


def experiment(name: str, small: bool) -> Experiment:
    """Model, calibration text and judge by name."""
    if name == "minilm":
        size = 64 if small else 256
        return minilm.experiment(size, size)
    return char_lm.experiment(100 if small else 2000, 16 if small else 128, 64 if small else None)


def solve(judge: Experiment, recipe: dict, limit: int | None, tile: int | None) -> dict:
    """One row: the metric, and what two independent checks say of the accumulators."""
    start = time.process_time()
    result = quantize_blocks(
        deepcopy(judge.model),
        judge.batches,
        accumulator_bit_width=limit,
        tile_size=tile,
        progress=False,
        **recipe,
    )
    seconds = time.process_time() - start
    needed = None
    if recipe["symmetric"]:
        needed = bits_needed(result.model, judge.batches[0][:1], tile)
    return {
        judge.metric: judge.evaluate(result.model),
        "bits_needed": needed,
        "certified": None if limit is None else result.certificate.ok,
        "processor_s": round(seconds, 1),
    }


def table(judge: Experiment, recipe: dict, points: list[tuple[int | None, int | None]]) -> list:
    """A row per (accumulator, tile); the first has no limit."""
    rows = []
    for limit, tile in points:
        key = {
            **recipe,
            "accumulator": limit,
            "tile": tile,
            "model": model_fingerprint(judge.model),
            "content": judge.content,
            "torch": torch.__version__,
            "brevitas": brevitas.__version__,
            "code": solver_fingerprint(SOURCES),
        }
        found = recorded(f"blocks_{judge.name}", key, partial(solve, judge, recipe, limit, tile))
        loss = None
        if rows:
            change = 100 * (found[judge.metric] / rows[0][judge.metric] - 1)
            loss = f"{change if judge.lower_is_better else -change:+.1f} %"
        rows.append({"P": limit, "tile": tile, **found, "loss": loss})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=["char_lm", "minilm"])
    parser.add_argument("--weight-bits", type=int, default=4)
    parser.add_argument("--input-bits", type=int, default=8)
    parser.add_argument("--activations", default="static")
    parser.add_argument("--asymmetric", action="store_true", help="inputs with zero points")
    parser.add_argument("--smooth", type=float, help="strength of SmoothQuant")
    parser.add_argument("--rotate", action="store_true", help="Hadamard rotation of the inputs")
    parser.add_argument("--accumulators", type=int, nargs="+", default=[16, 14])
    parser.add_argument("--tiles", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a small run that proves it works")
    parser.add_argument("--output", type=Path, help="JSON file for the rows")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    recipe = {
        "weight_bit_width": arguments.weight_bits,
        "input_bit_width": arguments.input_bits,
        "activations": arguments.activations,
        "symmetric": not arguments.asymmetric,
        "smooth": arguments.smooth,
        "rotate": arguments.rotate,
    }
    limited = product(arguments.accumulators, arguments.tiles)
    points = [(None, None), *([(14, 64)] if arguments.quick else limited)]
    rows = table(experiment(arguments.model, arguments.quick), recipe, points)
    title = ", ".join(f"{name} {value}" for name, value in recipe.items())
    print_table(f"{arguments.model}: {title}", rows)
    write_json(arguments.output, {"recipe": recipe, "rows": rows})


if __name__ == "__main__":
    main()
