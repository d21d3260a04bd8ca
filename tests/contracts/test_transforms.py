"""What every registered transform promises, on a net with norms, a value path, sums and images."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

from brevitas_axe.methods.transforms.protocol import Change
from brevitas_axe.methods.transforms.rounding_error import output_error
from brevitas_axe.methods.transforms.sites import find_sites
from brevitas_axe.plan import LayerPrecision
from brevitas_axe.registry import Facts, methods
from tests.methods.transforms.formulas import WIDTHS, channel_range, excluding, parameters
from tests.methods.transforms.nets import images, net

TRANSFORMS = {**methods("transforms"), "a formula": channel_range}
every = pytest.mark.parametrize("name", TRANSFORMS)
# Brevitas keeps its Hadamard matrices in float32.
ROUNDING = {"rotate": 1e-6}
# These rewrite every layer without asking what is gained.
judging = pytest.mark.parametrize("name", sorted(set(TRANSFORMS) - {"linears", "rotate", "smooth"}))
CALLS = [((x.double(),), {}) for x in images()]


def changed(name: str, model: nn.Module, widths: LayerPrecision = WIDTHS, *exclude: str):
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Brevitas, about what it deprecates of itself
        assert excluding(TRANSFORMS[name], *exclude)(model, CALLS, widths) == ()
    return model


def test_all_are_there() -> None:
    assert {"linears", "rotate", "smooth"} <= set(TRANSFORMS)


@every
def test_the_function_stays_to_the_last_digits(name) -> None:
    model = net().double()
    with torch.no_grad():
        wanted = [model(*args, **kwargs) for args, kwargs in CALLS]
        changed(name, model)
        for (args, kwargs), before in zip(CALLS, wanted, strict=True):
            after, largest = model(*args, **kwargs), float(before.abs().max())
            assert float((after - before).abs().max()) <= largest * ROUNDING.get(name, 1e-10)
    before = net().double().state_dict()
    same = set(model.state_dict()) == set(before) and all(
        torch.equal(value, before[key]) for key, value in model.state_dict().items()
    )
    # These have nothing to do here: no fused layers, constant tokens or tiles.
    assert same == (name in ("linears", "constant_token", "permute"))


@every
def test_what_is_excluded_stays_to_the_last_bit(name) -> None:
    model = net().double()
    before = parameters(model)
    changed(name, model, WIDTHS, "post", "query")
    for layer in ("post", "query"):
        assert type(model.get_submodule(layer)) is nn.Linear
        for key in ("weight", "bias"):
            assert torch.equal(model.state_dict()[f"{layer}.{key}"], before[f"{layer}.{key}"])
    for key in ("running_mean", "running_var"):
        assert torch.equal(model.state_dict()[f"batch_norm.{key}"], before[f"batch_norm.{key}"])


@every
def test_the_same_numbers_again_and_no_hook_left(name) -> None:
    first, again = changed(name, net().double()), changed(name, net().double())
    assert all(map(torch.equal, first.state_dict().values(), again.state_dict().values()))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in first.modules())
    copy.deepcopy(first)


@every
def test_stages_and_facts_are_there(name) -> None:
    assert TRANSFORMS[name].stage in range(5)
    assert isinstance(TRANSFORMS[name].facts, Facts)
    assert TRANSFORMS[name].exclude == ()


@judging
def test_nothing_happens_where_nothing_is_to_be_gained(name) -> None:
    model = net().double()
    before = parameters(model)
    changed(name, model, LayerPrecision())
    assert parameters(model).keys() == before.keys()
    assert all(map(torch.equal, parameters(model).values(), before.values()))


@judging
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_rounding_harms_no_layer_more_than_before(name, bits: int) -> None:
    widths = LayerPrecision(weight=bits, input=bits)
    before, after = net().double(), changed(name, net().double(), widths)
    for old, new in zip(find_sites(before, CALLS), find_sites(after, CALLS), strict=True):
        harm, now = (output_error(site, Change(), widths) for site in (old, new))
        assert now <= harm * (1 + 1e-6), old.readers
