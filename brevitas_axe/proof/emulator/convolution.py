"""Convolutions of any dimension as matrix products of integers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from brevitas_axe.errors import InvalidModelFile
from brevitas_axe.proof.graph.modelfile import Node

Product = Callable[[np.ndarray, np.ndarray], np.ndarray]
_MAX_PATCHES = 2**23


@dataclass(frozen=True)
class Geometry:
    """Attributes of a convolution, one value per spatial axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]
    group: int
    extra: tuple[int, ...]

    @classmethod
    def of(cls, node: Node, kernel: Sequence[int], image: Sequence[int]) -> Geometry:
        """Reads a Conv or ConvTranspose node.

        Args:
            node: the convolution.
            kernel: spatial shape of its weights.
            image: spatial shape of its input.
        """
        dims = len(kernel)
        ones = [1] * dims
        strides = node.attribute("strides", ones, "INTS")
        dilations = node.attribute("dilations", ones, "INTS")
        extra = node.attribute("output_padding", [0] * dims, "INTS")
        pads = list(node.attribute("pads", [0] * 2 * dims, "INTS"))
        span = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
        auto = node.attribute("auto_pad", "NOTSET")
        same = auto in ("SAME_UPPER", "SAME_LOWER")
        if node.op == "ConvTranspose" and (same or node.attribute("output_shape", [], "INTS")):
            raise InvalidModelFile(
                f"node '{node.name}': a ConvTranspose with automatic padding cannot be emulated; "
                "export it with explicit pads."
            )
        if same:
            wanted = [-(-size // s) for size, s in zip(image, strides, strict=True)]
            totals = [
                max((w - 1) * s + f - size, 0)
                for w, s, f, size in zip(wanted, strides, span, image, strict=True)
            ]
            small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
            pads = small + large if auto == "SAME_UPPER" else large + small
        if node.op == "ConvTranspose":
            # The convolution of the input with zeros inserted: full overlap, minus the pads.
            full = [f - 1 for f in span]
            pads = [f - p for f, p in zip(full * 2, pads, strict=True)]
        return cls(
            tuple(kernel), tuple(strides), tuple(dilations), tuple(pads[:dims]),
            tuple(pads[dims:]), node.attribute("group", 1), tuple(extra),
        )  # fmt: skip


def convolve(images: np.ndarray, weights: np.ndarray, node: Node, product: Product) -> np.ndarray:
    """A Conv or ConvTranspose on integers.

    Args:
        images: int64 [batch, channels, *image].
        weights: int64, in the layout of ONNX.
        node: the convolution.
        product: matrix product [rows, K] × [K, outputs] to use; K runs over (input channel,
            kernel position).

    Returns:
        int64 [batch, outputs, *image].
    """
    geometry = Geometry.of(node, weights.shape[2:], images.shape[2:])
    strides, group = geometry.strides, geometry.group
    if node.op == "ConvTranspose":
        images, strides = _with_zeros(images, geometry), (1,) * len(strides)
        split = (group, weights.shape[0] // group, weights.shape[1], -1)
        rows = weights.reshape(split).swapaxes(1, 2)
        rows = rows.reshape(group, weights.shape[1], -1)
    else:
        rows = weights.reshape(group, weights.shape[0] // group, -1)
    begins, ends = geometry.begins, geometry.ends
    if node.op == "ConvTranspose":
        ends = tuple(e + x for e, x in zip(ends, geometry.extra, strict=True))
    images = _padded(images, begins, ends)
    patches = _patches(images, geometry, strides, flip=node.op == "ConvTranspose")
    per_image = max(int(np.prod(patches.shape[1:])), 1)
    step = max(_MAX_PATCHES // per_image, 1)
    blocks = [
        _block(patches[start : start + step], rows, group, product)
        for start in range(0, len(patches), step)
    ]
    return np.concatenate(blocks)


def _block(patches: np.ndarray, rows: np.ndarray, group: int, product: Product) -> np.ndarray:
    """Product of [batch, channels, *out, *kernel] patches with [group, outputs, K] rows."""
    dims = (patches.ndim - 2) // 2
    batch, channels, out = patches.shape[0], patches.shape[1], patches.shape[2 : 2 + dims]
    grouped = patches.reshape(batch, group, channels // group, *patches.shape[2:])
    outer = (1, 0, *range(3, 3 + dims), 2, *range(3 + dims, 3 + 2 * dims))
    left = grouped.transpose(outer).reshape(group, batch * int(np.prod(out)), -1)
    sums = product(left, rows.swapaxes(1, 2))
    sums = sums.reshape(group, batch, *out, rows.shape[1])
    sums = np.moveaxis(sums, (0, -1), (1, 2))
    return sums.reshape(batch, group * rows.shape[1], *out)


def _patches(
    images: np.ndarray, geometry: Geometry, strides: tuple[int, ...], flip: bool
) -> np.ndarray:
    """Windows [batch, channels, *out, *kernel] as a view."""
    dims = len(geometry.kernel)
    span = [d * (k - 1) + 1 for d, k in zip(geometry.dilations, geometry.kernel, strict=True)]
    windows = sliding_window_view(images, span, axis=tuple(range(2, 2 + dims)))
    taken = tuple(slice(None, None, s) for s in strides)
    # A transposed convolution reads the kernel backwards.
    taps = tuple(slice(None, None, -d if flip else d) for d in geometry.dilations)
    return windows[(slice(None), slice(None), *taken, *taps)]


def _padded(images: np.ndarray, begins: tuple[int, ...], ends: tuple[int, ...]) -> np.ndarray:
    """Pads with zeros; a negative pad crops."""
    pads = [(max(b, 0), max(e, 0)) for b, e in zip(begins, ends, strict=True)]
    images = np.pad(images, [(0, 0), (0, 0), *pads])
    crops = (
        slice(max(-b, 0), size - max(-e, 0))
        for b, e, size in zip(begins, ends, images.shape[2:], strict=True)
    )
    return images[(slice(None), slice(None), *crops)]


def _with_zeros(images: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The images with stride - 1 zeros between neighbours."""
    size = [(n - 1) * s + 1 for n, s in zip(images.shape[2:], geometry.strides, strict=True)]
    spread = np.zeros((*images.shape[:2], *size), images.dtype)
    spread[(slice(None), slice(None), *(slice(None, None, s) for s in geometry.strides))] = images
    return spread
