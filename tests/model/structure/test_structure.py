"""A model's structure as JSON: built again as it was, and nothing run that a folder names."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from brevitas import nn as qnn
from torch import nn

from brevitas_axe.errors import InvalidOption, InvalidState
from brevitas_axe.model.prepare import as_batches, to_brevitas
from brevitas_axe.model.structure.describe import describe
from brevitas_axe.model.structure.rebuild import rebuild
from tests.walk.nets import Residual, data, seeded


@pytest.fixture(scope="module")
def described() -> tuple[nn.Module, str, dict[str, torch.Tensor]]:
    model = to_brevitas(seeded(Residual), as_batches([data(Residual)]))
    content, tensors = describe(model)
    return model, json.dumps(content), tensors


def test_what_is_built_again_computes_the_same(described) -> None:
    model, text, tensors = described
    [again] = rebuild(json.loads(text), tensors)
    x = data(Residual)
    assert torch.equal(model(x), again(x))
    assert again.state_dict().keys() == model.state_dict().keys()
    assert [type(m) for m in again.modules()][1:] == [type(m) for m in model.modules()][1:]


def test_the_quantizers_of_a_copy_refer_to_the_copy(described) -> None:
    model, text, tensors = described
    content, copied = describe(copy.deepcopy(model))
    assert copied.keys() == tensors.keys()
    assert len(content["objects"]) == len(json.loads(text)["objects"])
    [again] = rebuild(content, copied)
    for module in again.modules():
        injector: Any = getattr(module, "quant_injector", None)
        if injector is not None:
            assert injector.proxy_module is module


def test_recurrent_layers_find_their_weights_again() -> None:
    layer = nn.LSTM(3, 4, batch_first=True).eval()
    content, tensors = describe(layer)
    [again] = rebuild(json.loads(json.dumps(content)), tensors)
    x = torch.rand(2, 5, 3)
    assert torch.equal(again(x)[0], layer(x)[0])
    with torch.no_grad():
        again.weight_ih_l0.zero_()
    assert not torch.equal(again(x)[0], layer(x)[0])


def test_values_come_back_as_they_were() -> None:
    values = (
        (1, -2.5, True, None, "text", [1, (2,)], {"a": {3}, 4: slice(1, None, 2)}, ...),
        (float("inf"), torch.float16, torch.Size([2, 3]), torch.arange(3)),
    )
    content, tensors = describe(nn.Linear(2, 2), *values)
    _, first, second = rebuild(json.loads(json.dumps(content)), tensors)
    assert first == values[0]
    assert second[:3] == values[1][:3]
    assert torch.equal(second[3], values[1][3])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("brevitas.nn.quant_conv:QuantConv2d", "subprocess:Popen"),
        ("brevitas.nn.quant_conv:QuantConv2d", "brevitas.nn.quant_conv:nothing"),
        ("torch:flatten", "os:system"),
        ("torch:flatten", "torch:load"),
        ("torch:flatten", "torch:from_file"),
        ("torch:flatten", "brevitas_axe.files:write_whole"),
        ('"objects": [', '"objects": [3, '),
        ('"injectors"', '"others"'),
        ('"op": "output"', '"op": "exec"'),
    ],
)
def test_only_what_computes_is_looked_up(old: str, new: str, described) -> None:
    _, text, tensors = described
    assert old in text
    with pytest.raises(InvalidState):
        rebuild(json.loads(text.replace(old, new)), tensors)


def test_private_attributes_are_not_read(described) -> None:
    _, text, tensors = described
    content = json.loads(text)
    nodes = content["objects"][0]["graph"]["nodes"]
    nodes[-1] |= {"op": "call_method", "target": "__reduce__"}
    with pytest.raises(InvalidState, match="private"):
        rebuild(content, tensors)


def test_what_has_no_name_is_refused_when_it_is_written() -> None:
    layer: Any = qnn.QuantLinear(2, 2)
    layer.rule = lambda x: x
    with pytest.raises(InvalidOption, match="lambda"):
        describe(layer)
    hooked = nn.Sequential(nn.Linear(2, 2))
    hooked[0].register_forward_hook(lambda *_: None)
    with pytest.raises(InvalidOption, match="layer '0' has a forward hook"):
        describe(hooked)
