"""The kernels for GPUs, where there is none: they compile, and are started once per block.

test_device_kernels.py compares their integers with those of the CPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from brevitas_axe.methods.solvers import device_kernels, sequential, thresholds
from brevitas_axe.registry import method
from tests.methods.solvers.layers import random_problem


@pytest.mark.slow
def test_compilation_for_two_architectures(tmp_path: Any) -> None:
    pytest.importorskip("triton")
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "tests.methods.solvers.on_triton.compiled_kernels",
    ]
    variables = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 12
    assert all(line.endswith("True True") for line in done.stdout.splitlines())


class Launches(TorchDispatchMode):
    """Counts operations that a GPU would be given: those that are not views."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += not function.is_view
        return function(*args, **(kwargs or {}))


def launches(patch: pytest.MonkeyPatch, used: Any, name: str, columns: int) -> int:
    problem = random_problem(4, columns, accumulator_bit_width=14, tile_size=32)
    for module in (sequential, thresholds):
        patch.setattr(module, "kernels_for", lambda device: used)
    with Launches() as launched:
        method("solvers", name)(problem, act_order=True)
    return launched.count


@pytest.mark.parametrize("name", ["gpfq", "gptq", "qronos"])
def test_launches_grow_with_blocks_and_not_with_columns(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def one_launch(*arguments: Any) -> None:
        torch.zeros(())

    used = SimpleNamespace(quantize_block=one_launch, l1_thresholds=one_launch)
    few, many = (launches(monkeypatch, used, name, columns) for columns in (256, 1280))
    blocks = (1280 - 256) // sequential.BLOCK
    # One kernel and one product for a block, and products for several blocks together.
    assert 2 * blocks <= many - few <= 4 * blocks


def test_torch_operations_grow_with_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = (launches(monkeypatch, device_kernels, "gptq", k) for k in (32, 64))
    assert many - few > 32
