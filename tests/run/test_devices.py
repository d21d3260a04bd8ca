"""Models and data on another device: no path mixes devices, and the integers are the CPU's."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from brevitas_axe.model.devices import building_for, device_of, input_device, moved
from brevitas_axe.model.layers import find_layers, integer_weight
from brevitas_axe.proof.certificate import certify
from brevitas_axe.run.finetune import finetune
from brevitas_axe.run.quantize import quantize
from tests.elsewhere import DEVICE, Elsewhere, ElsewhereTensor
from tests.model.test_prepare import X, conv_net

OPTIONS = {"accumulator_bit_width": 18, "weight_bit_width": 6, "input_bit_width": 6}
LABELS = torch.arange(len(X)) % 3


@pytest.fixture(autouse=True)
def device() -> Iterator[None]:
    """Tensors that may be made on the device."""
    with Elsewhere():
        yield


def there(model: nn.Module) -> nn.Module:
    """A copy on the device, as `model.to(DEVICE)` makes it of a real one."""
    model = copy.deepcopy(model)
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                value = ElsewhereTensor(parameter.detach())
                module._parameters[name] = nn.Parameter(value, parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = ElsewhereTensor(buffer)
    return model


def integers(model: nn.Module) -> dict[str, Tensor]:
    return {n: integer_weight(n, layer)[0].cpu() for n, layer in find_layers(model).items()}


def same(one: nn.Module, other: nn.Module) -> bool:
    left, right = integers(one), integers(other)
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def test_the_device_refuses_to_be_mixed():
    with pytest.raises(RuntimeError, match="mixes tensors"):
        X.to(DEVICE) + X
    with pytest.raises(RuntimeError, match="is replaced by data"):
        there(nn.Linear(2, 2)).weight.data = torch.ones(2, 2)


@pytest.mark.parametrize("data", ["on the device", "on the CPU"])
def test_a_whole_model_is_solved_where_it_lies(data):
    model = there(conv_net().eval())
    given = [X.to(DEVICE)] if data == "on the device" else [X]
    result = quantize(model, given, **OPTIONS, progress=False)
    assert device_of(result.model) == DEVICE
    assert result.certificate.ok
    assert same(result.model, quantize(conv_net().eval(), [X], **OPTIONS, progress=False).model)
    assert certify(result.model, args=(X.to(DEVICE),)).ok


def test_a_model_is_trained_where_it_lies():
    solved = quantize(there(conv_net().eval()), [X], **OPTIONS, progress=False)
    options = {"epochs": 2, "learning_rate": 0.05, "progress": False}
    trained = finetune(solved.model, [(X, LABELS)], **options)
    assert trained.certificate.ok
    assert device_of(trained.model) == DEVICE
    assert not same(trained.model, solved.model)


def test_batches_follow_a_model_on_one_device_only():
    batch = [((X, "a word"), {"mask": X})]
    [(args, kwargs)] = moved(batch, device_of(there(nn.Linear(2, 2))))
    assert args[0].device == kwargs["mask"].device == DEVICE
    assert args[1] == "a word"
    split = nn.Sequential(nn.Linear(2, 2), there(nn.Linear(2, 2)))
    for model in (split, nn.ReLU()):
        assert device_of(model) is None
    assert moved(batch, None) is batch


def test_dictionaries_of_classes_of_their_own_are_moved_too():
    class Encoding(dict):
        pass

    data = Encoding(x=X, parts=[Encoding(y=X)])
    found = moved((data, X), input_device(there(nn.Linear(2, 2))))
    assert found[0]["x"].device == found[0]["parts"][0]["y"].device == found[1].device == DEVICE


def test_what_is_built_for_a_model_lies_beside_it():
    with building_for(there(nn.Linear(2, 2))):
        assert torch.tensor(1.0).device == DEVICE
    with building_for(nn.Linear(2, 2)):
        assert torch.tensor(1.0).device == X.device
