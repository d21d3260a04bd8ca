"""Text for language models: tokens, windows, perplexity, and embeddings of encoders."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brevitas_axe.errors import EmptyCalibration, InvalidOption

# Windows per forward.
BATCH = 8
_LARGEST_EXPONENT = 700.0  # a perplexity beyond it is infinite as a float


def characters(text: str, vocabulary: int) -> Tensor:
    """Each character as its index among the sorted characters of the text.

    Raises:
        InvalidOption: the text has more characters than the model has tokens.
    """
    alphabet = {character: index for index, character in enumerate(sorted(set(text)))}
    if len(alphabet) > vocabulary:
        raise InvalidOption(
            f"the text has {len(alphabet)} different characters, but the model {vocabulary} "
            "tokens; give the text that it was trained on."
        )
    return torch.tensor([alphabet[character] for character in text])


def windows(tokens: Tensor, length: int) -> Tensor:
    """Cuts [n] tokens into rows of length + 1 that overlap by one token.

    Raises:
        InvalidOption: length is less than 1.
        EmptyCalibration: there are fewer tokens than length + 1.
    """
    if length < 1:
        raise InvalidOption(f"a window needs at least one token, but --context is {length}.")
    if len(tokens) <= length:
        raise EmptyCalibration(
            f"the text has {len(tokens)} tokens, too few for a window of {length}; give a longer "
            "text or a shorter --context."
        )
    return tokens.unfold(0, length + 1, length)


def split(tokens: Tensor, length: int, calibration: int) -> tuple[list[Tensor], Tensor]:
    """Calibration batches from the first nine tenths of a text, evaluation windows from the rest.

    Args:
        tokens: [n].
        length: tokens per window.
        calibration: windows to calibrate with, spread evenly.

    Returns:
        Batches [windows, length] and rows [windows, length + 1].

    Raises:
        InvalidOption: no window to calibrate with, or a window without tokens.
        EmptyCalibration: the text is too short for one window of either kind.
    """
    if calibration < 1:
        raise InvalidOption(
            f"calibration needs at least one window, but --windows is {calibration}."
        )
    cut = len(tokens) * 9 // 10
    rows = windows(tokens[:cut], length)
    spread = rows[torch.linspace(0, len(rows) - 1, min(calibration, len(rows))).long(), :-1]
    return list(spread.split(BATCH)), windows(tokens[cut:], length)


@torch.no_grad()
def perplexity(model: nn.Module, rows: Tensor) -> float:
    """Exponential of the mean cross-entropy (natural logarithm) over every next token of rows.

    Args:
        model: tokens [batch, time] to an output with `logits`, or to the logits.
        rows: [windows, time + 1].
    """
    loss = 0.0
    for batch in rows.to(_device(model)).split(BATCH):
        output: Any = model(batch[:, :-1])
        logits = getattr(output, "logits", output).float()
        loss += F.cross_entropy(
            logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum"
        ).item()
    mean = loss / rows[:, 1:].numel()
    return math.exp(mean) if mean < _LARGEST_EXPONENT else math.inf


@torch.no_grad()
def embeddings(model: nn.Module, rows: Tensor) -> Tensor:
    """The mean of the last hidden states of every window, [windows, features], on the CPU.

    Args:
        model: tokens [batch, time] to an output with `last_hidden_state`.
        rows: [windows, time + 1]; the last token of each is left out.
    """
    parts = rows[:, :-1].to(_device(model)).split(BATCH)
    outputs: list[Any] = [model(part) for part in parts]
    return torch.cat([o.last_hidden_state.float().mean(1).cpu() for o in outputs])


def mean_cosine(found: Tensor, wanted: Tensor) -> float:
    """Mean cosine between the rows of two tensors."""
    return float(F.cosine_similarity(found.double(), wanted.double()).mean())


def _device(model: nn.Module) -> torch.device:
    """Where tokens go.

    Blocks on the disk have no device; the embedding, which reads the tokens, is in memory.
    """
    return next(p.device for p in model.parameters() if p.device.type != "meta")
