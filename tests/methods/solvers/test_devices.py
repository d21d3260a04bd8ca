"""Solvers on another device: nothing is mixed with the CPU, and the integers are the same."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from brevitas_axe.methods.solvers import device_kernels, devices, kernels
from brevitas_axe.methods.solvers.devices import kernels_for, search_for
from brevitas_axe.methods.solvers.problem import UNLIMITED
from brevitas_axe.registry import method, methods
from tests.elsewhere import DEVICE, Elsewhere
from tests.methods.solvers.layers import random_problem

CASES = {
    "tiles": {"tile_size": 10, "accumulator_bit_width": 14, "dead": 2},
    "uneven tiles": {
        "tile_starts": (0, 3, 17),
        "accumulator_bit_width": torch.tensor([10, UNLIMITED, 13]),
    },
    "whole rows": {"accumulator_bit_width": 12, "signed": True, "mean": 0.3},
    "no limit": {"groups": 2},
    "bias": {"accumulator_bit_width": 13, "bias": True},
    "one scale": {"accumulator_bit_width": 13, "shared_scale": True},
}
# A step of learning is the same many times over.
OPTIONS = {"learned_rounding": "learned_rounding:steps=20"}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("quality", ["fast", "best"])
@pytest.mark.parametrize("name", sorted(methods("solvers")))
def test_the_same_integers_as_on_the_cpu(name, quality, case):
    problem = random_problem(5, 24, dtype=torch.float64, **CASES[case])
    if case == "one scale":
        problem.scale.fill_(problem.scale.max())
    solver = method("solvers", OPTIONS.get(name, name))
    expected = solver(problem, act_order=True, quality=quality)
    with Elsewhere():
        found = solver(problem.to(DEVICE), act_order=True, quality=quality)
        assert found.integers.device == found.scale.device == DEVICE
        integers, scale = found.integers.cpu(), found.scale.cpu()
    assert torch.equal(integers, expected.integers)
    torch.testing.assert_close(scale, expected.scale)


def test_mixing_devices_is_noticed():
    with Elsewhere():
        there = torch.zeros(3, device=DEVICE)
        with pytest.raises(RuntimeError, match="mixes tensors"):
            there + torch.ones(3)
        with pytest.raises(RuntimeError, match="numpy"):
            there.numpy()


def test_triton_is_for_the_gpus_that_it_supports(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", None)
    cuda = torch.device("cuda")

    def chosen(capability, installed=True):
        kernels_for.cache_clear()
        search_for.cache_clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(devices, "find_spec", lambda name: object() if installed else None)
        monkeypatch.setattr(devices, "import_module", lambda name: SimpleNamespace(descend=name))
        return kernels_for(cuda), search_for(cuda)

    try:
        found, search = chosen((9, 0))
        assert found.descend.endswith(".recursion")
        assert search.endswith(".descent")
        assert chosen((6, 1)) == (device_kernels, None)
        assert chosen((9, 0), installed=False) == (device_kernels, None)
        assert (kernels_for(DEVICE), search_for(DEVICE)) == (device_kernels, None)
    finally:
        kernels_for.cache_clear()
        search_for.cache_clear()
    assert kernels_for(torch.device("cpu")) is kernels
