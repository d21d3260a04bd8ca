from __future__ import annotations

import torch
from brevitas import nn as qnn

from brevitas_axe.methods.inputs.dynamic import dynamic


def test_the_scale_follows_what_arrives() -> None:
    x = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    identity = qnn.QuantIdentity(dynamic.symmetric, bit_width=8, return_quant_tensor=True).eval()
    assert identity(x).scale.numel() == 1
    torch.testing.assert_close(identity(4 * x).scale, 4 * identity(x).scale)
