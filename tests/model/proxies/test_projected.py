"""What flows back through held integers."""

from __future__ import annotations

import torch
from brevitas import nn as qnn

from brevitas_axe.accumulator import InputRange
from brevitas_axe.model.proxies.projected import ProjectedIntegers
from brevitas_axe.model.proxies.projection import Budget

# 4 units of either sign: the first row needs 9, the second fits, the third is out of range.
RATIO = torch.tensor([[3.2, 2.9, 2.6, 0.2, -1.0], [1.1, 0.4, -2.0, 0.0, 1.9], [9.0, 0, 0, 0, 0]])
BUDGET = Budget(InputRange(0, 15), 7, None)
PUSH = torch.tensor([[1.0, 2.0, 4.0, 3.0, 5.0], [1.0, 2.0, 3.0, 4.0, 5.0], [6.0, 7.0, 8.0, 9, 1]])


def held(rounded, scale, ratio=RATIO):
    layer = qnn.QuantLinear(5, 3, bias=False)
    return ProjectedIntegers.apply(rounded, ratio, scale, layer, -7, 7, BUDGET)


def backward():
    rounded = RATIO.round().requires_grad_()
    scale = torch.full((3, 1), 0.5, requires_grad=True)
    integers = held(rounded, scale)
    (integers * PUSH).sum().backward()
    return integers.detach(), rounded.grad, scale.grad


def test_only_what_does_not_fit_changes():
    integers, _, _ = backward()
    assert integers[0, :3].sum() == 4
    assert integers[0, 3:].tolist() == [0, -1]
    assert integers[1].tolist() == RATIO[1].round().tolist()
    assert integers[2].tolist() == [4, 0, 0, 0, 0]


def test_the_shared_push_is_taken_out_of_held_tiles_only():
    integers, pushes, _ = backward()
    kept = integers[0] > 0
    mean = PUSH[0, kept].mean()
    assert torch.allclose(pushes[0, kept], PUSH[0, kept] - mean)
    assert pushes[0, 3] == PUSH[0, 3]  # held at 0: may come back
    assert pushes[0, 4] == 0  # the only weight of its side
    assert torch.equal(pushes[1], PUSH[1])
    assert pushes[2, 0] == 0  # beyond the range, and alone


def test_the_scale_gets_back_what_the_division_takes():
    _, pushes, back = backward()
    assert back[1] == 0
    expected = (pushes[0] * RATIO[0]).sum() / 0.5
    assert torch.allclose(back[0], expected)


def test_a_scale_per_tile_gets_back_its_own_tiles_part():
    budget = Budget(InputRange(0, 15), 7, 3)
    ratio = torch.tensor([[3.2, 2.9, 2.6, 0.2, -1.0, 0.4], [3.0, 3.0, 0.0, -4.4, -3.1, 1.2]])
    push = torch.arange(12.0).view(2, 6).sin()
    scale = torch.tensor([[0.5, 0.25], [2.0, 1.0]], requires_grad=True)
    rounded = ratio.round().requires_grad_()
    layer = qnn.QuantLinear(6, 2, bias=False)
    sizes = scale.repeat_interleave(3, 1)
    integers = ProjectedIntegers.apply(rounded, ratio, sizes, layer, -7, 7, budget)
    (integers * push).sum().backward()
    over = torch.tensor([[True, False], [True, True]])
    assert ((integers != rounded).unflatten(1, (2, 3)).any(-1) == over).all()
    parts = (rounded.grad * ratio).unflatten(1, (2, 3)).sum(-1) * over
    assert torch.allclose(scale.grad, parts / scale.detach())


def test_the_value_of_held_integers_follows_the_scale_as_they_do():
    weight = (0.5 * RATIO).double()
    scale = torch.full((3, 1), 0.5, dtype=torch.float64, requires_grad=True)
    ratio = weight / scale
    rounded = ratio + (ratio.round() - ratio).detach()  # straight through
    integers = held(rounded, scale, ratio.detach())
    # A push without a part that the kept weights share.
    push = torch.zeros(3, 5, dtype=torch.float64)
    push[0, 0], push[0, 1] = 1.0, -1.0
    (integers * scale * push).sum().backward()
    assert torch.allclose(scale.grad[0], (push * integers)[0].sum())
