"""How much an error of what a piece of a model gives changes what the model says.

The diagonal of the Fisher information: the mean of the squared gradient of the logarithm of a
label's probability. The label is drawn from what the model itself says, so that calibration data
needs none; with the true labels of BRECQ (Li et al., arXiv 2102.05426, equation 10) a model that
is right everywhere would have hardly any gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from brevitas_axe.model.pieces import Piece, arguments
from brevitas_axe.model.running import Batch, all_learned

# What the squared errors of each tensor that a piece gives are multiplied by.
Weights = list[Tensor]


def fisher_weights(
    pieces: Sequence[Piece],
    model: nn.Module,
    batches: Sequence[Batch],
    generator: torch.Generator,
) -> list[list[Weights]]:
    """Weights of squared errors, for every piece and batch.

    Args:
        pieces: of the model, which they make up together. Classes are along the last axis of what
            the last one gives.
        model: in float.
        batches: for each a forward and a backward, whose activations are held meanwhile.
        generator: of the labels, one for every sample and position.

    Returns:
        In the shapes of what the pieces give, of mean 1.
    """
    found: list[list[Weights]] = [[] for _ in pieces]
    for batch in batches:
        values, given = arguments(model, pieces[0], batch), []
        with torch.enable_grad(), all_learned(model):
            for piece in pieces:
                values = piece.run(model, values)
                given.append(piece.given(values))
            chance = sum((_of_labels(x, generator) for x in given[-1]), torch.zeros(()))
        flat = [tensor for tensors in given for tensor in tensors]
        slopes = iter(torch.autograd.grad(chance, flat, allow_unused=True, materialize_grads=True))
        for weights, tensors in zip(found, given, strict=True):
            weights.append([_of_mean_one(next(slopes).square()) for _ in tensors])
    return found


def _of_labels(output: Tensor, generator: torch.Generator) -> Tensor:
    """Sum of the logarithms of the probabilities of labels that are drawn from them."""
    chances = output.reshape(-1, output.shape[-1]).log_softmax(-1)
    drawn = torch.multinomial(chances.detach().exp().float().cpu(), 1, generator=generator)
    return chances.gather(-1, drawn.to(chances.device)).sum().cpu()


def _of_mean_one(squares: Tensor) -> Tensor:
    mean = squares.mean()
    return squares / mean if mean > 0 else torch.ones_like(squares)
