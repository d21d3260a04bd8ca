"""How long a training step takes: ours, Brevitas's A2Q and A2Q+, and no guarantee at all.

    python benchmarks/training_step.py [--quick] [--output FILE]

A step is forward, backward and an SGD update of a ResNet-8 or a transformer block, all layers at
equal widths. The quantizers take turns within one process, and each ratio is the median over the
turns of its time divided by that of Int8WeightPerChannelFloat in the same turn, so that what else
the machine does meets all of them alike. Two widths of the accumulator: one where all rows fit
their budget, and one where no row does.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from brevitas.graph.calibrate import calibration_mode
from brevitas.quant import (
    Int8AccumulatorAwareWeightQuant,
    Int8AccumulatorAwareZeroCenterWeightQuant,
    Int8WeightPerChannelFloat,
)
from records import add_arguments, print_table, write_json
from torch import nn
from trained_nets import NETS

from brevitas_axe import Int8WeightPerChannelFloatAXE
from brevitas_axe.layers import find_layers, unroll_weight
from brevitas_axe.proxies.projection import Budget, exceeds, tiled

PLAIN = "Int8WeightPerChannelFloat"
QUANTIZERS = {
    PLAIN: Int8WeightPerChannelFloat,
    "ours": Int8WeightPerChannelFloatAXE,
    "A2Q": Int8AccumulatorAwareWeightQuant,
    "A2Q+": Int8AccumulatorAwareZeroCenterWeightQuant,
}
WIDTHS = {"all rows fit": 32, "no row fits": 10}


def stepper(quantizer: str, net: str, weight_bits: int, accumulator_bits: int):
    """A network with its optimizer, and the function that makes one step of it."""
    torch.manual_seed(0)
    build, sample = NETS[net]
    weight = {"weight_quant": QUANTIZERS[quantizer], "weight_bit_width": weight_bits}
    if quantizer != PLAIN:
        weight["weight_accumulator_bit_width"] = accumulator_bits
    model, x = build(weight).eval(), sample()
    with torch.no_grad(), calibration_mode(model):
        model(x)  # otherwise the first 300 steps search percentiles of the activations
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)

    def step() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    return model, step


def projected_rows(model: nn.Module) -> float:
    """Fraction of the rows that our quantizer has to project."""
    over = []
    for layer in find_layers(model).values():
        proxy = layer.weight_quant
        plain = proxy.tensor_quant(layer.weight)
        integers = (plain[0] / plain[1]).round().to(torch.int64)
        rows = unroll_weight(layer, integers).flatten(0, 1)
        budget = Budget(proxy.input_range, proxy.accumulator_bit_width, None)
        over.append(exceeds(tiled(rows, rows.shape[1]), budget).any(-1))
    return torch.cat(over).float().mean().item()


def seconds(work: Callable[[], None]) -> float:
    """CPU time of one call, which neighbours on the machine disturb less than wall time."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def measure(net: str, case: str, weight_bits: int, turns: int) -> dict[str, object]:
    """One row of the table: milliseconds of the plain step, and every other's ratio to it."""
    built = {name: stepper(name, net, weight_bits, WIDTHS[case]) for name in QUANTIZERS}
    steps = {name: step for name, (_, step) in built.items()}
    for step in steps.values():
        for _ in range(5):
            step()
    order, times = list(steps), []
    for _ in range(turns):
        order = order[1:] + order[:1]  # so that nobody always comes first
        times.append({name: seconds(steps[name]) for name in order})
    return {
        "net": net,
        "case": case,
        "projected rows": projected_rows(built["ours"][0]),
        f"{PLAIN}, ms": 1000 * statistics.median(turn[PLAIN] for turn in times),
        **{
            f"{name} / plain": statistics.median(turn[name] / turn[PLAIN] for turn in times)
            for name in QUANTIZERS
            if name != PLAIN
        },
    }


def main() -> None:
    """Measures every network in both cases and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, threads=1)
    parser.add_argument("--weight-bits", type=int, default=4)
    parser.add_argument("--turns", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    turns = 5 if arguments.quick else arguments.turns
    rows = [measure(net, case, arguments.weight_bits, turns) for net in NETS for case in WIDTHS]
    print_table("time of a training step", rows)
    settings = {"threads": arguments.threads, "weight_bits": arguments.weight_bits, "turns": turns}
    write_json(arguments.output, {"settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
