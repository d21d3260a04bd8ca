"""Forwards that plain torch.fx does not follow, quantized on their graph."""

from __future__ import annotations

import warnings
from functools import wraps

import pytest
import torch
from brevitas import nn as qnn
from torch import Tensor, nn

from brevitas_axe import certify, load, quantize, save
from brevitas_axe.model.prepare import as_batches, to_brevitas
from brevitas_axe.model.rewrites import differ, rewritten, tensors_in
from brevitas_axe.model.running import float_twin
from brevitas_axe.model.tracing import NamedOutputs, named_outputs, traced_on

X = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def returns_tuple(function):
    """As the decorators of transformers: takes anything, and one option of its own."""

    @wraps(function)
    def wrapper(self, *args, **kwargs):
        named = kwargs.pop("return_dict", True)
        output = function(self, *args, **kwargs)
        return output if named else tuple(output.values())

    return wrapper


class Output(dict):
    """With attributes, as outputs of transformers have them."""

    def __getattr__(self, name: str) -> Tensor:
        return self[name]


class Wrapped(nn.Module):
    """Asks for sizes, adds a stream behind a norm, and gives a named output."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 8, 2, 2), nn.LayerNorm(8)
        self.mix, self.scale = nn.Conv2d(8, 8, 3, padding=1), nn.Parameter(torch.ones(8))
        self.up, self.head = nn.Linear(8, 16), nn.Linear(16, 5)

    @returns_tuple
    def forward(self, pixels: Tensor, labels: Tensor | None = None, **options) -> Output:
        if pixels.shape[1] != 3:
            raise ValueError("no colours")
        batch, _, height, width = pixels.shape
        if width % 2 != 0 or int(height / 2) < 1:
            raise ValueError("odd")
        x = self.patches(pixels)
        x = self.norm(x.flatten(2).transpose(1, 2))
        shape = (*x.shape[:-1], 8)
        x = x.view(shape).transpose(1, 2).reshape(batch, -1, height // 2, width // 2)
        x = x + self.mix(x) * self.scale[:, None, None]
        x = nn.functional.gelu(self.up(x.flatten(2).transpose(1, 2) + torch.zeros(batch, 1, 1)))
        return Output(logits=self.head(x.mean(1)), last=x)


def model() -> nn.Module:
    torch.manual_seed(0)
    return Wrapped().eval()


@pytest.fixture(scope="module")
def quantized() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of the way layer by layer
        return to_brevitas(model(), as_batches([{"pixels": X}]), weight_bit_width=8)


def test_a_wrapped_forward_is_quantized_on_its_graph(quantized) -> None:
    layers = [m for m in quantized.modules() if isinstance(m, (qnn.QuantConv2d, qnn.QuantLinear))]
    assert len(layers) == 4
    with torch.no_grad():
        found, wanted = quantized(pixels=X), model()(X)
        assert differ(tensors_in(wanted), tensors_in(float_twin(quantized)(pixels=X))) < 1e-4
    assert float((found.logits - wanted.logits).norm() / wanted.logits.norm()) < 0.05


def test_outputs_are_read_by_name_attribute_and_position(quantized) -> None:
    with torch.no_grad():
        found = quantized(pixels=X)
    assert isinstance(found, NamedOutputs)
    assert list(found) == ["logits", "last"]
    assert found["logits"] is found.logits is found[0]
    assert len(tensors_in(found)) == 2
    with pytest.raises(AttributeError, match="it has logits, last"):
        _ = found.loss
    assert not hasattr(named_outputs(a=X), "value")


def test_any_number_of_samples_and_other_sizes_that_the_path_allows(quantized) -> None:
    with torch.no_grad():
        both = quantized(pixels=X[:5]).logits
        assert torch.allclose(both[:1], quantized(pixels=X[:1]).logits, atol=1e-5)


def test_a_stream_behind_a_norm_is_rounded_in_front_of_layers_alone(quantized) -> None:
    """Once for the convolution, and not again where it is added."""
    nodes = {node.name: node for node in quantized.graph.nodes}
    [add] = [node for name, node in nodes.items() if name == "add"]
    for source in add.all_input_nodes:
        assert not isinstance(source.args[0], qnn.QuantIdentity)
        rounded = source.args[0].op == "call_module" and hasattr(
            quantized.get_submodule(source.args[0].target), "act_quant"
        )
        assert not rounded


def test_the_walk_from_a_wrapped_forward_to_a_folder_and_back(tmp_path) -> None:
    result = quantize(
        model(), [{"pixels": X}], accumulator_bit_width=16, quality="fast", progress=False
    )
    assert result.certificate.ok
    save(result, tmp_path / "saved")
    again = load(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(again.model(pixels=X).logits, result.model(pixels=X).logits)
    assert certify(again.model, 16, kwargs={"pixels": X[:1]}).ok


class AsksForNumbers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor, **options) -> Tensor:
        return self.layer(x) if x.sum() > 0 else x


def test_a_path_that_depends_on_numbers_is_not_taken_for_one() -> None:
    with pytest.raises(ValueError, match="depends on numbers in tensors"):
        traced_on(AsksForNumbers(), ((torch.ones(2, 3),), {}))


class CountsSamples(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor, **options) -> Tensor:
        return self.layer(x) * int(x.shape[0])


def test_a_number_of_samples_does_not_become_part_of_the_graph() -> None:
    with pytest.raises(Exception, match="computes something else"):
        rewritten(CountsSamples().eval(), ((torch.ones(8, 3),), {}))


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        x.add_(1)
        return self.layer(x) + others[0]


def test_samples_stay_what_they_are_and_further_inputs_have_names() -> None:
    x, other = torch.ones(4, 3), torch.zeros(4, 3)
    graph = traced_on(InPlace(), ((x, other), {}))
    assert torch.equal(x, torch.ones(4, 3))
    assert [n.target for n in graph.graph.nodes if n.op == "placeholder"] == ["x", "input_1"]


class Options(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor, mask: Tensor | None = None, **options) -> Tensor:
        x = self.layer(x) if mask is None else self.layer(x) * mask
        return x if options["twice"] is False else 2 * x


def test_options_without_tensors_are_what_the_sample_has() -> None:
    x, net = torch.ones(4, 3), Options()
    for mask, twice in ((None, False), (torch.zeros(4, 3), True)):
        given = {"x": x, "mask": mask, "twice": twice}
        graph = traced_on(net, ((), given))
        assert torch.equal(graph(**given), net(**given))
