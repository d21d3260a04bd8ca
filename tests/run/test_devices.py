"""Models and data on another device: no path mixes devices, and the integers are the CPU's."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import OPTConfig, OPTForCausalLM

from brevitas_axe.model.apply.weights import apply_plan
from brevitas_axe.model.devices import building_for, device_of, input_device, moved
from brevitas_axe.model.layers import find_layers, integer_weight
from brevitas_axe.model.prepare import as_batches, to_brevitas
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.proof.certificate import certify
from brevitas_axe.recipe import Recipe, Run
from brevitas_axe.registry import method, methods
from brevitas_axe.run.allocate import allocate
from brevitas_axe.run.finetune import finetune
from brevitas_axe.run.quantize import quantize
from tests.elsewhere import DEVICE, Elsewhere, ElsewhereTensor
from tests.model.test_prepare import X, conv_net

OPTIONS: dict[str, Any] = {"accumulator_bit_width": 18, "weight_bit_width": 6, "input_bit_width": 6}
LABELS = torch.arange(len(X)) % 3
FEATURES = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
TOKENS = [torch.randint(0, 50, (2, 6), generator=torch.Generator().manual_seed(0))]
LINEAR = Plan({name: LayerPrecision(weight=6, input=6, accumulator=18) for name in ("0", "2")})


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


def layers() -> nn.Module:
    """Two linear layers."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)).eval()


def small_blocks() -> nn.Module:
    """A decoder of two blocks, 8 wide."""
    torch.manual_seed(0)
    width: dict[str, Any] = {"hidden_size": 8, "ffn_dim": 8, "word_embed_proj_dim": 8}
    depth: dict[str, Any] = {
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
    }
    return OPTForCausalLM(OPTConfig(**width, **depth, vocab_size=50, bos_token_id=0)).eval()


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


@pytest.mark.parametrize("inputs", methods("inputs"))
def test_blocks_are_solved_where_they_lie(inputs):
    options: dict[str, Any] = {**OPTIONS, "quality": "fast", "recipe": Recipe(inputs=inputs)}
    block = "model.decoder.layers.0"
    options["exclude"] = ("model.decoder.layers.1", f"{block}.self_attn", f"{block}.fc2")
    result = quantize(there(small_blocks()), TOKENS, **options, progress=False)
    assert result.certificate.ok
    assert device_of(result.model) == DEVICE
    assert same(result.model, quantize(small_blocks(), TOKENS, **options, progress=False).model)


@pytest.mark.parametrize("scorer", methods("sensitivity"))
def test_every_scorer_measures_where_the_model_lies(scorer):
    choices, run = {"weight": (4, 6), "input": (6,)}, Run(progress=False)
    data = [(FEATURES, torch.arange(len(FEATURES)) % 3)]
    model = there(to_brevitas(layers(), as_batches([FEATURES])))
    quick = f"{scorer}:probes=1" if hasattr(method("sensitivity", scorer), "probes") else scorer
    chosen = allocate(model, data, {"memory": 1e9}, choices, scorer=quick, run=run)
    assert {precision.weight for precision in chosen.plan.layers.values()} <= {4, 6}


@pytest.mark.parametrize("quantizer", ["a2q", "a2q+"])
def test_weights_that_train_under_a_budget_lie_with_the_model(quantizer):
    model = there(layers())
    given = FEATURES.to(DEVICE)
    trained = to_brevitas(model, as_batches([FEATURES], model))
    apply_plan(trained, LINEAR, quantizer=quantizer, args=(given,))
    trained(given).sum().backward()
    assert certify(trained, args=(given,)).ok


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
