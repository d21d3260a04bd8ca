from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from brevitas_axe.errors import UnsupportedLayer
from brevitas_axe.methods.transforms.sites import (
    SAMPLE,
    few_samples,
    find_sites,
    reader_weight,
)
from tests.methods.transforms.nets import CHANNELS, images, net

CALLS = [((x,), {}) for x in images()]


def found(model: nn.Module, *exclude: str, calls=CALLS):
    return {site.readers: site for site in find_sites(model, calls, exclude)}


def test_every_tensor_that_layers_read_is_found_with_what_gives_it() -> None:
    sites = found(net())
    givers = {readers: site.giver for readers, site in sites.items()}
    assert givers == {
        ("conv",): None,  # the image
        ("conv2",): "batch_norm",
        ("point",): "conv2",  # through a ReLU, which lets positive factors pass
        ("query", "key", "value"): "norm1",
        ("out",): "value",
        ("up",): "norm2",
        ("down",): None,  # behind a GELU
        ("post",): None,  # the sum reads the norm as well
        ("head",): None,
    }
    assert list(sites) == list(givers)
    shifts = {site.giver for site in sites.values() if site.shifts}
    assert shifts == {"batch_norm", "norm1", "value"}
    assert [site.giver for site in sites.values() if site.through_softmax] == ["value"]
    padded = {readers for readers, site in sites.items() if site.padded}
    assert padded == {("conv",), ("conv2",)}


def test_an_excluded_layer_neither_reads_nor_gives() -> None:
    sites = found(net(), "key", "value")
    # The norm gives to excluded layers, too, so that it may not change.
    assert sites["query",].giver is None
    assert sites["out",].giver is None
    assert all("key" not in readers for readers in sites)
    assert found(net(), "norm2")["up",].giver is None


def test_statistics_are_those_of_all_batches() -> None:
    model, seen = net(), []
    model.query.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    with torch.no_grad():
        for args, _ in CALLS:
            model(*args)
    whole = torch.cat([x.reshape(-1, CHANNELS) for x in seen])
    seen.clear()
    site = found(model)["query", "key", "value"]
    assert torch.equal(site.low, whole.amin(0))
    assert torch.equal(site.high, whole.amax(0))
    assert torch.equal(site.sample, whole)  # few enough to keep all
    many = [((x.repeat(30, 1, 1, 1),), {}) for x in images()]
    assert len(found(model, calls=many)["query", "key", "value"].sample) <= SAMPLE
    first = found(net())["conv",]
    assert torch.equal(first.high, torch.cat(images()).amax((0, 2, 3)))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_weights_of_a_convolution_are_rows_taps_and_channels(groups: int) -> None:
    conv = nn.Conv2d(4, 8, (2, 3), groups=groups, bias=False)
    x = torch.randn(1, 4, 2, 3)
    taps = x.flatten(2)[0].t()  # [taps, C]
    wanted = conv(x).flatten()
    torch.testing.assert_close((reader_weight(conv) * taps).sum((1, 2)), wanted)


class Twice(nn.Module):
    """A norm whose second call something else reads, and a layer that is called twice."""

    def __init__(self, leaks: bool) -> None:
        super().__init__()
        self.norm, self.layer, self.leaks = nn.LayerNorm(6), nn.Linear(6, 6), leaks

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(self.norm(x))
        z = self.norm(y + x)
        return self.layer(z) + (z if self.leaks else 0)


@pytest.mark.parametrize("leaks", [False, True])
def test_all_calls_count(leaks: bool) -> None:
    torch.manual_seed(0)
    model = Twice(leaks).eval()
    site = found(model, calls=[((torch.randn(3, 6),), {})])["layer",]
    assert site.giver == (None if leaks else "norm")


def test_a_norm_of_another_kind_is_not_taken_for_one() -> None:
    class OneMore(nn.Module):  # Gemma's: 1 + weight
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(6))

        def forward(self, x: Tensor) -> Tensor:
            return (1 + self.weight) * x

    model = nn.Sequential(OneMore(), nn.Linear(6, 3)).eval()
    assert found(model, calls=[((torch.randn(3, 6),), {})])["1",].giver is None


def test_a_module_that_insists_on_its_precision_is_named() -> None:
    class Narrow(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            assert x.dtype == torch.float32, "float32 only"
            return super().forward(x)

    with pytest.raises(UnsupportedLayer, match="float32 only"):
        find_sites(Narrow(nn.Linear(2, 2)), [((torch.ones(1, 2),), {})])


class Routed(nn.Module):
    """Samples of one sign go through one layer, the others through another."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.plus, self.minus = nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y, sign = self.norm(x), x[:, 0] > 0
        parts = [
            layer(y[rows]) for layer, rows in ((self.plus, sign), (self.minus, ~sign)) if rows.any()
        ]
        return torch.cat(parts)


def test_few_samples_will_do_unless_others_reach_more_layers() -> None:
    model, x = Routed().eval(), torch.randn(20, 4)
    x[:, 0] = 1
    assert len(few_samples(model, ((x,), {}))[0][0]) == 4
    x[19, 0] = -1
    assert few_samples(model, ((x,), {}))[0][0] is x
    [site] = find_sites(model, [((x,), {})])
    assert site.readers == ("plus", "minus")
