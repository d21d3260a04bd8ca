"""Random allocation problems, and every assignment of small ones."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np

from brevitas_axe.methods.allocate import Assignment, Problem, Quantity
from brevitas_axe.plan import Choices, LayerPrecision


def random_problem(
    seed: int, layers: int = 4, pairs: bool = False, tied: bool = False, **budgets: float
) -> Problem:
    """Harm that falls with bits and costs that grow with them; budgets are shares of the most."""
    random = np.random.default_rng(seed)
    widths = list(product((2, 4, 8), (4, 8), (12, 16)))
    options = tuple(LayerPrecision(*bits) for bits in widths)
    names = [f"layer{i}" for i in range(layers)]
    weight, inputs, accumulator, size, macs = 10 ** random.uniform(0, 1.5, (5, layers))
    harm = [
        np.array(
            [
                weight[i] / 4**w + inputs[i] / 4**a + accumulator[i] / 4 ** (p - 8)
                for w, a, p in widths
            ]
        )
        for i in range(layers)
    ]
    bops = [np.array([macs[i] * w * a + p for w, a, p in widths]) for i in range(layers)]
    memory = [np.array([size[i] * w for w, _, _ in widths]) for i in range(layers)]
    both = {}
    if pairs:
        together = random.uniform(-0.02, 0.02, (layers, layers))
        both = {
            (i, j): together[i, j] * np.sqrt(np.outer(harm[i], harm[j]))
            for i in range(layers)
            for j in range(i + 1, layers)
        }
    costs = {"bops": Quantity(tuple(bops)), "memory": Quantity(tuple(memory))}
    return Problem(
        Choices(dict.fromkeys(names, options), (tuple(names[:2]),) if tied else ()),
        Quantity(tuple(harm), both),
        costs,
        {name: share * costs[name].extreme(np.max) for name, share in budgets.items()},
    )


def with_groups(problem: Problem, seed: int) -> Problem:
    """Two metrics, each for half of the layers, and a cost that links layers across the halves."""
    random = np.random.default_rng(seed)
    half = len(problem.names) // 2
    single = problem.harm.single
    other = tuple(h * random.uniform(0.1, 10) for h in single)
    bops = problem.costs["bops"]
    linked = {
        (i, i + 1): random.uniform(0, 0.2) * np.outer(bops.single[i], bops.single[i + 1]) ** 0.5
        for i in range(len(single) - 1)
    }
    return replace(
        problem,
        harm=Quantity((*single[:half], *other[half:])),
        costs={**problem.costs, "bops": Quantity(bops.single, linked)},
        parts={"sqnr": problem.names[:half], "ssim": problem.names[half:]},
        metrics={"sqnr": Quantity(single), "ssim": Quantity(other)},
    )


def with_measure(problem: Problem, seed: int, target: float | None = None) -> Problem:
    """Harm is wrong by a factor per layer; what is measured has the right ones."""
    factors = 10 ** np.random.default_rng(seed).uniform(-0.8, 0.8, len(problem.names))
    true = Quantity(tuple(f * h for f, h in zip(factors, problem.harm.single, strict=True)))
    return replace(problem, measure=true.total, target=target)


def all_assignments(problem: Problem) -> list[Assignment]:
    return [a for a in product(*(range(len(o)) for o in problem.options)) if problem.is_tied(a)]
