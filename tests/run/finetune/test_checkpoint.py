"""Saved runs, model states with Brevitas's counters, and borrowed generators."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from brevitas import nn as qnn
from brevitas.graph.calibrate import calibration_mode
from brevitas.quant import Int8WeightPerChannelFloat, Uint8ActPerTensorFloat
from torch import nn

from brevitas_axe.errors import InvalidState
from brevitas_axe.model.apply.weights import apply_plan
from brevitas_axe.model.quantizers import Int8WeightPerChannelFloatAXE
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.proof.certificate import certify
from brevitas_axe.run.finetune import finetune
from brevitas_axe.run.finetune.checkpoint import SavedRun, load_model_state, model_state, seeded
from brevitas_axe.run.quantize import quantize


def test_the_last_save_comes_back(tmp_path: Path):
    saved = SavedRun(tmp_path / "new", "run")
    assert saved.load() is None
    for epoch in (1, 2):
        saved.save({"epoch": epoch, "weight": torch.full((3,), float(epoch))})
    content = SavedRun(tmp_path / "new", "run").load()
    assert content is not None
    assert content["epoch"] == 2
    assert torch.equal(content["weight"], torch.full((3,), 2.0))
    with pytest.raises(InvalidState, match="another model or setting"):
        SavedRun(tmp_path / "new", "another").load()


def activation() -> nn.Module:
    return nn.Sequential(qnn.QuantReLU(act_quant=Uint8ActPerTensorFloat))


def test_statistics_go_on_where_they_were():
    model = activation().train()
    torch.manual_seed(0)
    data = torch.rand(6, 8, 5)
    for x in data[:3]:
        model(x)
    copied = activation().train()
    load_model_state(copied, model_state(model))
    for x in data[3:]:
        assert torch.equal(model(x), copied(x))


def test_a_state_is_a_copy():
    model = nn.Linear(2, 2)
    state = model_state(model)
    expected = model.weight.detach().clone()
    model.weight.data.zero_()
    load_model_state(model, state)
    assert torch.equal(model.weight, expected)


def test_generators_are_seeded_and_given_back():
    class Loader:
        generator = torch.Generator().manual_seed(9)

    def drawn() -> tuple:
        numbers = torch.rand(2).tolist(), random.random(), float(np.random.rand())  # noqa: NPY002
        return *numbers, torch.rand(2, generator=Loader.generator).tolist()

    torch.manual_seed(1), random.seed(1), np.random.seed(1)  # noqa: NPY002
    Loader.generator.manual_seed(9)
    expected = drawn()
    torch.manual_seed(1), random.seed(1), np.random.seed(1)  # noqa: NPY002
    Loader.generator.manual_seed(9)
    with seeded(5, (Loader(),)):
        first = drawn()
    assert drawn() == expected != first
    with seeded(5, (Loader(),)):
        assert drawn() == first


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = torch.relu(self.a(x))
        return self.o(torch.relu(self.b(x) + x))


def shared(model: nn.Module) -> list[tuple[str, ...]]:
    """Names of scales that are one object under several names."""
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if name.endswith("scaling_impl"):
            names.setdefault(id(module), []).append(name)
    return sorted(tuple(found) for found in names.values() if len(found) > 1)


def test_a_residual_net_trains_and_its_shared_quantizers_stay_shared(tmp_path):
    torch.manual_seed(0)
    x, labels = torch.rand(32, 6), torch.randint(3, (32,))
    result = quantize(Residual(), [x], accumulator_bit_width=14, progress=False)
    before = shared(result.model)
    assert before
    options = {"epochs": 2, "progress": False, "state": tmp_path / "run"}
    tuned = finetune(result.model, [(x, labels)], **options)
    assert tuned.certificate.ok
    assert shared(tuned.model) == before
    again = finetune(result.model, [(x, labels)], **options)  # all from the saved state
    assert torch.equal(tuned.model(x), again.model(x))
    again.model.load_state_dict(tuned.model.state_dict())
    assert shared(again.model) == before


def test_a_plan_that_changed_does_not_go_on_from_the_state_of_another(tmp_path):
    torch.manual_seed(0)
    x, labels = torch.rand(32, 6), torch.randint(3, (32,))
    result = quantize(Residual(), [x], accumulator_bit_width=14, progress=False)
    options = {"epochs": 1, "progress": False, "state": tmp_path / "run"}
    finetune(result, [(x, labels)], **options)
    narrower = Plan.uniform(result.plan.layers, LayerPrecision(accumulator=12))
    apply_plan(result.model, narrower, args=(x,))
    with pytest.raises(InvalidState, match="another model or setting"):
        finetune(result, [(x, labels)], **options)
    options["state"] = tmp_path / "narrower"
    tuned = finetune(result, [(x, labels)], **options)
    assert {p.accumulator for p in tuned.plan.layers.values()} == {12}
    assert {p.weight for p in tuned.plan.layers.values()} == {4}
    assert torch.equal(finetune(result, [(x, labels)], **options).model(x), tuned.model(x))


def test_what_cannot_be_written_is_told_before_the_first_step(tmp_path):
    class Schedule(torch.optim.lr_scheduler.LambdaLR):
        def state_dict(self):
            return {"shape": print}

    x = torch.rand(32, 6)
    steps = []

    def loss(output, batch):
        steps.append(output)
        return output.square().mean()

    result = quantize(Residual(), [x], accumulator_bit_width=14, quality="fast", progress=False)
    with pytest.raises(InvalidState, match="optimizer or scheduler"):
        finetune(
            result,
            [x],
            loss=loss,
            scheduler=lambda optimizer, _: Schedule(optimizer, lambda step: 1.0),
            state=tmp_path,
            progress=False,
        )
    assert not steps
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_quantizer_loads():
    torch.manual_seed(0)
    x = torch.rand(16, 6)

    def net(quantizer: type) -> nn.Sequential:
        act = qnn.QuantIdentity(act_quant=Uint8ActPerTensorFloat, return_quant_tensor=True)
        return nn.Sequential(act, qnn.QuantLinear(6, 4, bias=True, weight_quant=quantizer))

    trained, ours = net(Int8WeightPerChannelFloat), net(Int8WeightPerChannelFloatAXE)
    for model in (trained, ours):
        with torch.no_grad(), calibration_mode(model.eval()):
            model(x)
    ours.load_state_dict(trained.state_dict())
    assert torch.allclose(ours(x), trained(x), atol=1e-6)
    assert certify(ours, 32, args=x).ok
    broken = {k: v for k, v in ours.state_dict().items() if not k.endswith("input_low")}
    with pytest.raises(RuntimeError, match="input_low"):
        ours.load_state_dict(broken)


def test_a_checkpoint_of_a_learned_scale_keeps_it():
    learned = Int8WeightPerChannelFloat.let(scaling_impl_type="parameter_from_stats")
    trained, ours = (
        qnn.QuantLinear(6, 4, weight_quant=quantizer, input_quant=Uint8ActPerTensorFloat)
        for quantizer in (learned, Int8WeightPerChannelFloatAXE)
    )
    x = torch.rand(8, 6)
    for model in (trained, ours):
        model.train()(x)
    with torch.no_grad():
        trained.weight_quant.tensor_quant.scaling_impl.value.mul_(1.5)
    ours.load_state_dict(trained.state_dict())
    assert torch.equal(ours.eval()(x), trained.eval()(x))


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04", b"\x80\x02N.", b"\x80\x02]."])
def test_a_valid_digest_around_garbage(tmp_path: Path, content: bytes):
    data = hashlib.sha256(content).digest() + content
    (tmp_path / "training.saved").write_bytes(data)
    with pytest.raises(InvalidState, match="delete it"):
        SavedRun(tmp_path, "run").load()
