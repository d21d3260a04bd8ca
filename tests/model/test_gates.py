"""Activation functions that are factors stay in float, and what they multiply is proven."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brevitas_axe.export.qonnx import export_qonnx
from brevitas_axe.model.gates import Gate
from brevitas_axe.proof.certificate import certify_file
from brevitas_axe.run.quantize import quantize

X = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Gated(nn.Module):
    """Hard swish, squeeze and excitation, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.squeeze = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.excite, self.head = nn.Conv2d(4, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x * F.relu6(x + 3.0) / 6.0
        w = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1))))
        x = x * (F.relu6(w + 3.0) / 6.0)
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class Read(nn.Module):
    """A sigmoid that multiplies, and that a layer reads as well."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.a(x))
        return self.b(gate) + self.c(x * gate)


@torch.no_grad()
def test_a_gated_net_is_proven_and_near_its_float_function(tmp_path) -> None:
    net = Gated().eval()
    options = {"accumulator_bit_width": 20, "weight_bit_width": 8, "quality": "fast"}
    result = quantize(net, [X], **options, progress=False)
    assert result.certificate.ok
    assert sum(isinstance(module, Gate) for module in result.model.modules()) == 2
    assert (result.model(X) - net(X)).norm() <= 0.02 * net(X).norm()
    path = tmp_path / "net.onnx"
    export_qonnx(result.model, X[:1], path, target="qonnx")
    assert certify_file(path, 20).ok


def test_what_a_layer_reads_is_quantized_for_it() -> None:
    x = X.flatten()[: 24 * 6].reshape(24, 6)
    options = {"accumulator_bit_width": 16, "quality": "fast"}
    result = quantize(Read().eval(), [x], **options, progress=False)
    assert not any(isinstance(module, Gate) for module in result.model.modules())
    assert result.certificate.ok
