"""What `quantize_blocks` refuses: before the work, and with the model left as it was."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from brevitas_axe.errors import (
    AccumulatorTooNarrow,
    AxeError,
    InvalidOption,
    NotEnoughMemory,
    UnsupportedLayer,
)
from brevitas_axe.model.layers import find_layers
from brevitas_axe.model.stack import left_in_float
from brevitas_axe.run.quantize_blocks import quantize_blocks
from brevitas_axe.run.solve import axe_mode
from tests.run.solved import P, integers, solve
from tests.run.tiny import batches, tiny


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exclude": ["lm_head"]}, "'lm_head' is not in a block"),
        ({"exclude": left_in_float(tiny("llama"))[:-1]}, "every layer of the blocks is excluded"),
        ({"activations": "weekly"}, "choose one of: dynamic, per_token, static"),
        ({"smooth": 2.0}, "between 0 and 1"),
        ({"weight_bit_width": 1}, "2 bits or more"),
        ({"tile_scales": True, "tile_size": None}, "size of the tiles"),
        ({"stack": "model.norm"}, "no stack of blocks"),
    ],
)
def test_bad_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        solve("llama", **options)


def test_an_accumulator_too_narrow_is_named_before_any_work() -> None:
    with pytest.raises(AccumulatorTooNarrow, match=r"model\.layers\.0"):
        solve("llama", accumulator_bit_width=8)


def test_a_refused_option_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = tiny("gpt2").train()
    before, modules = copy.deepcopy(model.state_dict()), dict(model.named_modules())
    solve("gpt2", state=tmp_path)
    (tmp_path / "file").touch()
    refused = [
        {"quality": "bst"},
        {"solver": "newton"},
        {"accumulator_bit_width": 1},
        {"accumulator_bit_width": 8, "smooth": 0.5, "rotate": True},
        {"accumulator_bit_width": P + 1, "state": tmp_path},
        {"state": tmp_path / "file"},
        {"weight_bit_width": 0},
        {"tile_size": -1},
        {"workers": 0},
    ]
    for options in refused:
        with pytest.raises(AxeError):
            solve(model, **options)
        assert model.training, options
        assert dict(model.named_modules()) == modules, options
        state = model.state_dict()
        assert all(torch.equal(before[name], value) for name, value in state.items()), options
    solved, fresh = integers(solve(model).model), integers(solve("gpt2").model)
    assert all(np.array_equal(solved[name], weight) for name, weight in fresh.items())


@pytest.mark.parametrize(
    "options", [{"quality": "bst"}, {"solver": "newton"}, {"tile_size": 0}], ids=str
)
def test_options_are_checked_before_the_model_runs(options: dict, monkeypatch) -> None:
    model = tiny("vit")
    monkeypatch.setattr(type(model), "forward", lambda self, *args: pytest.fail("it ran"))
    with pytest.raises(AxeError):
        solve(model, **options)


def test_a_change_between_blocks_is_refused() -> None:
    model = tiny("vit")
    model.layers[0].register_forward_hook(lambda _, args, output: output * 10)  # inside: accepted
    solve(model)
    model = tiny("vit")
    model.layers[1].register_forward_pre_hook(lambda _, args: (args[0] * 10, *args[1:]))
    with pytest.raises(UnsupportedLayer, match=r"block 'layers\.1' does not get"):
        solve(model)
    assert not find_layers(model)


def test_quantized_models_are_sent_elsewhere() -> None:
    model = solve("vit").model
    with pytest.raises(InvalidOption, match=r"brevitas_axe\.quantize"):
        quantize_blocks(model, batches("vit"), progress=False)


def test_memory_that_runs_out_brings_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    def update(self):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(axe_mode, "update", update)
    with pytest.raises(NotEnoughMemory, match=r"encoder\.layer\.0.*fewer or shorter.*offload="):
        solve("bert")


@pytest.mark.parametrize("full", [0, 2], ids=["at the first forward", "at a later one"])
@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError(), RuntimeError("DefaultCPU: can't allocate memory")],
    ids=lambda error: type(error).__name__,
)
def test_so_does_memory_that_runs_out_before_the_first_block(full: int, error: Exception) -> None:
    model, seen = tiny("bert"), []

    def embed(*_) -> None:
        seen.append(1)
        if len(seen) > full:
            raise error

    model.embeddings.register_forward_pre_hook(embed)
    with pytest.raises(NotEnoughMemory, match=r"in the float model.*smaller batches.*offload="):
        solve(model)


def test_weights_that_are_computed_anew_at_each_call_are_refused_before_the_work() -> None:
    model = tiny("opt")
    layer = model.get_submodule("model.decoder.layers.0.fc1")
    torch.nn.utils.parametrizations.weight_norm(layer)
    with pytest.raises(UnsupportedLayer, match=r"layers\.0\.fc1.*remove_parametrizations"):
        quantize_blocks(model, batches("opt"), accumulator_bit_width=P, progress=False)
