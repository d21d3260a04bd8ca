"""A trained Llama of 4.7 M parameters, the linear layers of its blocks quantized.

Judged by how often the likeliest next token is the right one. Model and text are in the folder that
BREVITAS_AXE_DATA names.
"""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from whole_way import benchmark, whole_way

FOLDER = benchmark("records").DATA / "llama_text"
# Of the text that the model was not trained on, from here on.
HELD_OUT, LENGTH = 895_446, 256


class Logits(torch.nn.Module):
    """Token ids [n, length] to logits [n, length, tokens]."""

    def __init__(self) -> None:
        super().__init__()
        self.llama = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)

    def forward(self, tokens):
        return self.llama(tokens, use_cache=False).logits


def windows(text: str, count: int):
    """The first tokens of a text, [count, LENGTH]."""
    tokens = AutoTokenizer.from_pretrained(FOLDER)(text, return_tensors="pt").input_ids[0]
    return tokens[: count * LENGTH].view(count, LENGTH)


def text() -> str:
    return (FOLDER.parent / "wikitext2_valid.txt").read_text(encoding="utf-8")


def build():
    return Logits().eval()


def data():
    return [*windows(text()[:HELD_OUT], 32).split(8)]


def accuracy(model):
    batches = windows(text()[HELD_OUT:], 64).split(16)
    right = [model(x)[:, :-1].argmax(-1) == x[:, 1:] for x in batches]
    return torch.cat(right).float().mean()


if __name__ == "__main__":
    options = "--accumulator-bits 16 --weight-bits 4 --input-bits 8 --quality fast"
    whole_way(__file__, "Llama of 4.7 M parameters, WikiText-2", options, measure="next token")
