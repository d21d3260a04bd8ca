"""A plain net becomes a fixed-point net, whose biases hls4ml adds inside where that is exact."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from brevitas_axe.errors import ExportRefused
from brevitas_axe.export import export_hls4ml, prepare_for_hls4ml


def images() -> torch.Tensor:
    return torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def plain(*middle: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        *middle,
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3),
    ).eval()


def test_a_plain_net_is_exported_with_every_scale_a_power_of_two(tmp_path: Path) -> None:
    net = plain()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    model = prepare_for_hls4ml(net, [images()])
    project = export_hls4ml(model, tmp_path, images()[:1])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert len(project.accumulators) == 3  # the average is one of them
    assert project.certificate.ok
    types = project.configuration["HLSConfig"]["LayerName"]
    for accumulator in project.accumulators:
        assert types[accumulator.node]["Precision"]["accum"] == accumulator.type


def test_what_is_left_is_named() -> None:
    with pytest.raises(ExportRefused, match="dilat"):
        prepare_for_hls4ml(plain(nn.Conv2d(4, 4, 3, padding=2, dilation=2)), [images()])
