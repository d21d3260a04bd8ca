"""Groups of layers, each scored by a metric of its own (MixDQ, arXiv 2405.17873).

Quality is the signal-to-quantization-noise ratio of the model's output, content its structural
similarity; both are measured by the same forward. The allocator `shares` gives each group a
program of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.sensitivity.budgeted import LayerMoments, for_choices, over_layers, part
from brevitas_axe.methods.sensitivity.case import Case
from brevitas_axe.methods.sensitivity.scores import Scores
from brevitas_axe.methods.sensitivity.trials import Trials
from brevitas_axe.plan import LayerPrecision
from brevitas_axe.registry import Facts, check_expressions

_WINDOW = 7
_ATTENTION = "attn|attention|cross"


@dataclass(frozen=True)
class Decoupled:
    """Harm is 1 − SSIM for content layers, and noise over signal for all others.

    Attributes:
        content: regular expression that is found in the names of content layers. None for names
            with attn, attention or cross in them, if there are any.

    Raises:
        InvalidOption: `content` is no regular expression.
    """

    content: str | None = None
    facts = Facts(
        kind="MPW+MPA",
        granularity="layer",
        signal="SQNR and SSIM of the output",
        export="finn",
        source="arXiv 2405.17873",
    )

    def __post_init__(self) -> None:
        check_expressions(self, "content")

    def groups(self, layers: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """Metric → layers that it judges; a metric without layers is left out.

        Raises:
            InvalidOption: `content` is given, and is found in all or none of the layers' names.
        """
        layers = tuple(layers)
        pattern = _ATTENTION if self.content is None else self.content
        content = tuple(name for name in layers if re.search(pattern, name))
        quality = tuple(name for name in layers if name not in content)
        if self.content is not None and not (content and quality):
            raise InvalidOption(
                f"content='{pattern}' is found in {'all' if content else 'none'} of the layers' "
                "names, so there are no two groups; give a pattern that is found in some of "
                f"{', '.join(layers)}."
            )
        return {metric: names for metric, names in (("sqnr", quality), ("ssim", content)) if names}

    def __call__(self, case: Case, trials: Trials) -> Scores:
        parts = self.groups(case.names)
        found = {n: np.reshape(v, (2, -1)) for n, v in over_layers(case, trials, _both).items()}
        metrics = {
            "sqnr": {name: values[0] for name, values in found.items()},
            "ssim": {name: values[1] for name, values in found.items()},
        }
        harm = {name: metrics[metric][name] for metric, names in parts.items() for name in names}
        return Scores(case.choices, harm, parts=parts, metrics=metrics)


def _both(case: Case, name: str, known: LayerMoments) -> list[float]:
    """Noise over signal for every choice, then 1 − SSIM for every choice."""

    def harms(choice: LayerPrecision) -> tuple[float, float]:
        outputs = case.outputs({name: part(case, name, choice, known)})
        both = list(zip(outputs, case.reference, strict=True))
        noise = case.mean([10 ** (-sqnr(out, real) / 10) for out, real in both])
        return noise, case.mean([1 - ssim(out, real) for out, real in both])

    pairs = for_choices(case, name, harms)
    return [pair[metric] for metric in (0, 1) for pair in pairs]


def sqnr(output: Tensor, reference: Tensor) -> float:
    """10·log10(||reference||² / ||output − reference||²) in dB, at most 300."""
    noise = (output - reference).double().square().sum()
    signal = reference.double().square().sum()
    return float(10 * torch.log10((signal / noise.clamp(min=1e-300)).clamp(1e-30, 1e30)))


def ssim(output: Tensor, reference: Tensor) -> float:
    """Mean structural similarity, over 7×7 windows of images and over whole samples of others.

    Wang et al., Image quality assessment, IEEE TIP 2004, with uniform windows and K = .01, .03.

    Args:
        output: [N, C, H, W], or [N, ...].
        reference: of the same shape; the range of its values is the dynamic range.
    """
    x, y = output.double(), reference.double()
    span = float(y.max() - y.min()) or 1.0
    if x.dim() == 4:
        size = min(_WINDOW, *x.shape[2:])
    else:
        x, y = x.reshape(len(x), 1, 1, -1), y.reshape(len(y), 1, 1, -1)
        size = 0

    def mean(values: Tensor) -> Tensor:
        return F.avg_pool2d(values, size, 1) if size else values.mean((2, 3), keepdim=True)

    mean_x, mean_y = mean(x), mean(y)
    variances = mean(x * x) - mean_x**2 + mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float((likeness / ((mean_x**2 + mean_y**2 + c1) * (variances + c2))).mean())


decoupled = Decoupled()
