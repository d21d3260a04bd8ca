"""Rows solved by others: the same integers, whoever solves them."""

from __future__ import annotations

import joblib
import numpy as np
import pytest
import torch
from brevitas import nn as qnn

from brevitas_axe.errors import InvalidOption
from brevitas_axe.layers import Layer, integer_weight
from brevitas_axe.ptq import axe_mode, rows, solver, solvers
from tests.ptq.layers import random_problem

OPTIONS = {"act_order": True, "quality": "best"}


@pytest.fixture(autouse=True)
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "ROWS_PER_TASK", 5)


def problem(**options):
    return random_problem(12, 24, accumulator_bit_width=13, tile_size=10, bias=True, **options)


@pytest.mark.parametrize("name", solvers())
@pytest.mark.parametrize("groups", [1, 2])
def test_pieces_make_the_whole(name: str, groups: int) -> None:
    layer = problem(groups=groups)
    whole = solver(name)(layer, **OPTIONS)
    pieces = rows.solve_rows(layer, solver(name), 1, **OPTIONS)
    # A matrix product of other shape may round otherwise: losses agree, integers nearly all.
    torch.testing.assert_close(pieces.loss(layer), whole.loss(layer), rtol=1e-3, atol=1e-6)
    assert (pieces.integers != whole.integers).float().mean() < 0.02
    assert pieces.scale.shape == whole.scale.shape


@pytest.mark.parametrize("backend", ["threading", "loky"])
def test_every_backend_gives_the_same_integers(backend: str) -> None:
    layer, threads = problem(), torch.get_num_threads()
    alone = rows.solve_rows(layer, solver("qronos"), 1, **OPTIONS)
    with joblib.parallel_config(backend):
        together = rows.solve_rows(layer, solver("qronos"), 2, **OPTIONS)
    assert torch.equal(alone.integers, together.integers)
    assert torch.equal(alone.scale, together.scale)
    assert alone.bias_shift is not None
    assert together.bias_shift is not None
    assert torch.equal(alone.bias_shift, together.bias_shift)
    assert torch.get_num_threads() == threads


@pytest.mark.slow
def test_two_workers_of_dask_give_the_same_integers() -> None:
    distributed = pytest.importorskip("distributed", reason="pip install distributed")
    layer = problem()
    alone = rows.solve_rows(layer, solver("gptq"), 1, **OPTIONS)
    settings = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with (
        distributed.LocalCluster(**settings) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config("dask"),
    ):
        together = rows.solve_rows(layer, solver("gptq"), -1, **OPTIONS)
    assert torch.equal(alone.integers, together.integers)
    assert torch.equal(alone.scale, together.scale)


def test_a_shared_scale_keeps_rows_together() -> None:
    layer = problem(shared_scale=True)
    whole = solver("gpfq")(layer, **OPTIONS)
    pieces = rows.solve_rows(layer, solver("gpfq"), 1, **OPTIONS)
    assert torch.equal(pieces.integers, whole.integers)


def test_no_workers_are_refused() -> None:
    with pytest.raises(InvalidOption, match="workers is 0"):
        rows.solve_rows(problem(), solver("gptq"), 0, **OPTIONS)


def test_the_mode_passes_its_rows_on() -> None:
    def solved(workers: int) -> np.ndarray:
        torch.manual_seed(0)
        layer: Layer = qnn.QuantLinear(24, 12, bias=False, weight_bit_width=4)
        model = torch.nn.Sequential(qnn.QuantIdentity(return_quant_tensor=True), layer).eval()
        with torch.no_grad(), axe_mode(model, 13, workers=workers) as axe:
            axe.model(torch.randn(64, 24))
            axe.update()
        return integer_weight("1", layer)[0].numpy()

    with joblib.parallel_config("threading"):
        assert np.array_equal(solved(1), solved(2))
