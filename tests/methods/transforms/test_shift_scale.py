from __future__ import annotations

import copy

import pytest
import torch

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.transforms.protocol import Change, Site
from brevitas_axe.methods.transforms.rounding_error import output_error
from brevitas_axe.methods.transforms.shift_scale import ShiftScale, shift_scale
from brevitas_axe.methods.transforms.sites import find_sites
from brevitas_axe.methods.transforms.smooth import Smooth
from brevitas_axe.model.offset import Fronted
from brevitas_axe.plan import LayerPrecision
from brevitas_axe.registry import method
from tests.methods.transforms.nets import images, net

CALLS = [((x.double(),), {}) for x in images()]
WIDTHS = LayerPrecision(weight=4, input=4)


def sites(model) -> dict[str, Site]:
    return {site.readers[0]: site for site in find_sites(model, CALLS)}


def test_channels_are_centred_where_the_giver_takes_a_shift() -> None:
    model = net().double()
    before = sites(model)
    shift_scale(model, CALLS, WIDTHS)
    after = sites(model)
    changed = [n for n in before if not torch.allclose(before[n].high, after[n].high)]
    # A layer norm, and the value projection behind whose output only averages follow.
    assert {"query", "out"} <= set(changed)
    assert all(before[name].giver for name in changed)
    for name in changed:
        middle = (after[name].low + after[name].high).abs().max()
        moved = before[name].shifts and not before[name].padded
        assert (middle < 1e-10 * after[name].high.abs().max()) == moved
    assert output_error(after["query"], Change(), WIDTHS) < output_error(
        before["query"], Change(), WIDTHS
    )


def test_the_strength_is_the_best_of_all() -> None:
    site = sites(net().double())["query"]
    found = shift_scale.change(site, WIDTHS)
    assert found is not None
    assert found.scale is not None
    assert found.shift is not None
    torch.testing.assert_close(found.shift, (site.low + site.high) / 2)
    reach = torch.maximum(site.high - found.shift, found.shift - site.low)
    weight = torch.cat([w.flatten(0, 1) for w in site.weights]).abs().amax(0)
    scales = [reach ** (i / 10) / weight ** (1 - i / 10) for i in range(11)]
    errors = [output_error(site, Change(s, found.shift), WIDTHS) for s in scales]
    torch.testing.assert_close(found.scale, scales[errors.index(min(errors))])
    only = method("transforms", "shift_scale:steps=1").change(site, WIDTHS)
    assert output_error(site, only, WIDTHS) >= min(errors)


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_without_a_shift_the_factors_are_those_of_smoothquant(strength: float) -> None:
    """Brevitas's activation_equalization_mode, layer by layer."""
    mine, theirs = net().double(), net().double()
    site = sites(mine)["up"]
    candidates = list(ShiftScale(steps=1, shift=False)._candidates(site))
    Smooth(strength)(theirs, CALLS, WIDTHS)
    scale = candidates[int(strength)].scale
    assert scale is not None
    assert candidates[int(strength)].shift is None
    torch.testing.assert_close(theirs.up.layer.weight / mine.up.weight, scale.expand(24, -1))


def test_layers_without_a_giver_are_changed_only_when_told() -> None:
    told = net().double()
    x = CALLS[0][0][0]
    with torch.no_grad():
        wanted = told(x)
        shift_scale(plain := copy.deepcopy(told), CALLS, WIDTHS)
        ShiftScale(front=True)(told, CALLS, WIDTHS)
        torch.testing.assert_close(told(x), wanted, atol=1e-10, rtol=1e-10)
    assert not any(isinstance(module, Fronted) for module in plain.modules())
    assert isinstance(told.down, Fronted)  # behind a GELU
    assert isinstance(told.up, Fronted)  # behind an RMSNorm, which takes no shift


def test_a_channel_that_is_never_used_keeps_its_factor() -> None:
    model = net().double()
    with torch.no_grad():
        for layer in (model.query, model.key, model.value):
            layer.weight[:, 4] = 0
    scales = [c.scale for c in shift_scale._candidates(sites(model)["query"])]
    assert all(scale is not None and scale[4] == 1 for scale in scales)


def test_a_wrong_number_of_steps_is_named() -> None:
    with pytest.raises(InvalidOption, match="steps of ShiftScale must be at least 1, not 0"):
        method("transforms", "shift_scale:steps=0")
