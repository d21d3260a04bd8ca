"""How far a model's output is from what it should be.

Outputs are tensors; of a tuple, list or dictionary the first tensor counts (of a dictionary,
"logits" before others). Where labels do not tell, classes lie along axis 1 of 4- and 5-dimensional
outputs (images of classes), else along the last axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from brevitas_axe.errors import InvalidOption
from brevitas_axe.model.running import Batch, evaluating


@dataclass(frozen=True)
class Metric:
    """A loss that is 0 or least for the float model.

    Attributes:
        name: identifies the metric in the cache of trials: a changed metric needs a new name.
        loss: (output, float output, calibration item) → mean over the predictions of a batch.
        root: (float output, calibration item, generator) → random v shaped like the output with
            E[v v^T] = Hessian of that loss with respect to the output. None if not known.
        slope: (float output, calibration item, generator) → gradient of a loss at the float output
            that does not vanish there. None if not known.
        labels: whether it needs labels.
    """

    name: str
    loss: Callable[[Tensor, Tensor, Any], Tensor]
    root: Callable[[Tensor, Any, Generator], Tensor] | None = None
    slope: Callable[[Tensor, Any, Generator], Tensor] | None = None
    labels: bool = False

    def mean(
        self, outputs: Iterable[Tensor], references: Iterable[Tensor], items: Iterable[Any]
    ) -> float:
        """Mean of the loss over batches, weighted by their numbers of samples."""
        triples = list(zip(outputs, references, items, strict=True))
        total = sum(float(self.loss(out, real, item)) * len(real) for out, real, item in triples)
        return total / sum(len(real) for _, real, _ in triples)


def output_tensor(output: Any) -> Tensor:
    """The tensor of a model's output that metrics compare."""
    if isinstance(output, Mapping):
        output = output["logits"] if "logits" in output else next(iter(output.values()))
    while isinstance(output, (tuple, list)):
        output = output[0]
    output = getattr(output, "value", output)  # of a QuantTensor
    if not isinstance(output, Tensor):
        raise InvalidOption(
            f"the model returns {type(output).__name__}; wrap it so that it returns a tensor."
        )
    return output


def outputs(model: nn.Module, batches: Iterable[Batch]) -> list[Tensor]:
    """What metrics compare of a model in evaluation mode, one tensor per batch, no gradients."""
    with torch.no_grad(), evaluating(model):
        return [output_tensor(model(*args, **kwargs)) for args, kwargs in batches]


def class_axis(output: Tensor, labels: Tensor | None = None) -> int:
    """Axis of a model's output along which its classes lie: the one that labels have not."""
    shape, known = output.shape, None if labels is None else labels.shape
    last, second = known == shape[:-1], known == shape[:1] + shape[2:]
    if last != second:
        return -1 if last else 1
    return 1 if output.dim() > 3 else -1


def classes_last(output: Tensor, labels: Tensor | None = None) -> Tensor:
    """A model's output with its classes along the last axis."""
    return output.movedim(class_axis(output, labels), -1)


def cross_entropy(output: Tensor, labels: Tensor) -> Tensor:
    """Mean over all predictions of a batch; pixels of images of classes are predictions.

    Args:
        output: [batch, classes], [batch, ..., classes] or [batch, classes, ...].
        labels: class of each prediction, the output's shape without its classes.

    Raises:
        InvalidOption: labels have another shape.
    """
    scores = classes_last(output, labels)
    if labels.numel() != scores[..., 0].numel():
        raise InvalidOption(
            f"labels of shape {list(labels.shape)} do not fit an output of shape "
            f"{list(output.shape)}; give one for each of {list(scores.shape[:-1])} predictions, or "
            "a loss of your own."
        )
    return F.cross_entropy(scores.flatten(0, -2), labels.to(scores.device).flatten())


def _kl(output: Tensor, reference: Tensor, item: Any) -> Tensor:
    real, mine = (F.log_softmax(classes_last(x), -1) for x in (reference, output))
    return (real.exp() * (real - mine)).sum(-1).mean()


def _sampled_slope(reference: Tensor, item: Any, generator: Generator) -> Tensor:
    """Gradient of -log p at labels that the model itself draws: its covariance is Fisher's."""
    p = F.softmax(classes_last(reference), -1)
    drawn = torch.multinomial(p.reshape(-1, p.shape[-1]), 1, generator=generator).view(p.shape[:-1])
    return _label_slope(reference, drawn)


def _label_slope(reference: Tensor, labels: Tensor) -> Tensor:
    axis = class_axis(reference, labels)
    p = F.softmax(reference.movedim(axis, -1), -1)
    slope = p - F.one_hot(labels, p.shape[-1]).to(p)
    return slope.movedim(-1, axis)


def _predictions(reference: Tensor) -> int:
    return classes_last(reference)[..., 0].numel()


def _kl_root(reference: Tensor, item: Any, generator: Generator) -> Tensor:
    slope = _sampled_slope(reference, item, generator)
    return slope / _predictions(reference) ** 0.5


def _kl_slope(reference: Tensor, item: Any, generator: Generator) -> Tensor:
    return _sampled_slope(reference, item, generator) / _predictions(reference)


def _power(reference: Tensor) -> Tensor:
    return reference.square().sum().clamp(min=torch.finfo(reference.dtype).tiny)


def _mse(output: Tensor, reference: Tensor, item: Any) -> Tensor:
    return (output - reference).square().sum() / _power(reference)


def _mse_root(reference: Tensor, item: Any, generator: Generator) -> Tensor:
    signs = torch.randint(0, 2, reference.shape, generator=generator) * 2 - 1
    return signs.to(reference) * (2 / _power(reference)).sqrt()


def labels_of(item: Any) -> Tensor:
    """Labels of a batch: the last element of (input, ..., label), or "labels" of a dictionary.

    Raises:
        InvalidOption: the batch has none.
    """
    found = None
    if isinstance(item, Mapping):
        found = item.get("labels")
    elif isinstance(item, (tuple, list)) and len(item) > 1:
        found = item[-1]
    if not isinstance(found, Tensor):
        raise InvalidOption(
            "a batch has no labels; give (input, label) batches, or choose a loss, metric or "
            "scorer that needs none."
        )
    return found


def _cross_entropy(output: Tensor, reference: Tensor, item: Any) -> Tensor:
    return cross_entropy(output, labels_of(item))


def _cross_entropy_slope(reference: Tensor, item: Any, generator: Generator) -> Tensor:
    labels = labels_of(item).to(reference.device)
    return _label_slope(reference, labels) / labels.numel()


METRICS = {
    "kl": Metric("kl", _kl, _kl_root, _kl_slope),
    "mse": Metric("mse", _mse, _mse_root),
    # The Hessian with respect to the logits is that of kl: it does not depend on the labels.
    "cross_entropy": Metric("cross_entropy", _cross_entropy, _kl_root, _cross_entropy_slope, True),
}


def find_metric(metric: str | Metric) -> Metric:
    """A metric by name; InvalidOption lists the names if there is none."""
    if isinstance(metric, Metric):
        return metric
    if metric not in METRICS:
        raise InvalidOption(f"metric '{metric}' is unknown; choose from {', '.join(METRICS)}.")
    return METRICS[metric]
