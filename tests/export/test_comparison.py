"""A file is compared with its model whole, and by quantizer where rounding turned some."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from brevitas_axe.errors import ExportRefused
from brevitas_axe.export import comparison, export_qonnx
from brevitas_axe.export.comparison import check_output
from brevitas_axe.export.execution import QUANTIZERS, Execution
from brevitas_axe.model.prepare import as_batches, to_brevitas


def net() -> nn.Module:
    """A convolutional net whose integers of 4 bits all matter for its output."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for channels in (3, 8, 8, 8):
        layers += [nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers).eval()


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> tuple[nn.Module, torch.Tensor, onnx.ModelProto]:
    x = torch.rand(2, 3, 16, 16)
    model = to_brevitas(net(), as_batches([x]), weight_bit_width=4, input_bit_width=4)
    path = tmp_path_factory.mktemp("export") / "net.onnx"
    return model, x, export_qonnx(model, x, path, target="qonnx")


def turning(share: float, levels: int) -> type[Execution]:
    """An execution that turns integers of the second quantizer, in every run."""

    class Turned(Execution):
        def __call__(self, feeds, settle=None):
            calls = 0

            def turned(found, step):
                nonlocal calls
                calls += 1
                if calls == 2:
                    count = max(1, int(share * found.size))
                    found = found.copy()
                    found.flat[np.argsort(found, axis=None)[:count]] += levels * step
                return found if settle is None else settle(found, step)

            return super().__call__(feeds, turned)

    return Turned


def test_a_right_file_runs_once(case, monkeypatch):
    calls = []

    class Counted(Execution):
        def __call__(self, feeds, settle=None):
            calls.append(settle)
            return super().__call__(feeds, settle)

    monkeypatch.setattr(comparison, "Execution", Counted)
    model, x, proto = case
    check_output(model, (x,), proto)
    assert calls == [None]


def test_an_integer_that_rounding_turned_is_no_wrong_file(case, monkeypatch):
    model, x, proto = case
    monkeypatch.setattr(comparison, "Execution", turning(0, 1))
    check_output(model, (x,), proto)


@pytest.mark.parametrize(("share", "levels"), [(0.02, 1), (0, 2), (0, -3)])
def test_more_than_rounding_turns_is_a_wrong_file(share, levels, case, monkeypatch):
    model, x, proto = case
    monkeypatch.setattr(comparison, "Execution", turning(share, levels))
    with pytest.raises(ExportRefused, match="computes something else"):
        check_output(model, (x,), proto)


def activations(proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    constants = {t.name for t in proto.graph.initializer}
    quantizers = [n for n in proto.graph.node if n.op_type in QUANTIZERS]
    return [n for n in quantizers if n.input[0] not in constants]


@pytest.mark.parametrize("index", [0, 1, 3])
@pytest.mark.parametrize("factor", [1.002, 0.97])
def test_a_wrong_scale_is_a_wrong_file(index, factor, case):
    model, x, proto = case
    wrong = onnx.ModelProto()
    wrong.CopyFrom(proto)
    name = activations(wrong)[index].input[1]
    [constant] = [t for t in wrong.graph.initializer if t.name == name]
    value = numpy_helper.to_array(constant) * np.float32(factor)
    constant.CopyFrom(numpy_helper.from_array(value, name))
    with pytest.raises(ExportRefused, match="computes something else"):
        check_output(model, (x,), wrong)


def test_outputs_that_are_no_numbers_are_a_wrong_file(case):
    model, x, proto = case
    wrong = onnx.ModelProto()
    wrong.CopyFrom(proto)
    name = activations(wrong)[1].input[1]
    [constant] = [t for t in wrong.graph.initializer if t.name == name]
    constant.CopyFrom(numpy_helper.from_array(np.full((), np.nan, np.float32), name))
    with pytest.raises(ExportRefused, match="computes something else"):
        check_output(model, (x,), wrong)
