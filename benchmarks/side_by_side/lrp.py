"""Relevance rules of sums, products and linear layers: the code that LRP-QViT builds on, and ours.

    python benchmarks/side_by_side/lrp.py

Runs `modules/layers_ours.py` of hila-chefer/Transformer-Explainability (MIT; fetched) and our
`propagating(published=True)` on the same random numbers in float64, one sample, since its totals of
a sum run over the batch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch
from official import official
from records import add_arguments, print_table, write_json
from torch import Tensor

from brevitas_axe.methods.sensitivity.relevance import propagating

REPOSITORY = "hila-chefer/Transformer-Explainability"
COMMIT = "c3e578f76b954e8528afeaaee26de3f07e3fe559"


def ours(function: Callable[..., Tensor], inputs: list[Tensor], relevance: Tensor) -> list[Tensor]:
    """Relevance at the inputs by our rules."""
    leaves = [x.clone().requires_grad_(True) for x in inputs]
    with propagating(published=True):
        output = function(*leaves)
    return [*torch.autograd.grad(output, leaves, relevance)]


def main() -> None:
    """Prints the largest relative difference of every rule."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    arguments = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    sys.path.insert(0, str(official(REPOSITORY, COMMIT)))
    from modules import layers_ours as theirs

    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    linear = theirs.Linear(12, 7, bias=False)
    cases = {
        "sum": (torch.add, [random(1, 5, 12), random(1, 5, 12)]),
        "scores": (lambda q, k: q @ k.mT, [random(1, 3, 5, 4), random(1, 3, 5, 4)]),
        "linear": (lambda x: torch.nn.functional.linear(x, linear.weight), [random(1, 5, 12)]),
    }
    rows = []
    for name, (function, inputs) in cases.items():
        if name == "sum":
            module = theirs.Add()
            output = module([x.clone() for x in inputs])
        elif name == "scores":
            module = theirs.einsum("bhid,bhjd->bhij")
            module.X = [x.clone().requires_grad_(True) for x in inputs]
            module.forward = lambda x, equation=module.equation: torch.einsum(equation, *x)
            output = module.forward(module.X)
        else:
            module = linear
            output = module(inputs[0].clone())
        relevance = random(*output.shape).abs()
        found = module.relprop(relevance, 1)
        found = [found] if isinstance(found, Tensor) else found
        # Their attention halves both relevances of a product, outside the product's own rule.
        halves = 0.5 if name == "scores" else 1.0
        mine = ours(function, inputs, relevance)
        difference = max(
            float((halves * a - b).abs().max() / b.abs().max())
            for a, b in zip(found, mine, strict=True)
        )
        rows.append({"rule": name, "largest relative difference": difference})
    print_table(f"published relevance rules; {REPOSITORY} at {COMMIT[:12]}", rows)
    write_json(arguments.output, {"benchmark": "side_by_side/lrp", "commit": COMMIT, "rows": rows})


if __name__ == "__main__":
    main()
