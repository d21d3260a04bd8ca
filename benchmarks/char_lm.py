"""A character language model under P-bit accumulators: published AXE against ours.

    python benchmarks/char_lm.py [--quick] [--owners none brevitas fast best] [--output FILE]

A transformer of 1.8 M parameters, trained on tinyshakespeare by this script (about 15 minutes on
two cores, then cached), judged by validation perplexity per character. Every linear layer of the
blocks gets W-bit weights with a scale per channel and signed A-bit inputs with a static scale;
embedding, norms and head stay in float, as is usual for language models.
"""

from __future__ import annotations

import argparse
import math
from copy import deepcopy
from functools import partial

import brevitas.nn as qnn
import numpy as np
import torch
import torch.nn.functional as F
from arms import Experiment, FixedScaleWeight
from brevitas.graph.quantize import layerwise_quantize
from brevitas.quant import Int8ActPerTensorFloat
from comparison import add_arguments, compare
from records import CACHE, DATA
from torch import Tensor, nn

CONTEXT = 128
# Widths P at which Brevitas's own code runs; at others our `fast` replaces it.
REFERENCE = (16, 14)


class Block(nn.Module):
    """Pre-norm transformer block: causal attention with fused projections, then an MLP."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time, width] to the same shape."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        heads = (t.transpose(1, 2) for t in (q, k, v))
        mixed = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.proj(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class CharLM(nn.Module):
    """Six blocks between an embedding and a linear head, both of which stay in float."""

    def __init__(self, vocabulary: int, width: int = 192, heads: int = 6, blocks: int = 6) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(0.02 * torch.randn(CONTEXT, width))
        self.blocks = nn.Sequential(*(Block(width, heads, 2 * width) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [batch, time] to logits [batch, time, vocabulary]."""
        return self.head(self.norm(self.blocks(self.token(tokens) + self.position)))


def read_text() -> tuple[Tensor, Tensor, int]:
    """Training and validation tokens (90/10 split) and the size of the vocabulary."""
    text = np.frombuffer((DATA / "tinyshakespeare.txt").read_bytes(), np.uint8)
    vocabulary, tokens = np.unique(text, return_inverse=True)
    tokens = torch.from_numpy(tokens.astype(np.int64))
    split = len(tokens) * 9 // 10
    return tokens[:split], tokens[split:], len(vocabulary)


def windows(tokens: Tensor) -> Tensor:
    """Cuts [n] tokens into rows of CONTEXT + 1 that overlap by one token."""
    return tokens.unfold(0, CONTEXT + 1, CONTEXT)


@torch.no_grad()
def perplexity(model: nn.Module, rows: Tensor) -> float:
    """Exponential of the mean cross-entropy over every next character of `rows`."""
    loss = sum(
        F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten(), reduction="sum")
        for batch in rows.split(64)
    )
    return math.exp(min(loss.item() / rows[:, 1:].numel(), 50.0))


def train(tokens: Tensor, vocabulary: int, steps: int) -> CharLM:
    """AdamW with a warm-up and a cosine schedule, seed 0, batches of 32 windows."""
    torch.manual_seed(0)
    model = CharLM(vocabulary)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.05)
    starts = tokens.unfold(0, CONTEXT + 1, 1)
    for step in range(steps):
        batch = starts[torch.randint(len(starts), (32,))]
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step}: training loss {loss.item():.3f}", flush=True)
    return model.eval()


def load_model(steps: int) -> CharLM:
    """The trained model, from the cache where it is there."""
    tokens, _, vocabulary = read_text()
    path = CACHE / f"char_lm_{steps}.pt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(train(tokens, vocabulary, steps).state_dict(), path)
    model = CharLM(vocabulary)
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def quantize(model: CharLM, weight_bits: int, input_bits: int) -> nn.Module:
    """A copy whose block linears are Brevitas layers."""
    options = {
        "weight_quant": FixedScaleWeight,
        "weight_bit_width": weight_bits,
        "input_quant": Int8ActPerTensorFloat,
        "input_bit_width": input_bits,
    }
    layers = {nn.Linear: (qnn.QuantLinear, options)}
    return layerwise_quantize(deepcopy(model), layers, name_blacklist=["head"])


def experiment(steps: int, calibration_rows: int, validation_rows: int | None) -> Experiment:
    """The trained model, calibration windows spread over the training text, and its judge."""
    training, validation, _ = read_text()
    model = load_model(steps)
    rows = windows(training)
    rows = rows[:: len(rows) // calibration_rows][:calibration_rows, :-1]
    judged = windows(validation)[:validation_rows]
    return Experiment(
        name="char_lm",
        metric="perplexity",
        lower_is_better=True,
        model=model,
        quantize=partial(quantize, model),
        batches=rows.split(32),
        evaluate=lambda quantized: perplexity(quantized, judged),
        content={"calibration": len(rows), "validation": len(judged)},
    )


def main() -> None:
    """Runs every row and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000, help="training steps")
    parser.add_argument("--accumulators", type=int, nargs="+", default=[16, 14, 12])
    parser.add_argument("--tiles", type=int, nargs="+", default=[0, 64, 128], help="0: whole rows")
    add_arguments(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.quick:
        arguments.steps = min(arguments.steps, 100)
        arguments.accumulators, arguments.tiles = [14], [64]
    small = arguments.quick
    compare(
        experiment(arguments.steps, 16 if small else 128, 64 if small else None),
        arguments,
        bits=[(4, 8)],
        accumulators=arguments.accumulators,
        tiles=[tile or None for tile in arguments.tiles],
        sweep=[(3, 4), (4, 4), (4, 6)],
        solvers=("gpfq", "gptq", "qronos") if small else ("qronos",),
        reference=() if small else REFERENCE,
    )


if __name__ == "__main__":
    main()
