"""A cluster of two machines solves what one process does."""

from __future__ import annotations

import joblib
import pytest
import torch

from brevitas_axe.model.layers import find_layers, integer_weight
from brevitas_axe.run.quantize_blocks import quantize_blocks
from tests.run.tiny import batches, tiny


def solved(workers: int | None) -> dict[str, torch.Tensor]:
    options = {"accumulator_bit_width": 14, "solver": "gptq", "quality": "fast"}
    model = quantize_blocks(
        tiny("gpt2"), batches("gpt2"), **options, workers=workers, progress=False
    ).model
    return {name: integer_weight(name, layer)[0] for name, layer in find_layers(model).items()}


@pytest.mark.slow
def test_two_workers_of_dask_give_the_integers_of_one_process() -> None:
    distributed = pytest.importorskip("distributed", reason="pip install distributed")
    alone = solved(None)
    settings = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0"}
    with (
        distributed.LocalCluster(**settings) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config("dask"),
    ):
        together = solved(2)
    assert alone.keys() == together.keys()
    assert all(torch.equal(alone[name], weight) for name, weight in together.items())
