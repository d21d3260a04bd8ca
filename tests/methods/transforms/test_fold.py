from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.transforms.affine import apply_formula
from brevitas_axe.methods.transforms.fold import apply_change
from brevitas_axe.methods.transforms.protocol import Change
from brevitas_axe.methods.transforms.rounding_error import output_error
from brevitas_axe.methods.transforms.sites import find_sites
from brevitas_axe.model.offset import Fronted
from tests.methods.transforms.formulas import WIDTHS, centred, channel_range, parameters
from tests.methods.transforms.nets import images, net

CALLS = [((x.double(),), {}) for x in images()]
NET = net().double()
SITES = {site.readers[0]: site for site in find_sites(NET, CALLS)}


@settings(max_examples=25, deadline=None)
@given(reader=st.sampled_from(list(SITES)), seed=st.integers(0, 99))
def test_any_change_is_exact(reader: str, seed: int) -> None:
    model, site = copy.deepcopy(NET), SITES[reader]
    generator = torch.Generator().manual_seed(seed)
    channels = len(site.low)
    scale = torch.rand(channels, generator=generator, dtype=torch.float64) + 0.1
    shift = None
    if not site.padded:
        shift = torch.randn(channels, generator=generator, dtype=torch.float64)
    before, arrived = parameters(model), []
    apply_change(model, site, Change(scale, shift))
    layer = dict(model.named_modules())[reader]
    if isinstance(layer, Fronted):
        layer = layer.layer
    layer.register_forward_pre_hook(lambda _, args: arrived.append(args[0]))
    x = CALLS[0][0][0]
    with torch.no_grad():
        torch.testing.assert_close(model(x), NET(x), atol=1e-11, rtol=1e-11)
    axis = -1 if isinstance(layer, nn.Linear) else 1
    given = arrived[0].movedim(axis, -1).reshape(-1, channels)
    # The sample holds all vectors of both batches, in this order.
    wanted = (site.sample[: len(given)] - (0 if shift is None else shift)) / scale
    torch.testing.assert_close(given, wanted, atol=1e-10, rtol=1e-10)
    mine = {*site.readers, site.giver}
    others = {k: v for k, v in before.items() if k.rsplit(".", 1)[0] not in mine}
    assert len(others) < len(before)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in others.items())


def test_norms_without_a_bias_take_the_factor_and_the_reader_the_shift() -> None:
    model, site = copy.deepcopy(NET), SITES["up"]
    ones = torch.ones(len(site.low), dtype=torch.float64)
    apply_change(model, site, Change(2 * ones, ones))
    assert torch.equal(model.norm2.weight, NET.norm2.weight / 2)
    assert isinstance(model.up, Fronted)
    torch.testing.assert_close(model.up.front.value, -ones / 2)
    with torch.no_grad():
        torch.testing.assert_close(model(CALLS[0][0][0]), NET(CALLS[0][0][0]))


def test_a_bias_is_made_only_where_it_is_needed() -> None:
    model, site = copy.deepcopy(NET), SITES["out"]
    ones = torch.ones(len(site.low), dtype=torch.float64)
    apply_change(model, site, Change(scale=2 * ones))
    assert model.out.bias is None
    assert model.value.bias is None
    apply_change(model, site, Change(shift=ones))
    torch.testing.assert_close(model.out.bias, 2 * NET.out.weight.sum(1))
    torch.testing.assert_close(model.value.bias, -ones)


def test_a_tied_weight_keeps_its_numbers_elsewhere() -> None:
    model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)).double().eval()
    tied = model[1].weight
    before = tied.detach().clone()
    (site,) = find_sites(model, [((torch.randn(5, 4).double(),), {})])
    apply_change(model, site, Change(torch.full((4,), 3.0)))
    assert torch.equal(tied, before)
    assert not torch.equal(model[1].weight, before)
    assert model[1].weight.requires_grad


def test_changes_that_cannot_be_are_named() -> None:
    ones = torch.ones(12)
    for change in (Change(-ones), Change(0 * ones), Change(ones[:3]), Change(shift=ones / 0)):
        with pytest.raises(InvalidOption, match="12 positive factors and finite shifts"):
            apply_change(copy.deepcopy(NET), SITES["up"], change)
    with pytest.raises(InvalidOption, match="cannot be shifted"):
        apply_change(copy.deepcopy(NET), SITES["conv2"], Change(shift=ones))


def test_a_change_is_kept_only_where_it_lessens_the_error() -> None:
    model = copy.deepcopy(NET)
    changed = apply_formula(centred, model, CALLS, WIDTHS)
    # Large channels of the norms are what a factor per channel is for.
    assert {"conv2", "query", "up"} <= set(changed)
    assert len(changed) < len(SITES)
    for reader, site in SITES.items():
        after = output_error(site, centred(site, WIDTHS), WIDTHS)
        assert (reader in changed) == (after < output_error(site, Change(), WIDTHS))

    def harmful(site, widths):
        return Change(torch.logspace(0, 4, len(site.low)))

    assert apply_formula(harmful, copy.deepcopy(NET), CALLS, WIDTHS) == ()
    assert apply_formula(lambda site, widths: None, copy.deepcopy(NET), CALLS, WIDTHS) == ()


def test_float32_stays_the_function_but_for_rounding() -> None:
    model, before = net(), net()
    channel_range(model, [((x,), {}) for x in images()], WIDTHS)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    with torch.no_grad():
        wanted = before(images()[0])
        torch.testing.assert_close(model(images()[0]), wanted, rtol=1e-4, atol=1e-4)
        assert not torch.equal(model.norm1.weight, before.norm1.weight)
