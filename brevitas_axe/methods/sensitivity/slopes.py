"""First derivatives of a loss with respect to each layer's weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.sensitivity.case import Case
from brevitas_axe.methods.sensitivity.metrics import output_tensor


def weight_slopes(case: Case, fraction: float = 1.0) -> Iterator[dict[str, Tensor]]:
    """Layer → gradient of the loss for each batch, with all weights scaled by a fraction.

    The loss is that of the metric's `slope`: for "kl" the negative log-likelihood of labels that
    the model draws itself, for "cross_entropy" that of the labels given.
    """
    slope = case.metric.slope
    if slope is None:
        raise InvalidOption(
            f"the slope of the metric '{case.metric.name}' vanishes at the float model; use 'kl' "
            "or 'cross_entropy', or another scorer."
        )
    twin, layers = case.differentiable(fraction)
    generator = case.generator()
    for (args, kwargs), item in zip(case.batches, case.items, strict=True):
        with torch.enable_grad():
            output = output_tensor(twin(*args, **kwargs))
            found = torch.autograd.grad(
                output,
                [layer.weight for layer in layers.values()],
                slope(output.detach(), item, generator),
                allow_unused=True,
            )
        pairs = zip(layers.items(), found, strict=True)
        yield {n: torch.zeros_like(y.weight) if g is None else g for (n, y), g in pairs}
