"""What the catalogue says of a scorer or an allocator.

The classes are those of the survey arXiv 2510.16805: MPW gives widths to weights only, MPW+UPA has
one width for all activations, MPW+MPA gives widths to both, KV to cached keys and values.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Facts:
    """One line of the catalogue; it stands next to the code that it describes.

    Attributes:
        kind: "MPW", "MPW+UPA", "MPW+MPA" or "KV".
        granularity: what gets bits of its own: "model", "layer", "channel".
        signal: what the method looks at.
        export: "finn", "qonnx" (runs in QONNX, FINN refuses) or "none".
        source: paper, or "ours".
        gradients: it differentiates the model.
        labels: it needs labelled calibration data.
    """

    kind: str
    granularity: str
    signal: str
    export: str
    source: str
    gradients: bool = False
    labels: bool = False
