"""Batches, losses on them, and scores of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brevitas_axe.errors import EmptyCalibration, InvalidOption
from brevitas_axe.methods.sensitivity.metrics import (
    class_axis,
    classes_last,
    cross_entropy,
    labels_of,
    output_tensor,
)
from brevitas_axe.model.devices import input_device, moved
from brevitas_axe.model.running import evaluating

Loss = Callable[[Any, Any], Tensor]


def on_device(model: nn.Module, loader: Iterable[Any]) -> Iterator[Any]:
    """Batches with their tensors where the model takes its inputs."""
    device = input_device(model)
    return (moved(batch, device) for batch in loader)


def run(model: nn.Module, batch: Any) -> Any:
    """Output of a model on a batch: a tuple's first element, a dictionary's items, or a tensor."""
    if isinstance(batch, dict):
        return model(**batch)
    return model(batch[0] if isinstance(batch, (tuple, list)) else batch)


def label_loss(output: Any, batch: Any) -> Tensor:
    """Mean cross-entropy of the predictions and the labels of a batch."""
    return cross_entropy(output_tensor(output), labels_of(batch))


def distillation(teacher: nn.Module, weight: float = 0.5, temperature: float = 2.0) -> Loss:
    """A loss that follows the labels and a teacher's logits (arXiv 1503.02531).

    Args:
        teacher: the float model, for instance; run in evaluation mode without gradients.
        weight: of the teacher, the rest is for the labels; with 1, batches need none.
        temperature: of both softmaxes.
    """
    if not 0 <= weight <= 1 or temperature <= 0:
        raise InvalidOption("distillation takes a weight in [0, 1] and a temperature above 0.")

    def softened(output: Any) -> Tensor:
        scores = classes_last(output_tensor(output)).flatten(0, -2)
        return (scores / temperature).log_softmax(-1)

    def loss(output: Any, batch: Any) -> Tensor:
        with evaluating(teacher), torch.no_grad():
            wanted = softened(run(teacher, batch))
        found = softened(output)
        follow = F.kl_div(found, wanted, reduction="batchmean", log_target=True) * temperature**2
        if weight == 1:
            return follow
        return weight * follow + (1 - weight) * label_loss(output, batch)

    return loss


@torch.no_grad()
def accuracy(model: nn.Module, loader: Iterable[Any]) -> float:
    """Fraction of labels at the largest logit of their predictions, in evaluation mode."""
    right = total = 0
    with evaluating(model):
        for batch in on_device(model, loader):
            labels = labels_of(batch)
            found = output_tensor(run(model, batch))
            right += int((found.argmax(class_axis(found, labels)) == labels).sum())
            total += labels.numel()
    return right / _counted(total)


@torch.no_grad()
def mean_loss(model: nn.Module, loader: Iterable[Any], loss: Loss) -> float:
    """Mean of a loss over batches, in evaluation mode."""
    values = []
    with evaluating(model):
        for batch in on_device(model, loader):
            values.append(float(loss(run(model, batch), batch)))
    return sum(values) / _counted(len(values))


def _counted(number: int) -> int:
    if number == 0:
        raise EmptyCalibration("the validation data has no batch; give at least one.")
    return number
