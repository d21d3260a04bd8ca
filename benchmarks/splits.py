"""Few bits in groups of 128 on a small language model: splits beside plain solves.

    python benchmarks/splits.py [--quick] [--seeds 3] [--output FILE]

Perplexity on text that calibrated nothing, of `llama_text` (BREVITAS_AXE_DATA) with weights of 2
and 3 bits on average and inputs of 8 bits. Every group of 128 inputs has one weight scale and one
accumulator. The mean of bits is exact; two ternary planes store 2 log2(3) bits per weight, and each
method stores one scale of 16 bits per row and group for each of its planes.
"""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

import torch
from records import DATA, add_arguments, print_table, recorded, write_json
from torch import Tensor, nn

from brevitas_axe.plan import LayerPrecision
from brevitas_axe.recipe import Recipe, Run
from brevitas_axe.run.quantize_blocks import quantize_blocks
from brevitas_axe.run.text import perplexity

GROUP, WINDOW = 128, 256
FIRST_UNSEEN = 895_446  # character of wikitext2_valid.txt from which text is for judging
# Name → weight bits, split, solver, quality.
ARMS: dict[str, tuple[int, str | None, str, Any]] = {
    "GPTQ, 2 bits": (2, None, "gptq", "fast"),
    "Qronos best, 2 bits": (2, None, "qronos", "best"),
    "slim, 2 bits": (2, "slim", "qronos", "best"),
    "GPTQ, 3 bits": (3, None, "gptq", "fast"),
    "Qronos best, 3 bits": (3, None, "qronos", "best"),
    "slim with GPTQ, 3 bits": (3, "slim", "gptq", "fast"),
    "slim, 3 bits": (3, "slim", "qronos", "best"),
    "two trit planes": (4, "trit_planes", "qronos", "best"),
    "GPTQ, 4 bits": (4, None, "gptq", "fast"),
    "Qronos best, 4 bits": (4, None, "qronos", "best"),
}
QUICK = (
    "GPTQ, 2 bits",
    "slim, 2 bits",
    "GPTQ, 3 bits",
    "slim with GPTQ, 3 bits",
    "Qronos best, 3 bits",
    "slim, 3 bits",
    "two trit planes",
)


def language_model() -> tuple[Any, Tensor, Tensor]:
    """The model, and the tokens for calibration and for judging."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = DATA / "llama_text"
    if not folder.is_dir():
        raise SystemExit(f"{folder} is not there; set BREVITAS_AXE_DATA to the folder of data.")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = (DATA / "wikitext2_valid.txt").read_text()

    def windows(part: str) -> Tensor:
        ids = torch.tensor(tokenizer(part)["input_ids"])
        return ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, windows(text[:FIRST_UNSEEN]), windows(text[FIRST_UNSEEN:])


def measure(arm: str, seed: int, windows: int, blocks: int, judged: int) -> dict:
    """Solves one arm."""
    bits, split, solver, quality = ARMS[arm]
    model, calibration, unseen = language_model()
    order = torch.randperm(len(calibration), generator=torch.Generator().manual_seed(seed))
    batches = list(calibration[order[:windows]].split(8))
    recipe = Recipe(split=split, weights="tile", solver=solver, quality=quality)
    left = [f"model.layers.{i}" for i in range(blocks, len(model.model.layers))]
    sizes = {n: m.weight.numel() for n, m in model.named_modules() if type(m) is nn.Linear}
    start = time.perf_counter()
    result = quantize_blocks(
        model,
        batches,
        LayerPrecision(bits, 8, accumulator=16, tile=GROUP),
        recipe,
        exclude=left,
        run=Run(progress=False),
    )
    seconds = time.perf_counter() - start
    stored, weights = 0.0, 0
    for name, precision in result.plan.layers.items():
        count = result.model.get_submodule(name).get_parameter("weight").numel()
        each = math.log2(3) if split == "trit_planes" else precision.weight or 0
        stored += count * (each + 16 / GROUP)
        weights += count if not name.endswith(".fine") else 0
    whole = sum(size for n, size in sizes.items() if ".layers." in n and not n.startswith(
        tuple(f"{part}." for part in left)))  # fmt: skip
    assert weights == whole, "every weight is counted once"
    return {
        "stored bits": stored / weights,
        "perplexity": perplexity(result.model, unseen[:judged]),
        "split layers": len(
            {n.rpartition(".")[0] for n in result.plan.layers if n.endswith((".low", ".fine"))}
        ),
        "proven": result.certificate.ok,
        "seconds": seconds,
    }


def main() -> None:
    """Prints a row for every arm."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="samples of the calibration text")
    add_arguments(parser, threads=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    windows, blocks, judged = (8, 2, 64) if arguments.quick else (64, 6, 10_000)
    seeds = 1 if arguments.quick else arguments.seeds
    model, _, unseen = language_model()
    keys = ("stored bits", "split layers", "proven", "seconds")
    rows: list[dict] = [{"arm": "float", "perplexity": perplexity(model, unseen[:judged])}]
    rows[0] |= dict.fromkeys(("standard error", *keys))
    for arm in QUICK if arguments.quick else ARMS:
        found = []
        for seed in range(seeds):
            key = {"arm": [arm, *ARMS[arm]], "seed": seed, "windows": windows, "version": 2}
            key |= {"blocks": blocks, "judged": judged}
            found.append(
                recorded(
                    "splits", key, lambda a=arm, s=seed: measure(a, s, windows, blocks, judged)
                )
            )
        values = torch.tensor([f["perplexity"] for f in found]).double()
        row = {"arm": arm, "perplexity": float(values.mean())}
        row["standard error"] = float(values.std() / seeds**0.5) if seeds > 1 else None
        rows.append(row | {key: found[0][key] for key in keys})
        print_table("llama_text, groups of 128 inputs, P = 16", rows)
    write_json(arguments.output, {"rows": rows})


if __name__ == "__main__":
    main()
