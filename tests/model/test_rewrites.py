"""Models of strangers: quantized on their graph without a change of function, or told why not."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from brevitas import nn as qnn
from brevitas.quant_tensor import QuantTensor
from torch import Tensor, nn

from brevitas_axe.accumulator import InputRange
from brevitas_axe.model import rewrites
from brevitas_axe.model.layers import find_layers, find_unquantized
from brevitas_axe.model.prepare import as_batches, to_brevitas
from brevitas_axe.model.rewrites import differ, rewritten, tensors_in
from brevitas_axe.model.running import float_twin, observe_inputs

X = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def error(quantized: nn.Module, model: nn.Module, *args: Tensor) -> float:
    with torch.no_grad():
        return float((quantized(*args) - model(*args)).norm() / model(*args).norm())


def test_relu6_stays_what_it_is() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU6(), nn.Conv2d(6, 6, 3), nn.ReLU6()).eval()
    x = 100 * X
    quantized = to_brevitas(model, as_batches([x]), weight_bit_width=8)
    with torch.no_grad():
        assert float(quantized(x).max()) <= 6 * (1 + 1e-5)
    assert error(quantized, model, x) < 0.05
    assert differ(tensors_in(model(x)), tensors_in(float_twin(quantized)(x))) < 1e-4


# Every rewrite that is made of a user's model before it gets quantizers.
REWRITES = [
    "replacing functions by modules",
    "copying modules that are called twice",
    "replacing means by pooling",
    "joining concatenations",
    "moving batch norms in front of concatenations",
    "folding batch norms into layers",
    "removing dropout",
    "replacing methods by modules",
]


def test_these_are_all_rewrites() -> None:
    assert list(rewrites._STEPS) == REWRITES


@pytest.mark.parametrize("name", [*REWRITES, "another"])
def test_a_rewrite_that_changes_the_function_is_left_out_and_named(name, monkeypatch) -> None:
    def wrong(graph):
        graph.get_parameter("0.weight").data.mul_(2)
        return graph

    monkeypatch.setitem(rewrites._STEPS, name, wrong)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    with pytest.warns(UserWarning, match=f"{name} would change what the model computes"):
        graph = rewritten(model, ((X,), {}))
    assert differ(tensors_in(model(X)), tensors_in(graph(X))) < 1e-4
    folds = name != "folding batch norms into layers"
    assert any(isinstance(m, nn.BatchNorm2d) for m in graph.modules()) != folds


def test_a_rewrite_that_fails_is_left_out(monkeypatch) -> None:
    def fails(graph):
        raise AssertionError

    monkeypatch.setitem(rewrites._STEPS, "joining concatenations", fails)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    graph = rewritten(model, ((X,), {}))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in graph.modules())


def test_deep_nets_that_enlarge_rounding_are_folded_too() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(
            layer
            for _ in range(40)
            for layer in (nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())
        )
    ).train()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None
    with torch.no_grad():
        model(X)
    graph = rewritten(model.eval(), ((X,), {}))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in graph.modules())


def test_a_fall_back_says_one_thing_on_stderr_and_no_foreign_traceback() -> None:
    script = """
import torch
from brevitas_axe.model.prepare import as_batches, to_brevitas
from tests.model.test_rewrites import DataDecides, X
to_brevitas(DataDecides().eval(), as_batches([X]))
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    said = [line for line in ran.stderr.splitlines() if "fast_hadamard" not in line]
    assert [line for line in said if "DataDecides is quantized layer by layer" in line]
    assert len(said) <= 2, ran.stderr  # the warning, and the line that it stands at


class Cat(nn.Module):
    """Concatenated ReLUs, as in a UNet or DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.c = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        a = F.relu(self.a(x))
        return self.c(torch.cat([a, F.relu(self.b(a))], 1))


class PooledReLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 2)

    def forward(self, x):
        return self.c(F.relu(self.a(x)).mean((2, 3)))


@pytest.mark.parametrize("build", [Cat, PooledReLU])
def test_what_relus_give_is_unsigned(build) -> None:
    torch.manual_seed(0)
    quantized = to_brevitas(build().eval(), as_batches([X]))
    ranges = observe_inputs(quantized, find_layers(quantized), (X,))
    assert list(ranges.values()) == [[InputRange(0, 255)]] * len(ranges)
    assert not any(getattr(m, "observer_only", False) for m in quantized.modules())


class Sliced(nn.Module):
    """The option-A shortcut of CIFAR ResNets."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.b, self.c = nn.Conv2d(4, 8, 3, padding=1, stride=2), nn.Linear(8, 2)

    def forward(self, x):
        x = F.relu(self.a(x))
        x = F.relu(self.b(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))
        return self.c(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Chunked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        left, right = F.relu(self.a(x)).chunk(2, 1)
        return torch.cat([left, F.relu(self.b(right))], 1)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return self.b(F.relu(self.b(F.relu(self.a(x)))))


class PlusItself(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return x + self.a(x)


class SumOfSums(nn.Module):
    """Brevitas aligns its scales without an end."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = F.relu(self.a(x))
        return self.b(F.relu(self.b(x) + x) + x)


class DataDecides(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.a(x))
        return self.b(x) if x.sum() > 0 else x


class Optional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x, mask=None):
        x = F.relu(self.a(x))
        return self.b(x if mask is None else x * mask)


class Shuffled(nn.Module):
    """Channels shuffled as in ShuffleNet, by sizes that the forward asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.c = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = F.relu(self.a(x))
        left, right = torch.chunk(x, chunks=2, dim=1)
        x = torch.cat((left, F.relu(self.b(right))), dim=1)
        n, c, h, w = x.size()
        x = x.view(n, 2, c // 2, h, w)
        x = torch.transpose(x, 1, 2).contiguous().view(n, c, h, w)
        return self.c(x)


class Padded(nn.Module):
    """A shifted copy beside the original, as in shake-shake."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(8, 2, 1)
        self.pad = nn.ZeroPad2d((1, 0, 1, 0))

    def forward(self, x):
        x = F.relu(self.a(x))
        return self.b(torch.cat((x, self.pad(x[:, :, :-1, :-1].contiguous())), dim=1))


class Weighed(nn.Module):
    """Squeeze and excitation: a product of two activations, and a factor."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.c = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = F.relu(self.a(x))
        return self.c(0.5 * x * torch.sigmoid(self.b(F.adaptive_avg_pool2d(x, 1))))


class Catted(nn.Module):
    """A batch norm behind a concatenation that is written with a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.norm, self.c = nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        return self.c(F.relu(self.norm(torch.cat((self.a(x), self.b(x)), dim=1))))


UNKNOWN = [Sliced, Chunked, Twice, PlusItself, SumOfSums, Optional, Shuffled, Padded, Weighed]


@pytest.mark.parametrize("build", [*UNKNOWN, Catted])
def test_what_brevitas_does_not_know_is_quantized_on_the_graph(build) -> None:
    torch.manual_seed(0)
    model = build().eval()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*(layer by layer|left out).*")
        quantized = to_brevitas(model, as_batches([X]), weight_bit_width=8)
    assert not find_unquantized(quantized)
    ranges = observe_inputs(quantized, find_layers(quantized), (X,))
    assert all(reach == InputRange(0, 255) for calls in ranges.values() for reach in calls)
    assert error(quantized, model, X) < 0.02
    assert differ(tensors_in(model(X[:3])), tensors_in(float_twin(quantized)(X[:3]))) < 1e-4


@pytest.mark.parametrize("build", [Chunked, Shuffled, Padded])
def test_what_is_only_moved_is_not_rounded_again(build) -> None:
    torch.manual_seed(0)
    quantized = to_brevitas(build().eval(), as_batches([X]))
    identities = [m for m in quantized.modules() if isinstance(m, qnn.QuantIdentity)]
    assert len(identities) == 1  # the model's input


@pytest.mark.parametrize("build", [DataDecides])
def test_a_path_that_data_decides_is_told_and_quantized_layer_by_layer(build, capfd) -> None:
    torch.manual_seed(0)
    model = build().eval()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        quantized = to_brevitas(model, as_batches([X]), weight_bit_width=8)
    told = [w for w in told if "is quantized layer by layer" in str(w.message)]
    assert len(told) == 1
    assert "Traceback" not in capfd.readouterr().err
    assert not find_unquantized(quantized)
    ranges = observe_inputs(quantized, find_layers(quantized), (X,))
    assert all(reach == InputRange(0, 255) for calls in ranges.values() for reach in calls)
    assert error(quantized, model, X) < 0.02


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(16, 3)

    def forward(self, p, q):
        return self.o(torch.relu(torch.cat([self.a(p), self.b(q)], 1)))


def test_inputs_go_by_name_whatever_their_order() -> None:
    torch.manual_seed(0)
    model, p, q = Two().eval(), torch.randn(256, 4), torch.rand(256, 4)
    for batch in ({"p": p, "q": q}, {"q": q, "p": p}, (p, q), (p, q, torch.zeros(256))):
        batches = as_batches([batch], model)
        quantized = to_brevitas(model, batches, weight_bit_width=8)
        ranges = observe_inputs(quantized, find_layers(quantized), (p, q))
        assert ranges["a"] == [InputRange(-128, 127)]
        assert ranges["b"] == [InputRange(0, 255)]
        assert error(quantized, model, p, q) < 0.03


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.o, self.p = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 2)

    def forward(self, x):
        h = torch.relu(self.a(x))
        return {"cls": self.o(h), "rest": [self.p(h), (h,)]}


def test_nested_outputs_are_plain_tensors() -> None:
    torch.manual_seed(0)
    model, x = Heads().eval(), torch.randn(64, 4)
    output = to_brevitas(model, as_batches([x]), weight_bit_width=8)(x)
    assert list(output) == ["cls", "rest"]
    leaves = (output["cls"], output["rest"][0], output["rest"][1][0])
    assert all(type(leaf) is Tensor and not isinstance(leaf, QuantTensor) for leaf in leaves)
    assert differ(tensors_in(model(x)), tensors_in(output)) < 0.05


def test_a_subclass_that_changes_nothing_is_quantized() -> None:
    class MyLinear(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), MyLinear(8, 3)).eval()
    quantized = to_brevitas(model, as_batches([torch.rand(8, 4)]))
    assert isinstance(quantized.get_submodule("2"), qnn.QuantLinear)
    assert type(model[2]) is MyLinear
