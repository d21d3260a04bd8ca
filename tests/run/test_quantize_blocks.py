"""Whole runs block by block: solved, proven, resumed, planned."""

from __future__ import annotations

import copy
import hashlib
import io
import itertools
import signal
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from brevitas import nn as qnn
from brevitas.graph.calibrate import calibration_mode
from brevitas.graph.quantize import layerwise_quantize
from brevitas.quant import Int8ActPerTensorFloat
from torch import nn
from transformers import BloomConfig, BloomForCausalLM

from brevitas_axe import Int8WeightPerChannelFloatAXE
from brevitas_axe.errors import (
    InvalidPlan,
    InvalidState,
    InvalidTile,
    UnsupportedLayer,
)
from brevitas_axe.export.layers import export_layers
from brevitas_axe.model.layers import find_layers, integer_weight
from brevitas_axe.model.offload import bring_in
from brevitas_axe.model.stack import find_blocks, left_in_float, to_linears
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.proof.certificate import certify
from brevitas_axe.recipe import Recipe
from brevitas_axe.run.quantize_blocks import quantize_blocks
from brevitas_axe.run.solve import axe_mode
from tests.run.solved import TILE, P, integers, solve
from tests.run.tiny import LAYERS, batches, tiny


@pytest.mark.parametrize("kind", LAYERS)
def test_every_family_is_solved_and_proven(kind: str) -> None:
    result = solve(kind)
    assert result.certificate.require().ok
    assert len(result.layers) == len(result.plan.layers) == 2 * LAYERS[kind]
    quantized = set(find_layers(result.model))
    assert quantized == set(result.plan.layers)
    assert not quantized & set(result.floats)
    assert any("attention" in name or "attn" in name for name in result.floats)
    for name, weight in integers(result.model).items():
        for start in range(0, weight.shape[1], TILE):
            tile = weight[:, start : start + TILE]
            up, down = tile.clip(min=0).sum(1), -tile.clip(max=0).sum(1)
            # Signed 8-bit inputs: a positive weight meets at most 127 or -128.
            worst = np.maximum(127 * up + 128 * down, 128 * up + 127 * down).max()
            assert worst <= 2 ** (P - 1) - 1, name
    with torch.no_grad():
        result.model(batches(kind)[0])


def test_the_log_says_how_wide_every_accumulator_is() -> None:
    result = solve("gpt2")
    assert [entry["block"] for entry in result.layers] == [0] * 4 + [1] * 4
    for entry in result.layers:
        tiles = -(-entry["inputs"] // TILE)
        assert entry["inner_bits"] <= entry["accumulator"] == P
        assert entry["outer_bits"] <= entry["outer_bound"] == P + (tiles - 1).bit_length()
        assert 0 <= entry["budget_used"] <= 1
        assert {"error", "error_rounded", "seconds"} <= set(entry)


@pytest.mark.parametrize("samples", [1, 3])
def test_tensors_with_a_row_for_every_head_and_sample_are_proven_too(samples: int) -> None:
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=50, hidden_size=32, n_layer=2, n_head=4)
    tokens = torch.randint(0, 50, (samples, 9))
    options = {"accumulator_bit_width": 18, "progress": False}
    result = quantize_blocks(BloomForCausalLM(config).eval(), [tokens], **options)
    assert result.certificate.require().ok
    assert len(result.plan.layers) == 8


def three_blocks() -> nn.Module:
    model = tiny("gpt2").eval()
    model.transformer.h.insert(0, copy.deepcopy(model.transformer.h[1]))
    model.config.use_cache = False  # two blocks now share a place in it
    return model


@pytest.mark.parametrize(("quality", "passed"), [("fast", None), ("best", None), ("fast", 1)])
def test_blocks_give_the_integers_of_the_whole_model(quality: str, passed: int | None) -> None:
    whole = three_blocks()
    block = f"transformer.h.{passed}."
    exclude = [name for name in left_in_float(whole) if name.startswith(block)]
    to_linears(whole)
    options = {
        "weight_quant": Int8WeightPerChannelFloatAXE,
        "weight_bit_width": 4,
        "weight_accumulator_bit_width": None,
        "input_quant": Int8ActPerTensorFloat,
    }
    layerwise_quantize(whole, {nn.Linear: (qnn.QuantLinear, options)}, ["lm_head", *exclude])
    data = batches("gpt2")
    with torch.no_grad(), calibration_mode(whole):
        for x in data:
            whole(x, use_cache=False)
    mode = axe_mode(
        whole, accumulator_bit_width=P, accumulator_tile_size=TILE, solver="qronos", quality=quality
    )
    with torch.no_grad(), mode as axe:
        for x in data:
            axe.model(x, use_cache=False)
        while axe.update():
            pass
    options = {"quality": quality, "exclude": exclude, "ranges": "calibrated"}
    blocks = integers(solve(three_blocks(), **options).model)
    assert blocks.keys() == integers(whole).keys()
    for name, weight in integers(whole).items():
        assert np.array_equal(weight, blocks[name]), name


@pytest.mark.parametrize(
    "options",
    [
        {"activations": activations, "symmetric": symmetric}
        for activations, symmetric in itertools.product(("static", "dynamic", "per_token"), (0, 1))
    ],
    ids=str,
)
def test_every_kind_of_activation_is_proven(options: dict) -> None:
    options["symmetric"] = bool(options["symmetric"])
    result = solve("llama", **options)
    assert result.certificate.require().ok
    for entry in result.certificate.judged:
        moving = options["activations"] != "static" and not options["symmetric"]
        assert (entry.input_range == (-255, 255)) == moving


@pytest.mark.parametrize("options", [{"smooth": 0.5}, {"rotate": True}])
def test_transforms_keep_the_guarantee(options: dict) -> None:
    result = solve("llama", **options)
    assert result.certificate.require().ok
    assert len(result.plan.layers) == 2 * LAYERS["llama"]


def test_every_tile_may_have_its_own_scale() -> None:
    size = 8
    result = solve("bert", tile_size=size, tile_scales=True, quality="best", smooth=0.5)
    result.certificate.require()
    for name, layer in find_layers(result.model, tile_scales=True).items():
        q, scale = (part.double() for part in integer_weight(name, layer))
        tiles = q.unflatten(1, (-1, size))
        assert (tiles.clamp(min=0).sum(-1) - tiles.clamp(max=0).sum(-1)).max() * 128 < 2 ** (P - 1)
        scale = scale.unflatten(1, (-1, size))
        assert torch.equal(scale, scale[..., :1].expand_as(scale))
        assert not torch.equal(scale[:, 0], scale[:, 1])
        # Integers of one unit in every tile, then scaled, then added.
        x = torch.randn(5, q.shape[1])
        arrived = layer.input_quant(x)
        inputs = (arrived.value / arrived.scale).round().double().unflatten(1, (-1, size))
        inner = torch.einsum("ntk,rtk->nrt", inputs, tiles)
        wanted = (inner * scale[..., 0]).sum(-1) * arrived.scale + layer.bias
        torch.testing.assert_close(layer(x).double(), wanted.double(), rtol=1e-4, atol=1e-5)
    for entry in result.certificate.judged:
        assert (entry.outer_width, entry.outer_bound) == (None, None)
        assert any("scales of their own" in note for note in entry.assumptions)


def test_without_a_limit_tiles_have_scales_too() -> None:
    result = solve("llama", accumulator_bit_width=None, tile_size=16, tile_scales=True)
    assert result.model(batches("llama")[0]).logits.isfinite().all()


def test_scales_per_tile_are_proven_and_bound_by_that_tile_only(tmp_path: Path) -> None:
    model = solve("bert", tile_size=8, tile_scales=True).model
    x = (batches("bert")[0],)

    def first_layer(tile: int | None):
        certificate = certify(model, P, tile_size=tile, args=x)
        return next(entry for entry in certificate.entries if "layer.0." in entry.name)

    assert first_layer(4).proven
    for tile in (None, 12, 16):
        entry = first_layer(tile)
        assert not entry.proven
        assert "give tiles of 8" in entry.reason
    with pytest.raises(InvalidTile, match=r"layer\.0.*tiles of 8"):
        axe_mode(model, accumulator_bit_width=P, accumulator_tile_size=16)
    with pytest.raises(UnsupportedLayer, match=r"layer\.0.*group-wise"):
        export_layers(model, tmp_path)


def test_workers_give_the_integers_of_one() -> None:
    with joblib.parallel_config("threading"):
        one, two = (integers(solve("vit", workers=workers).model) for workers in (1, 2))
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_excluded_layers_stay_in_float() -> None:
    name = "model.layers.1.mlp.down_proj"
    result = solve("llama", exclude=[name])
    assert name in result.floats
    assert name not in result.plan.layers
    assert isinstance(result.model.get_submodule(name), nn.Linear)
    assert result.certificate.ok


@pytest.mark.parametrize("index", [0, 1])
def test_a_block_without_layers_to_solve_is_passed(index: int) -> None:
    names = [n for n in left_in_float(tiny("gpt2")) if n.startswith(f"transformer.h.{index}.")]
    result = solve("gpt2", exclude=names)
    result.certificate.require()
    assert set(names) < set(result.floats)
    assert [entry["block"] for entry in result.layers] == [1 - index] * LAYERS["gpt2"]
    assert set(find_layers(result.model)) == set(result.plan.layers)
    attention = [n for n in result.floats if n.startswith(f"transformer.h.{index}.attn")]
    assert len(attention) > 2


_KILLED_RUN = """
import os, signal, sys, warnings
warnings.simplefilter("ignore")
from tests.run.tiny import batches, tiny
from brevitas_axe import quantize_blocks
from brevitas_axe.run.solve.state import SavedLayers

save, solved = SavedLayers.save, []
def killing(self, *arguments):
    save(self, *arguments)
    solved.append(1)
    if len(solved) == 6:  # the second layer of the second block
        os.kill(os.getpid(), signal.SIGKILL)

SavedLayers.save = killing
widths = {"accumulator_bit_width": 14, "tile_size": 24, "progress": False}
folders = {"state": sys.argv[1], "offload": sys.argv[2]}
quantize_blocks(tiny("gpt2"), batches("gpt2"), **widths, **folders)
"""


def test_a_killed_run_goes_on_to_the_same_integers(tmp_path: Path) -> None:
    state, offload = tmp_path / "state", tmp_path / "offload"
    solve("gpt2", accumulator_bit_width=None, offload=offload)  # another run's leavings
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED_RUN, str(state), str(offload)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert len(list(state.rglob("*.solved"))) == 6
    resumed = solve("gpt2", quality="best", state=state, offload=offload)
    assert [entry["resumed"] for entry in resumed.layers] == [True] * 6 + [False] * 2
    fresh = solve("gpt2", quality="best")
    for block in find_blocks(resumed.model).values():
        bring_in(block)
    wanted = integers(fresh.model)
    for name, weight in integers(resumed.model).items():
        assert np.array_equal(weight, wanted[name]), name
    told = {"seconds", "resumed"}  # the rest of the log is the fresh run's
    for mine, theirs in zip(resumed.layers, fresh.layers, strict=True):
        assert {k: v for k, v in mine.items() if k not in told} == {
            k: v for k, v in theirs.items() if k not in told
        }
    with pytest.raises(InvalidState, match="another"):
        solve("gpt2", quality="best", accumulator_bit_width=P + 1, state=state)


def test_states_without_log_entries_still_load(tmp_path: Path) -> None:
    fresh = solve("vit", state=tmp_path)
    for path in tmp_path.rglob("*.solved"):
        with np.load(io.BytesIO(path.read_bytes()[32:])) as data:
            older = {key: data[key] for key in data.files if key != "entry"}
        np.savez_compressed(buffer := io.BytesIO(), **older)
        path.write_bytes(hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue())
    resumed = solve("vit", state=tmp_path)
    assert all(entry["resumed"] and "error" not in entry for entry in resumed.layers)
    wanted = integers(fresh.model)
    assert all(np.array_equal(wanted[n], q) for n, q in integers(resumed.model).items())


def test_the_model_and_its_data_are_left_as_they_were() -> None:
    model, data = tiny("opt").train(), batches("opt")
    before = copy.deepcopy(data)
    quantize_blocks(model, data, quality="fast", progress=False)
    assert model.training
    assert all(torch.equal(a, b) for a, b in zip(before, data, strict=True))
    hooks = [n for n, m in model.named_modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooks


def test_a_plan_gives_every_layer_its_own_widths() -> None:
    q, v, up = (
        f"model.layers.{n}" for n in ("0.self_attn.q_proj", "0.self_attn.v_proj", "1.mlp.up_proj")
    )
    plan = Plan(
        {
            q: LayerPrecision(3, 6, 14, 16),
            v: LayerPrecision(5, None, 16),
            up: LayerPrecision(accumulator=15),
        }
    )
    widths = {"accumulator_bit_width": None, "tile_size": None, "weight_bit_width": 6}
    result = solve("llama", plan=plan, **widths)
    result.certificate.require()
    assert result.plan == Plan(
        {
            q: LayerPrecision(3, 6, 14, 16),
            v: LayerPrecision(5, 8, 16),
            up: LayerPrecision(6, 8, 15),
        }
    )
    assert set(find_layers(result.model)) == {q, v, up}
    assert "model.layers.0.self_attn.k_proj" in result.floats
    for name, weight in integers(result.model).items():
        assert np.abs(weight).max() <= 2 ** (result.plan[name].weight - 1) - 1
    ranges = {entry.name: entry.input_range for entry in result.certificate.judged}
    assert ranges[q] == (-32, 31)
    assert ranges[up] == (-128, 127)


def test_plan_and_recipe_that_come_back_give_the_same_integers() -> None:
    first = solve("opt", symmetric=False, rotate=True)
    again = quantize_blocks(tiny("opt"), batches("opt"), first.plan, first.recipe, progress=False)
    assert (again.plan, again.recipe) == (first.plan, first.recipe)
    wanted = integers(first.model)
    assert all(np.array_equal(wanted[n], q) for n, q in integers(again.model).items())


def test_rules_give_widths_and_exclude() -> None:
    rules = {"*.fc1": {"weight": 3, "tile": None}, "/k_proj$/": {"exclude": True}}
    result = solve("opt", recipe=Recipe(rules=rules))
    fc1 = "model.decoder.layers.0.fc1"
    assert result.plan[fc1] == LayerPrecision(3, 8, P, None)
    assert result.plan[fc1.replace("fc1", "fc2")] == LayerPrecision(4, 8, P, TILE)
    assert len(result.plan.layers) == 2 * (LAYERS["opt"] - 1)


def test_a_planned_layer_outside_of_the_blocks_is_named() -> None:
    widths = {"accumulator_bit_width": None, "tile_size": None}
    with pytest.raises(InvalidPlan, match="lm_head"):
        solve("llama", plan=Plan({"lm_head": LayerPrecision(4)}), **widths)


def test_a_recipe_s_split_makes_branches_that_are_planned_by_name() -> None:
    recipe = Recipe(split="channel_split:share=0.1")
    first = solve("opt", recipe=recipe)
    first.certificate.require()
    names = list(first.plan.layers)
    assert len(names) == 2 * 2 * LAYERS["opt"]
    assert "lm_head" in first.floats
    again = quantize_blocks(tiny("opt"), batches("opt"), first.plan, first.recipe, progress=False)
    wanted = integers(first.model)
    assert all(np.array_equal(wanted[n], q) for n, q in integers(again.model).items())
    with pytest.raises(InvalidPlan, match="apply the recipe's split first"):
        quantize_blocks(tiny("opt"), batches("opt"), first.plan, progress=False)
