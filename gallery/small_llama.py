"""A trained Llama of 4.7 M parameters, the linear layers of its blocks quantized.

Judged by how often the likeliest next token is the right one, on text that the model has not seen.
Model and text are in the folder that BREVITAS_AXE_DATA names; see benchmarks/splits.py.
"""

from __future__ import annotations

import copy

import torch
from whole_way import benchmark, whole_way

LLAMA, CALIBRATION, UNSEEN = benchmark("splits").language_model()


class Logits(torch.nn.Module):
    """Token ids [n, length] to logits [n, length, tokens]."""

    def __init__(self) -> None:
        super().__init__()
        self.llama = copy.deepcopy(LLAMA)

    def forward(self, tokens):
        return self.llama(tokens, use_cache=False).logits


def build():
    return Logits().eval()


def data():
    return [*CALIBRATION[:32].split(8)]


def accuracy(model):
    batches = UNSEEN[:64].split(16)
    right = [model(x)[:, :-1].argmax(-1) == x[:, 1:] for x in batches]
    return torch.cat(right).float().mean()


if __name__ == "__main__":
    options = "--accumulator-bits 16 --tile-size 64 --weight-bits 4 --input-bits 8"
    whole_way(__file__, "Llama of 4.7 M parameters, WikiText-2", options, measure="next token")
