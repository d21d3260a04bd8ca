"""Llama-shaped blocks with random weights: time per layer against its limit, and peak memory.

    python benchmarks/llama_block.py [--quick] [--output FILE]
    python benchmarks/llama_block.py --hidden 512 --mlp 1408 --blocks 8

Time: the limit of a layer is the work that every solver needs: the two second moments of its
    inputs,
one Cholesky factorization and half of one product of weights and moments, all in float32.

Memory: the peak of the process, minus what it used before the model was built (a tiny model has
    then
been solved, so that all code is loaded and all kernels compiled), beside the model, two blocks'
activations (a quantized block and its float twin: inputs and outputs of their linear
layers for every calibration token) and the block's second moments in float64.
"""

from __future__ import annotations

import argparse
import gc
import resource
import time
from pathlib import Path

import torch
from records import print_table, write_json
from torch import nn
from transformers import LlamaConfig, LlamaModel

from brevitas_axe.model.stack import find_blocks
from brevitas_axe.run.quantize_blocks import quantize_blocks

VOCABULARY = 512
LENGTH = 256
GIB = 2**30


def seconds_of(work) -> float:
    """Wall time of one call after one that is not counted."""
    work()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def limit_seconds(rows: int, columns: int, tokens: int) -> float:
    """Seconds of the work that every solver needs for one layer."""
    x, weight = torch.randn(tokens, columns), torch.randn(columns, rows)
    moments = 2 * seconds_of(lambda: x.mT @ x)
    hessian = x.mT @ x / tokens + torch.eye(columns)
    half = columns // 2
    left, right = hessian[:, :half].contiguous(), weight[:half].contiguous()
    factor = seconds_of(lambda: torch.linalg.cholesky(hessian))
    return moments + factor + seconds_of(lambda: left @ right)


def resident() -> int:
    """Bytes that the process uses now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def peak() -> int:
    """The most bytes that the process has used so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def allowance(model: nn.Module, tokens: int) -> dict[str, int]:
    """Bytes of the model, of two blocks' activations and of one block's second moments."""
    block = next(iter(find_blocks(model).values()))
    linears = [m for m in block.modules() if isinstance(m, nn.Linear)]
    return {
        "model": sum(p.numel() * p.element_size() for p in model.parameters()),
        "activations": 2 * 4 * tokens * sum(m.in_features + m.out_features for m in linears),
        "moments": 2 * 8 * sum(m.in_features**2 for m in linears),
    }


def llama(hidden: int, mlp: int, blocks: int) -> LlamaModel:
    """A model of that shape with random weights and heads of 64."""
    heads = hidden // 64
    return LlamaModel(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=hidden,
            intermediate_size=mlp,
            num_hidden_layers=blocks,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            use_cache=False,
        )
    )


def measure(arguments: argparse.Namespace) -> dict:
    """Solves the blocks; returns layers and memory."""
    torch.manual_seed(0)
    widths = {"accumulator_bit_width": 16, "tile_size": 64, "quality": arguments.quality}
    tokens = torch.randint(0, VOCABULARY, (1, LENGTH))
    quantize_blocks(llama(64, 128, 1), [tokens], progress=False, **widths)
    gc.collect()
    before = resident()
    model = llama(arguments.hidden, arguments.mlp, arguments.blocks)
    batches = list(torch.randint(0, VOCABULARY, (arguments.sequences, LENGTH)).split(4))
    tokens = arguments.sequences * LENGTH
    parts = allowance(model, tokens)
    start, cpu = time.perf_counter(), time.process_time()
    result = quantize_blocks(model, batches, **widths)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    used = peak() - before
    shapes = dict.fromkeys((e["outputs"], e["inputs"]) for e in result.layers)
    limits = {shape: limit_seconds(*shape, tokens) for shape in shapes}
    layers = [
        {
            "layer": e["name"],
            "rows": e["outputs"],
            "inputs": e["inputs"],
            "seconds": e["seconds"],
            "limit": limits[e["outputs"], e["inputs"]],
            "times": e["seconds"] / limits[e["outputs"], e["inputs"]],
            "P_I": e["inner_bits"],
            "P_O": e["outer_bits"],
        }
        for e in result.layers
    ]
    memory = {name: bytes_ / GIB for name, bytes_ in parts.items()}
    memory |= {"allowed GiB": sum(parts.values()) / GIB, "peak GiB": used / GIB}
    whole = {"seconds": seconds, "cpu seconds": cpu, "proven": result.certificate.ok}
    return {"layers": layers, "memory": memory, "run": whole, "tokens": tokens}


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--mlp", type=int, default=5632)
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--sequences", type=int, default=32, help=f"of {LENGTH} tokens")
    parser.add_argument("--quality", choices=["fast", "best"], default="best")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a small run that proves it works")
    parser.add_argument("--output", type=Path, help="JSON file for the rows")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.hidden, arguments.mlp, arguments.sequences = 256, 704, 4
    torch.set_num_threads(arguments.threads)
    content = measure(arguments) | {"quality": arguments.quality, "threads": arguments.threads}
    print_table(f"layers, quality {arguments.quality}", content["layers"])
    print_table("memory in GiB", [content["memory"]])
    print_table("whole run", [content["run"]])
    write_json(arguments.output, content)


if __name__ == "__main__":
    main()
