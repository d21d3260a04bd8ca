from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from brevitas_axe.errors import EmptyCalibration, InvalidOption
from brevitas_axe.run.text import characters, perplexity, split, windows


@given(st.text(min_size=1))
def test_characters_can_be_read_back(text: str) -> None:
    alphabet = sorted(set(text))
    assert "".join(alphabet[token] for token in characters(text, len(alphabet))) == text


def test_too_many_characters_are_refused() -> None:
    with pytest.raises(InvalidOption, match="3 different characters"):
        characters("abc", 2)


def test_windows_predict_every_token_once() -> None:
    rows = windows(torch.arange(13), 4)
    assert rows[:, 1:].flatten().tolist() == list(range(1, 13))
    with pytest.raises(EmptyCalibration, match="too few"):
        windows(torch.arange(4), 4)


@pytest.mark.parametrize("count", [0, -3])
def test_windows_without_tokens_and_calibration_without_windows_are_refused(count: int) -> None:
    with pytest.raises(InvalidOption, match=f"--context is {count}"):
        windows(torch.arange(13), count)
    with pytest.raises(InvalidOption, match=f"--windows is {count}"):
        split(torch.arange(1000), 10, count)


def test_calibration_and_judged_text_are_apart() -> None:
    batches, judged = split(torch.arange(1000), 10, 20)
    seen = torch.cat(batches)
    assert seen.shape == (20, 10)
    assert seen.max() < 900 <= judged.min()


class Fixed(nn.Module):
    """Gives token 0 one probability, the other three the rest evenly."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        rest = (1 - probability) / 3
        self.logits = nn.Parameter(torch.tensor([probability, rest, rest, rest]).log())

    def forward(self, tokens):
        return self.logits.expand(*tokens.shape, 4)


@given(st.floats(0.01, 0.99))
def test_perplexity_is_the_inverse_probability(probability: float) -> None:
    rows = torch.zeros(5, 7, dtype=torch.int64)
    assert math.isclose(perplexity(Fixed(probability), rows), 1 / probability, rel_tol=1e-5)
