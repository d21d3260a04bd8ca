from __future__ import annotations

import torch
from brevitas import nn as qnn
from brevitas.graph.calibrate import calibration_mode

from brevitas_axe.methods.inputs.static import static


def test_the_scale_is_that_of_calibration_whatever_arrives() -> None:
    x = torch.linspace(-1, 1, 1001)
    identity = qnn.QuantIdentity(static.symmetric, bit_width=8, return_quant_tensor=True)
    with torch.no_grad(), calibration_mode(identity):
        identity(x)
    identity.eval()
    assert identity(x).scale.item() == identity(100 * x).scale.item()
    assert abs(identity(x).scale.item() * 128 - 1) < 1e-3
