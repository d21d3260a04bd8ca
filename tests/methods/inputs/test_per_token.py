from __future__ import annotations

import torch
from brevitas import nn as qnn

from brevitas_axe.methods.inputs.per_token import per_token


def test_one_large_token_leaves_the_others_their_scale() -> None:
    x = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    identity = qnn.QuantIdentity(per_token.symmetric, bit_width=8, return_quant_tensor=True).eval()
    before = identity(x).scale.flatten()
    assert before.numel() == 15
    x[1, 2] *= 100
    after = identity(x).scale.flatten()
    others = torch.arange(15) != 7
    assert torch.equal(before[others], after[others])
    torch.testing.assert_close(after[7], 100 * before[7])
