"""The slope of a loss on labels is its gradient, wherever the classes lie."""

from __future__ import annotations

import pytest
import torch

from brevitas_axe.methods.sensitivity.metrics import METRICS

SHAPES = {
    "classes": ((6, 3), (6,)),
    "tokens": ((2, 5, 3), (2, 5)),
    "signals": ((2, 3, 5), (2, 5)),
    "images": ((2, 3, 4, 5), (2, 4, 5)),
}


@pytest.mark.parametrize("kind", SHAPES)
def test_the_slope_of_cross_entropy_is_its_gradient(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    shape, labelled = SHAPES[kind]
    output = torch.randn(shape, generator=generator, requires_grad=True)
    item = None, torch.randint(3, labelled, generator=generator)
    metric = METRICS["cross_entropy"]
    metric.loss(output, output, item).backward()
    assert metric.slope is not None
    torch.testing.assert_close(metric.slope(output.detach(), item, generator), output.grad)
