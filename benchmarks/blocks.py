"""A transformer through `quantize_blocks`: tiles and accumulators beside no limit at all.

    python benchmarks/blocks.py char_lm|minilm [--smooth 0.8] [--activations per_token] [--quick]
    python benchmarks/blocks.py char_lm|minilm --train 300 --learning-rate 1e-3

The models, data and metrics are those of char_lm.py and minilm.py; both limits of a row hold for
every linear layer of every block. `loss` is what the limit costs: the share of the metric of the
same recipe without a limit, positive where the limited model is worse. With --train every limited
model then takes so many steps of `finetune` after its float twin, on text that has no labels and
judges nothing.
"""

from __future__ import annotations

import argparse
import time
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path

import brevitas
import char_lm
import minilm
import torch
import torch.nn.functional as F
from arms import Experiment, bits_needed, model_fingerprint, solver_fingerprint
from records import print_table, recorded, write_json
from torch import Tensor

from brevitas_axe.run.finetune import distillation, finetune
from brevitas_axe.run.finetune.losses import Loss
from brevitas_axe.run.quantize_blocks import quantize_blocks
from brevitas_axe.run.result import BlocksResult

# What the integers depend on besides the solvers.
SOURCES = ("methods", "run", "model", "accumulator.py")
ROWS = 16  # windows per training batch of the language model


@dataclass(frozen=True)
class Training:
    """Steps of `finetune` after the float model, 0 for none."""

    steps: int = 0
    learning_rate: float = 1e-3

    def run(self, judge: Experiment, result: BlocksResult) -> dict:
        """Trains what `quantize_blocks` returned; the same batches for every row."""
        start = time.process_time()
        tuned = finetune(
            result.model,
            unlabelled(judge, self.steps),
            epochs=1,
            learning_rate=self.learning_rate,
            scale_learning_rate=1e-3,
            optimizer=torch.optim.Adam,
            loss=follow(judge),
            exclude=result.floats,
            progress=False,
        )
        return {
            "trained": judge.evaluate(tuned.model),
            "trained certified": tuned.certificate.ok,
            "training_s": round(time.process_time() - start, 1),
        }


def unlabelled(judge: Experiment, steps: int) -> list[Tensor]:
    """Batches that neither calibrate nor judge MiniLM; of the language model's training text."""
    generator = torch.Generator().manual_seed(0)
    if judge.name == "minilm":
        *_, rest = minilm.split_sentences(judge.content["calibration"], judge.content["judged"])
        pool = minilm.batches(minilm.model_folder(), rest)
        return [pool[i] for i in torch.randint(len(pool), (steps,), generator=generator)]
    rows = char_lm.windows(char_lm.read_text()[0])[:, :-1]
    return list(rows[torch.randint(len(rows), (steps, ROWS), generator=generator)])


def follow(judge: Experiment) -> Loss:
    """How far a quantized model is from the float one on a batch."""
    if judge.metric == "perplexity":
        return distillation(judge.model, weight=1.0, temperature=1.0)

    def distance(embeddings: Tensor, batch: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = judge.model(batch)
        return 1 - F.cosine_similarity(embeddings, wanted).mean()

    return distance


def experiment(name: str, small: bool, calibration: int) -> Experiment:
    """Model, calibration text (so many sentences for MiniLM) and judge by name."""
    if name == "minilm":
        return minilm.experiment(*((64, 64) if small else (calibration, minilm.JUDGED)))
    return char_lm.experiment(100 if small else 2000, 16 if small else 128, 64 if small else None)


def solve(
    judge: Experiment, recipe: dict, training: Training, limit: int | None, tile: int | None
) -> dict:
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
        **(training.run(judge, result) if training.steps else {}),
    }


def table(
    judge: Experiment,
    recipe: dict,
    training: Training,
    points: list[tuple[int | None, int | None]],
) -> list:
    """A row per (accumulator, tile); the first has no limit, and is not trained."""
    rows = []
    for limit, tile in points:
        chosen = Training() if limit is None else training
        key = {
            **recipe,
            **(asdict(chosen) if chosen.steps else {}),
            "accumulator": limit,
            "tile": tile,
            "model": model_fingerprint(judge.model),
            "content": judge.content,
            "torch": torch.__version__,
            "brevitas": brevitas.__version__,
            "code": solver_fingerprint(SOURCES),
        }
        found = recorded(
            f"blocks_{judge.name}", key, partial(solve, judge, recipe, chosen, limit, tile)
        )
        losses = {}
        for value, name in ((judge.metric, "loss"), ("trained", "loss, trained")):
            if rows and value in found:
                change = 100 * (found[value] / rows[0][judge.metric] - 1)
                losses[name] = f"{change if judge.lower_is_better else -change:+.1f} %"
        rows.append({"P": limit, "tile": tile, **found, **losses})
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
    parser.add_argument("--calibration", type=int, default=1024, help="sentences for MiniLM")
    parser.add_argument("--train", type=int, default=0, help="steps of training for each row")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
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
    training = Training(arguments.train, arguments.learning_rate)
    rows = table(
        experiment(arguments.model, arguments.quick, arguments.calibration),
        recipe,
        training,
        points,
    )
    title = ", ".join(f"{name} {value}" for name, value in recipe.items())
    columns = list(dict.fromkeys(key for row in rows for key in row))
    print_table(f"{arguments.model}: {title}", [{c: row.get(c) for c in columns} for row in rows])
    write_json(arguments.output, {"recipe": recipe, "training": asdict(training), "rows": rows})


if __name__ == "__main__":
    main()
