"""The exported file holds the model's integers and computes what the model computes."""

from __future__ import annotations

import copy
import json
import os

import numpy as np
import onnx
import onnxoptimizer
import pytest
import torch
from brevitas import nn as qnn
from brevitas.export import export_qonnx as brevitas_export_qonnx
from brevitas.graph.calibrate import calibration_mode
from brevitas.proxy.runtime_quant import ActQuantProxyFromInjector
from brevitas.quant import (
    Int8ActPerTensorFloat,
    Int8WeightPerChannelFloat,
    Int8WeightPerTensorFixedPoint,
    Int8WeightPerTensorFloat,
    ShiftedUint8ActPerTensorFixedPoint,
    SignedBinaryWeightPerTensorConst,
    SignedTernaryWeightPerTensorConst,
    Uint8ActPerTensorFloat,
)
from brevitas.quant.fixed_point import Int8WeightPerChannelFixedPoint
from brevitas.quant.scaled_int import (
    Int8AccumulatorAwareWeightQuant,
    Int8AccumulatorAwareZeroCenterWeightQuant,
)
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from torch import nn

from brevitas_axe.errors import ExportRefused
from brevitas_axe.export import export_qonnx
from brevitas_axe.export import qonnx as room
from brevitas_axe.model.layers import find_layers, integer_weight
from brevitas_axe.model.prepare import as_batches, to_brevitas
from brevitas_axe.model.quantizers import (
    Int8WeightPerChannelFloatAXE,
    Int8WeightPerTensorFixedPointAXE,
)
from brevitas_axe.model.rewrites import tensors_in
from brevitas_axe.model.running import observe_inputs
from brevitas_axe.proof.certificate import certify_file

BITS = 13
BOUND = {"weight_accumulator_bit_width": BITS}
# Quantizers that do more than round, then those that only round.
QUANTIZERS = {
    "ours": (Int8WeightPerChannelFloatAXE, BOUND),
    "ours, fixed point": (Int8WeightPerTensorFixedPointAXE, BOUND),
    "A2Q": (Int8AccumulatorAwareWeightQuant, BOUND),
    "A2Q+": (Int8AccumulatorAwareZeroCenterWeightQuant, BOUND),
    "per channel": (Int8WeightPerChannelFloat, {}),
    "per tensor": (Int8WeightPerTensorFloat, {}),
    "fixed point": (Int8WeightPerTensorFixedPoint, {}),
    "fixed point per channel": (Int8WeightPerChannelFixedPoint, {}),
    "8 bits": (Int8WeightPerChannelFloat, {"weight_bit_width": 8}),
    "ternary": (SignedTernaryWeightPerTensorConst, {"weight_scaling_init": 0.1}),
}
X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def build(name: str = "ours", bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    quantizer, options = QUANTIZERS[name]
    weight = {"weight_quant": quantizer, "bias": bias, **options}
    if "ary" not in name:
        weight = {"weight_bit_width": 4, **weight}
    model = nn.Sequential(
        qnn.QuantIdentity(Uint8ActPerTensorFloat, return_quant_tensor=True),
        qnn.QuantConv2d(3, 8, 3, padding=1, stride=2, **weight),
        qnn.QuantReLU(bit_width=4, return_quant_tensor=True),
        qnn.QuantConv2d(8, 8, 3, groups=8, **weight),
        qnn.QuantReLU(bit_width=4, return_quant_tensor=True),
        nn.Flatten(),
        qnn.QuantLinear(32, 5, **weight),
    )
    return calibrated(model, X)


def calibrated(model: nn.Module, x: torch.Tensor) -> nn.Module:
    with torch.no_grad(), calibration_mode(model.eval()):
        model(x)
    return model


def integers(model: nn.Module, x: torch.Tensor = X) -> dict[str, np.ndarray]:
    layers = find_layers(model)
    observe_inputs(model, layers, (x,))
    return {name: integer_weight(name, layer)[0].numpy() for name, layer in layers.items()}


def file_integers(proto: onnx.ModelProto) -> list[np.ndarray]:
    """Integers of every weight quantizer, by what the QONNX operators mean."""
    wrapped, found = ModelWrapper(proto), []
    for node in proto.graph.node:
        weight = wrapped.get_initializer(node.input[0]) if node.input else None
        if weight is None or node.op_type not in ("Quant", "BipolarQuant"):
            continue
        scale = wrapped.get_initializer(node.input[1])
        found.append(np.sign(weight) if "Bi" in node.op_type else np.round(weight / scale))
    return found


def output(proto: onnx.ModelProto, x: torch.Tensor) -> np.ndarray:
    wrapped = ModelWrapper(proto)
    return next(iter(execute_onnx(wrapped, {wrapped.graph.input[0].name: x.numpy()}).values()))


@pytest.mark.parametrize("name", QUANTIZERS)
def test_the_file_has_the_model_s_integers_and_output(name, tmp_path):
    model = build(name)
    expected = integers(model)
    proto = export_qonnx(model, X, tmp_path / "m.onnx", target="qonnx")
    assert onnx.load(tmp_path / "m.onnx") == proto
    for one, other in zip(expected.values(), file_integers(proto), strict=True):
        assert np.array_equal(one, other)
    other = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        assert np.allclose(output(proto, other), model(other).numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ["ours", "A2Q", "A2Q+"])
def test_brevitas_s_own_export_has_the_integers_of_our_quantizers_alone(name, tmp_path):
    model = build(name)
    expected = integers(model)
    brevitas_export_qonnx(copy.deepcopy(model), X, export_path=str(tmp_path / "b.onnx"))
    theirs = file_integers(onnx.load(tmp_path / "b.onnx"))
    same = all(np.array_equal(a, b) for a, b in zip(expected.values(), theirs, strict=True))
    assert same == (name == "ours")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ours", "A2Q+"])
def test_both_of_torch_s_exporters_give_the_same_integers(name, tmp_path):
    model = build(name)
    old = export_qonnx(model, X[:1], tmp_path / "old.onnx")
    new = export_qonnx(model, X[:1], tmp_path / "new.onnx", dynamo=True)
    assert [len(list(tmp_path.iterdir()))] == [2]  # no orphan .data file
    for one, other in zip(file_integers(old), file_integers(new), strict=True):
        assert np.array_equal(one, other)
    assert np.allclose(output(old, X[:1]), output(new, X[:1]), atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_proven_widths_are_annotated_for_qonnx_to_read(bias, tmp_path):
    model = build(bias=bias)
    proto = export_qonnx(model, X[:1], tmp_path / "m.onnx")
    wrapped = ModelWrapper(str(tmp_path / "m.onnx"))
    listed = json.loads(wrapped.get_metadata_prop(room.ACCUMULATORS_KEY))
    certificate = certify_file(tmp_path / "m.onnx")
    assert certificate.ok
    assert {entry["layer"] for entry in listed.values()} == {"1", "3", "6"}
    for entry in certificate.entries:
        node = next(n for n in proto.graph.node if n.name == entry.name)
        assert node.op_type in ("Conv", "MatMul")
        assert len(node.input) == 2, "a bias hides the accumulator"
        datatype = wrapped.get_tensor_datatype(node.output[0])
        assert datatype.name == f"SCALEDINT<{entry.width}>"
        assert entry.width == listed[entry.name]["bit_width"] <= BITS


def test_the_same_model_gives_the_same_bytes(tmp_path):
    paths = [tmp_path / f"{name}.onnx" for name in "abc"]
    export_qonnx(build(), X[:1], paths[0])
    export_qonnx(build(), X[:1], paths[1])
    model = build()
    for _ in range(2):  # exporting leaves no trace in the model
        export_qonnx(model, X[:1], paths[2])
    assert len({path.read_bytes() for path in paths}) == 1


def test_no_pass_that_searches_the_whole_graph_for_each_node_runs(tmp_path, monkeypatch):
    calls = []
    for owner, name in ((torch._C, "_jit_pass_lint"), (onnxoptimizer, "optimize")):
        monkeypatch.setattr(owner, name, lambda *args, own=name: calls.append(own))
    check = torch._C._jit_pass_lint
    export_qonnx(build(), X[:1], tmp_path / "m.onnx")
    assert calls == []
    assert torch._C._jit_pass_lint is check


def test_exporting_leaves_the_model_as_it_was(tmp_path):
    model = build().train()
    model[3].eval()
    parameters = dict(model.named_parameters())
    state = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    proxies = [m for m in model.modules() if isinstance(m, ActQuantProxyFromInjector)]
    export_qonnx(model, X[:1], tmp_path / "m.onnx")
    # What Brevitas keeps of a forward would tell the bits of that one, whatever they are later.
    assert proxies
    assert not any(p._cached_act or p.cache_inference_quant_act for p in proxies)
    assert all(model.get_parameter(name) is value for name, value in parameters.items())
    now = model.state_dict()
    changed = [name for name in state if not torch.equal(state[name], now[name])]
    assert all(name.endswith(("input_low", "input_high")) for name in changed)
    assert [module.training for module in model.modules()] == modes
    model(X).sum().backward()
    assert model[1].weight.grad is not None


def fail(*args, **kwargs):
    raise RuntimeError("disk full")


@pytest.mark.parametrize("step", ["streamlined", "check_finn", "check_output", "_trace"])
@pytest.mark.parametrize("dynamo", [False])
def test_a_failing_export_leaves_no_file_and_a_working_model(step, dynamo, tmp_path, monkeypatch):
    model = build()
    before = integers(model)
    with torch.no_grad():
        expected = model(X)
    if step == "_trace":
        monkeypatch.setattr(torch.onnx, "export", fail)
    else:
        monkeypatch.setattr(room, step, fail)
    with pytest.raises((RuntimeError, ExportRefused), match="disk full"):
        export_qonnx(model, X[:1], tmp_path / "m.onnx", dynamo=dynamo)
    assert not any(tmp_path.iterdir())
    monkeypatch.undo()
    with torch.no_grad():
        assert torch.equal(model(X), expected)
    assert all(np.array_equal(before[name], value) for name, value in integers(model).items())
    export_qonnx(model, X[:1], tmp_path / "m.onnx")


def test_an_existing_file_survives_a_refusal(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"mine")
    model = build()
    model[6].weight.data.zero_()
    with pytest.raises(ExportRefused):
        export_qonnx(model, X[:1], path)
    assert path.read_bytes() == b"mine"
    assert os.listdir(tmp_path) == ["m.onnx"]


@pytest.mark.parametrize("wrong", ["weights", "output"])
def test_a_wrong_file_is_noticed_before_it_appears(wrong, tmp_path, monkeypatch):
    streamlined = room.streamlined

    def spoiled(proto):
        proto = streamlined(proto)
        wrapped = ModelWrapper(proto)
        node = [n for n in proto.graph.node if n.op_type == "Quant"]
        if wrong == "weights":
            name = next(n.input[0] for n in node if n.input[0] == "3.weight")
            value = wrapped.get_initializer(name).copy()
            value.flat[0] += 0.3
        else:
            activations = [n for n in node if wrapped.get_initializer(n.input[0]) is None]
            name = activations[-1].input[1]
            value = wrapped.get_initializer(name) * np.float32(1.5)
        wrapped.set_initializer(name, value)
        return wrapped.model

    monkeypatch.setattr(room, "streamlined", spoiled)
    match = "weights of layer '3'" if wrong == "weights" else "computes something else"
    with pytest.raises(ExportRefused, match=match):
        export_qonnx(build(), X[:1], tmp_path / "m.onnx")
    assert not any(tmp_path.iterdir())


def test_tied_weights_with_scales_of_their_own(tmp_path):
    torch.manual_seed(0)
    weight = {"weight_quant": Int8WeightPerChannelFloatAXE, "weight_bit_width": 4, **BOUND}
    first, second = qnn.QuantLinear(16, 16, **weight), qnn.QuantLinear(16, 16, **weight)
    second.weight = first.weight
    model = nn.Sequential(
        qnn.QuantIdentity(Int8ActPerTensorFloat, return_quant_tensor=True),
        first,
        qnn.QuantReLU(return_quant_tensor=True),
        second,
    )
    x = torch.randn(4, 16)
    calibrated(model, x)(x)
    second.weight_quant.tensor_quant.scaling_impl.value.data *= 1.7
    expected, before = integers(model, x), first.weight.detach().clone()
    proto = export_qonnx(model, x, tmp_path / "m.onnx")
    for one, other in zip(expected.values(), file_integers(proto), strict=True):
        assert np.array_equal(one, other)
    assert first.weight is second.weight
    assert torch.equal(first.weight, before)


def test_a_layer_called_twice(tmp_path):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.quant = qnn.QuantIdentity(Int8ActPerTensorFloat, return_quant_tensor=True)
            self.layer = qnn.QuantLinear(
                12, 12, weight_quant=Int8WeightPerChannelFloatAXE, weight_bit_width=4, **BOUND
            )
            self.relu = qnn.QuantReLU(bit_width=4, return_quant_tensor=True)

        def forward(self, x):
            return self.layer(self.relu(self.layer(self.quant(x))))

    torch.manual_seed(0)
    x = torch.randn(4, 12)
    model = calibrated(Twice(), x)
    expected = integers(model, x)["layer"]
    proto = export_qonnx(model, x, tmp_path / "m.onnx")
    assert all(np.array_equal(expected, found) for found in file_integers(proto))
    assert len(json.loads(ModelWrapper(proto).get_metadata_prop(room.ACCUMULATORS_KEY))) == 2


def test_several_inputs_and_outputs(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.quant = qnn.QuantIdentity(Int8ActPerTensorFloat, return_quant_tensor=True)
            self.a, self.b = qnn.QuantLinear(6, 4, weight_bit_width=4), qnn.QuantLinear(6, 3)

        def forward(self, x, y):
            return self.a(self.quant(x)), self.b(self.quant(y))

    torch.manual_seed(0)
    args = torch.randn(2, 6), torch.randn(2, 6)
    model = Two()
    with torch.no_grad(), calibration_mode(model.eval()):
        model(*args)
    proto = export_qonnx(model, args, tmp_path / "m.onnx")
    wrapped = ModelWrapper(proto)
    feed = {i.name: arg.numpy() for i, arg in zip(proto.graph.input, args, strict=True)}
    with torch.no_grad():
        for one, other in zip(execute_onnx(wrapped, feed).values(), model(*args), strict=True):
            assert np.allclose(one, other.numpy(), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused_with_the_way_out(dtype, tmp_path):
    with pytest.raises(ExportRefused, match=r"layer '1' is in torch\.b?float16.*float\(\) first"):
        export_qonnx(build().to(dtype), X.to(dtype), tmp_path / "m.onnx")


def test_binary_weights(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(
        qnn.QuantIdentity(Int8ActPerTensorFloat, return_quant_tensor=True),
        qnn.QuantLinear(
            8, 4, weight_quant=SignedBinaryWeightPerTensorConst, weight_scaling_init=0.1
        ),
    )
    x = torch.randn(3, 8)
    calibrated(model, x)
    proto = export_qonnx(model, x, tmp_path / "m.onnx", target="qonnx")
    assert np.array_equal(file_integers(proto)[0], integers(model, x)["1"])


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.o, self.p = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 2)

    def forward(self, x):
        h = torch.relu(self.a(x))
        return {"cls": self.o(h), "box": [self.p(h)]}


def test_nested_outputs_and_dilated_same_padding_are_exported(tmp_path):
    torch.manual_seed(0)
    same = nn.Conv1d(4, 8, 3, padding="same", dilation=2)
    for model, x in (
        (Heads(), torch.randn(64, 4)),
        (nn.Sequential(same, nn.ReLU(), nn.Conv1d(8, 2, 1)), torch.rand(8, 4, 20)),
    ):
        quantized = to_brevitas(model.eval(), as_batches([x]))
        proto = export_qonnx(quantized, x[:1], tmp_path / "m.onnx", target="qonnx")
        expected = tensors_in(quantized(x[:1]))
        wrapped = ModelWrapper(proto)
        found = execute_onnx(wrapped, {wrapped.graph.input[0].name: x[:1].numpy()})
        for tensor, array in zip(expected, found.values(), strict=True):
            assert np.allclose(tensor.detach().numpy(), array, atol=1e-5)
    assert quantized.get_submodule("0").padding == "same"


@pytest.mark.filterwarnings("ignore:Computing zero point of output accumulator:UserWarning")
@pytest.mark.parametrize("quant", [ShiftedUint8ActPerTensorFixedPoint, Int8ActPerTensorFloat])
def test_integers_of_one_bit_in_activations_are_refused_by_name(quant, tmp_path) -> None:
    act = qnn.QuantIdentity(quant, bit_width=1, return_quant_tensor=True)
    model = nn.Sequential(act, qnn.QuantLinear(6, 4, bias=True, weight_bit_width=4))
    x = torch.randn(8, 6)
    model(x)
    with pytest.raises(ExportRefused, match=r"'0\.act_quant' has integers of one bit"):
        export_qonnx(model.eval(), x[:1], tmp_path / "m.onnx", target="qonnx")
    assert not any(tmp_path.iterdir())
