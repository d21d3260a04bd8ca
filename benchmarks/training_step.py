"""How long a training step takes: ours, Brevitas's A2Q and A2Q+, and no guarantee at all.

    python benchmarks/training_step.py [--quick] [--output FILE]

A step is forward, backward and an SGD update of a ResNet-8 or a transformer block, all layers at
equal widths. The quantizers take turns within one process, and each ratio is the median over the
turns of its time divided by that of Int8WeightPerChannelFloat in the same turn, so that what else
the machine does meets all of them alike. Two widths of the accumulator: 32 bits, where all rows fit
their budget, and the widest where no row does.

A2Q leaves almost no weight at the second width. What computes with zeros is faster for a reason of
its own (the processor foresees every branch of `torch.where`), so the table also has the fraction
of weights that are not 0, and the time of all weight quantizers alone, forward and backward, on
their own inputs.
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
from brevitas_axe.model.layers import find_layers, unroll_weight
from brevitas_axe.model.proxies.projection import Budget, exceeds, tiled

PLAIN = "Int8WeightPerChannelFloat"
QUANTIZERS = {
    PLAIN: Int8WeightPerChannelFloat,
    "ours": Int8WeightPerChannelFloatAXE,
    "A2Q": Int8AccumulatorAwareWeightQuant,
    "A2Q+": Int8AccumulatorAwareZeroCenterWeightQuant,
}
CASES = ("all rows fit", "no row fits")


class Contender:
    """A network under one quantizer, its optimizer and the inputs of its layers.

    Args:
        quantizer: a name of QUANTIZERS.
        net: a name of NETS.
        weight_bits: of every layer.
        accumulator_bits: P, of every layer.
    """

    def __init__(self, quantizer: str, net: str, weight_bits: int, accumulator_bits: int) -> None:
        torch.manual_seed(0)
        build, sample = NETS[net]
        weight = {"weight_quant": QUANTIZERS[quantizer], "weight_bit_width": weight_bits}
        if quantizer != PLAIN:
            weight["weight_accumulator_bit_width"] = accumulator_bits
        self.model, self.x = build(weight).eval(), sample()
        with torch.no_grad(), calibration_mode(self.model):
            self.model(self.x)  # otherwise the first 300 steps search percentiles of activations
        self.model.train()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-6)
        self.layers = list(find_layers(self.model).values())
        self.inputs: dict[nn.Module, object] = {}
        hooks = [layer.input_quant.register_forward_hook(self._keep) for layer in self.layers]
        self.step()
        for hook in hooks:
            hook.remove()

    def _keep(self, module: nn.Module, _: tuple, output: object) -> None:
        self.inputs[module] = output

    def step(self) -> None:
        """Forward, backward and update."""
        self.optimizer.zero_grad()
        self.model(self.x).square().mean().backward()
        self.optimizer.step()

    def weights(self) -> list[torch.Tensor]:
        """Quantized weights of all layers."""
        proxies = [(layer.weight_quant, layer) for layer in self.layers]
        return [
            proxy(layer.weight, self.inputs[layer.input_quant]).value
            if proxy.requires_quant_input
            else proxy(layer.weight).value
            for proxy, layer in proxies
        ]

    def quantize(self) -> None:
        """Forward and backward of the weight quantizers alone."""
        self.optimizer.zero_grad()
        torch.stack([weight.square().sum() for weight in self.weights()]).sum().backward()

    def nonzero(self) -> float:
        """Fraction of the quantized weights that are not 0."""
        return torch.cat([weight.flatten() != 0 for weight in self.weights()]).float().mean().item()


def projected_rows(model: nn.Module, accumulator_bits: int) -> float:
    """Fraction of the rows that our quantizer has to project at this width."""
    over = []
    for layer in find_layers(model).values():
        proxy = layer.weight_quant
        plain = proxy.tensor_quant(layer.weight)
        integers = (plain[0] / plain[1]).round().to(torch.int64)
        rows = unroll_weight(layer, integers).flatten(0, 1)
        budget = Budget(proxy.input_range, accumulator_bits, None)
        over.append(exceeds(tiled(rows, rows.shape[1]), budget).any(-1))
    return torch.cat(over).float().mean().item()


def seconds(work: Callable[[], None]) -> float:
    """CPU time of one call, which neighbours on the machine disturb less than wall time."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def measure(net: str, case: str, weight_bits: int, turns: int) -> dict[str, object]:
    """One row of the table: milliseconds of the plain step, and every other's ratio to it."""
    width = 32
    if case != CASES[0]:
        ours = Contender("ours", net, weight_bits, width).model
        width = next(bits for bits in range(32, 1, -1) if projected_rows(ours, bits) == 1)
    built = {name: Contender(name, net, weight_bits, width) for name in QUANTIZERS}
    row = {
        "net": net,
        "case": case,
        "P": width,
        "projected rows": projected_rows(built["ours"].model, width),
    }
    works = {
        "step": {name: contender.step for name, contender in built.items()},
        "quantizers": {name: contender.quantize for name, contender in built.items()},
    }
    for what, each in works.items():
        for work in each.values():
            for _ in range(5):
                work()
        order, times = list(each), []
        for _ in range(turns):
            order = order[1:] + order[:1]  # so that nobody always comes first
            times.append({name: seconds(each[name]) for name in order})
        row[f"plain {what}, ms"] = 1000 * statistics.median(turn[PLAIN] for turn in times)
        for name in QUANTIZERS:
            if name != PLAIN:
                ratio = statistics.median(turn[name] / turn[PLAIN] for turn in times)
                row[f"{what}, {name} / plain"] = ratio
    row.update((f"{name} nonzero", contender.nonzero()) for name, contender in built.items())
    return row


def main() -> None:
    """Measures every network in both cases and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, threads=1)
    parser.add_argument("--weight-bits", type=int, default=4)
    parser.add_argument("--turns", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    turns = 5 if arguments.quick else arguments.turns
    rows = [measure(net, case, arguments.weight_bits, turns) for net in NETS for case in CASES]
    print_table("time of a training step", rows)
    settings = {"threads": arguments.threads, "weight_bits": arguments.weight_bits, "turns": turns}
    write_json(arguments.output, {"settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
