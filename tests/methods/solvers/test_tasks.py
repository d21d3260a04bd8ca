"""Rows solved by others: the same integers, whoever solves them."""

from __future__ import annotations

from dataclasses import replace

import joblib
import numpy as np
import pytest
import torch
from brevitas import nn as qnn
from brevitas.graph.calibrate import calibration_mode
from brevitas.quant import Int8ActPerTensorFloat

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.solvers import tasks as rows
from brevitas_axe.model.layers import Layer, find_layers, integer_weight
from brevitas_axe.model.running import Flow, flow
from brevitas_axe.registry import method, methods
from brevitas_axe.run.solve import axe_mode
from tests.methods.solvers.layers import assert_feasible, random_problem

OPTIONS = {"act_order": True, "quality": "best"}


@pytest.fixture(autouse=True)
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "ROWS_PER_TASK", 5)


def here(layer, solve, workers: int):
    return rows.solve_layers([layer], solve, workers, **OPTIONS)[0]


def problem(**options):
    return random_problem(12, 24, accumulator_bit_width=13, tile_size=10, bias=True, **options)


@pytest.mark.parametrize("name", methods("solvers"))
@pytest.mark.parametrize("groups", [1, 2])
def test_pieces_make_the_whole(name: str, groups: int) -> None:
    layer = problem(groups=groups)
    whole = method("solvers", name)(layer, **OPTIONS)
    pieces = here(layer, method("solvers", name), 1)
    # A matrix product of other shape may round otherwise: losses agree, integers nearly all.
    torch.testing.assert_close(pieces.loss(layer), whole.loss(layer), rtol=1e-3, atol=1e-6)
    assert (pieces.integers != whole.integers).float().mean() < 0.02
    assert pieces.scale.shape == whole.scale.shape


def test_pieces_keep_the_limits_of_tiles_and_columns() -> None:
    high = torch.arange(24) % 5
    layer = replace(
        problem(),
        tile_size=None,
        tile_starts=(0, 7),
        accumulator_bit_width=torch.tensor([10, 12]),
        weight_low=-high,
        weight_high=high,
    )
    assert_feasible(layer, here(layer, method("solvers", "qronos"), 1))


@pytest.mark.parametrize("backend", ["threading", "loky"])
def test_every_backend_gives_the_same_integers(backend: str) -> None:
    layer, threads = problem(), torch.get_num_threads()
    alone = here(layer, method("solvers", "qronos"), 1)
    with joblib.parallel_config(backend):
        together = here(layer, method("solvers", "qronos"), 2)
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
    alone = here(layer, method("solvers", "gptq"), 1)
    settings = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0"}
    with (
        distributed.LocalCluster(**settings) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config("dask"),
    ):
        together = here(layer, method("solvers", "gptq"), -1)
    assert torch.equal(alone.integers, together.integers)
    assert torch.equal(alone.scale, together.scale)


def test_a_shared_scale_keeps_rows_together() -> None:
    layer = problem(shared_scale=True)
    whole = method("solvers", "gpfq")(layer, **OPTIONS)
    pieces = here(layer, method("solvers", "gpfq"), 1)
    assert torch.equal(pieces.integers, whole.integers)


def test_no_workers_are_refused() -> None:
    with pytest.raises(InvalidOption, match="workers is 0"):
        here(problem(), method("solvers", "gptq"), 0)


def test_the_mode_passes_its_rows_on() -> None:
    def solved(workers: int) -> np.ndarray:
        torch.manual_seed(0)
        layer: Layer = qnn.QuantLinear(24, 12, bias=False, weight_bit_width=4)
        model = torch.nn.Sequential(qnn.QuantIdentity(return_quant_tensor=True), layer).eval()
        with torch.no_grad(), axe_mode(model, accumulator_bit_width=13, workers=workers) as axe:
            axe.model(torch.randn(64, 24))
            axe.update()
        return integer_weight("1", layer)[0].numpy()

    with joblib.parallel_config("threading"):
        assert np.array_equal(solved(1), solved(2))


class Attention(torch.nn.Module):
    """Query, key and value read one tensor; the output layer waits for them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        options: dict = {"bias": False, "weight_bit_width": 4, "input_quant": Int8ActPerTensorFloat}
        self.q, self.k, self.v, self.out = (qnn.QuantLinear(24, 24, **options) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out((self.q(x) * self.k(x)).relu() + self.v(x))


@pytest.mark.parametrize("name", methods("solvers"))
def test_layers_with_one_input_are_solved_together(name, monkeypatch) -> None:
    calls = []

    def noted(problems, *args, **kwargs):
        calls.append(len(problems))
        return rows.solve_layers(problems, *args, **kwargs)

    monkeypatch.setattr("brevitas_axe.run.solve.mode.solve_layers", noted)
    x = torch.randn(64, 24, generator=torch.Generator().manual_seed(1))

    def solved(together: bool) -> list[np.ndarray]:
        model = Attention().eval()
        with torch.no_grad(), calibration_mode(model):
            model(x)
        with monkeypatch.context() as patch, torch.no_grad():
            if not together:
                patch.setattr("brevitas_axe.run.solve.mode.flow", lambda *_: Flow({}, {}))
            with axe_mode(model, accumulator_bit_width=13, solver=name, workers=1) as axe:
                axe.model(x[:40])
                axe.model(x[40:])
                while axe.update():
                    pass
        assert [entry["name"] for entry in axe.log] == ["q", "k", "v", "out"]
        return [integer_weight(n, layer)[0].numpy() for n, layer in axe.layers.items()]

    one_by_one, at_once = solved(False), solved(True)
    assert calls == [1, 1, 1, 1, 3, 1]
    assert all(map(np.array_equal, one_by_one, at_once))


def test_a_tensor_changed_in_place_is_another_input() -> None:
    class Changing(Attention):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.clone()
            y = self.q(x)
            return y + self.k(x.mul_(2)) + self.v(x) + self.out(x + 0)

    model = Changing().eval()
    layers = find_layers(model)
    found = flow(model, layers, ((torch.randn(4, 24),), {}))
    assert found.same == {"q": ("q",), "k": ("k", "v"), "v": ("k", "v"), "out": ("out",)}
