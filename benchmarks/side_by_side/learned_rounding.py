"""AdaRound as BRECQ's code has it, and our learned rounding, on the same layers.

    python benchmarks/side_by_side/learned_rounding.py

Runs `AdaRoundQuantizer` of yhhhli/BRECQ (MIT; fetched) in a loop of its own, since the loop there
needs a GPU: same weights, inputs, steps, optimizer, penalty and start, on the CPU. Printed are the
fraction of equal integers where V is not nearly 0, and the squared error of the outputs as a share
of the outputs' energy: of rounding to nearest, of theirs, and of ours.
"""

from __future__ import annotations

import argparse
import sys

import torch
from official import official
from records import add_arguments, print_table, write_json
from torch import Tensor

from brevitas_axe.methods.solvers.learned_rounding import LearnedRounding
from brevitas_axe.methods.solvers.problem import LayerProblem, LayerSolution
from brevitas_axe.methods.solvers.within_budget import rounded

REPOSITORY = "yhhhli/BRECQ"
COMMIT = "e455d62e93c70351961f8991c913b59435bd165f"


def layer(seed: int, bits: int) -> tuple[LayerProblem, Tensor]:
    """A layer of 32 rows and 64 correlated inputs, and the inputs."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(64, 64, generator=generator) / 8
    x = (torch.randn(512, 64, generator=generator) @ mix).relu()
    weight = torch.randn(32, 64, generator=generator) / 8
    most = 2 ** (bits - 1) - 1
    problem = LayerProblem(
        weight=weight.unsqueeze(0),
        hessian=(x.mT @ x / len(x)).unsqueeze(0),
        scale=(weight.abs().amax(-1) / most).unsqueeze(0),
        weight_low=-most - 1,
        weight_high=most,
        input_low=0,
        input_high=255,
    )
    return problem, x


def theirs(problem: LayerProblem, fitter: LearnedRounding, bits: int) -> tuple[Tensor, Tensor]:
    """(integers, V) of the authors' quantizer."""
    from quant.adaptive_rounding import AdaRoundQuantizer
    from quant.quant_layer import UniformAffineQuantizer

    plain = UniformAffineQuantizer(bits)
    plain.delta, plain.zero_point = problem.scale[0].unsqueeze(-1), 2 ** (bits - 1)
    weight = problem.weight[0]
    quantizer = AdaRoundQuantizer(plain, weight, round_mode="learned_hard_sigmoid")
    quantizer.soft_targets = True
    optimizer = torch.optim.Adam([quantizer.alpha], fitter.rate)
    hessian, began = problem.hessian[0], fitter.warmup * fitter.steps
    for number in range(fitter.steps):
        error = quantizer(weight) - weight
        loss = (error * (error @ hessian)).sum()
        if number >= began:
            share = (number - began) / (fitter.steps - began)
            sharpness = 2 + 18 * max(0.0, 1 - share)
            h = quantizer.get_soft_targets()
            loss = loss + fitter.strength * (1 - (2 * h - 1).abs().pow(sharpness)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    quantizer.soft_targets = False
    with torch.no_grad():
        integers = (quantizer(weight) / plain.delta).round()
    return integers.int(), quantizer.alpha.detach()


def main() -> None:
    """Prints a row for every width and seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    add_arguments(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sys.path.insert(0, str(official(REPOSITORY, COMMIT)))
    fitter = LearnedRounding(steps=50 if arguments.quick else arguments.steps, rate=0.01)
    rows = []
    for bits in (2, 3, 4):
        for seed in range(3):
            problem, x = layer(seed, bits)
            integers, v = theirs(problem, fitter, bits)
            mine = fitter(problem)
            sure = v.abs() >= 1e-4
            energy = float((x @ problem.weight[0].mT).square().mean(0).sum())

            def error(solution: LayerSolution, problem=problem, energy=energy) -> float:
                difference = (solution.value(problem) - problem.weight)[0]
                return (
                    float((difference * (difference @ problem.hessian[0].double())).sum()) / energy
                )

            official_one = LayerSolution(integers.unsqueeze(0), problem.scale)
            rows.append(
                {
                    "weight bits": bits,
                    "seed": seed,
                    "equal": float((mine.integers[0] == integers)[sure].float().mean()),
                    "nearest": error(rounded(problem)),
                    "official": error(official_one),
                    "ours": error(mine),
                }
            )
    print_table(f"learned rounding, error; {REPOSITORY} at {COMMIT[:12]}", rows)
    content = {"benchmark": "side_by_side/learned_rounding", "commit": COMMIT, "rows": rows}
    write_json(arguments.output, content)


if __name__ == "__main__":
    main()
