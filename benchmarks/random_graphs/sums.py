"""The sums of a dot product, added up product by product in plain loops.

Every function gives the products of one position of the row after the other: (position k, what
each output adds there). Nothing is vectorized over the row, so that the order of adding, and the
tiles, are those of the loops.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product as positions

import numpy as np

from benchmarks.random_graphs.builder import Product

Terms = Iterator[tuple[int, np.ndarray]]


def terms(made: Product, left: np.ndarray, right: np.ndarray) -> Terms:
    """Products of a node, one position of the row at a time.

    Args:
        made: the node.
        left: integers (or steps) of its first operand.
        right: of its second.
    """
    if made.op in ("MatMul", "Gemm"):
        if made.attributes.get("transA"):
            left = left.T
        if made.attributes.get("transB"):
            right = right.T
        return _matrix(left, right)
    if made.channels_last:
        left, right = np.moveaxis(left, -1, 1), np.moveaxis(right, -1, 1)
    return (_transposed if made.op == "ConvTranspose" else _convolution)(made, left, right)


def _matrix(left: np.ndarray, right: np.ndarray) -> Terms:
    left = left[None, :] if left.ndim == 1 else left
    right = right[:, None] if right.ndim == 1 else right
    for k in range(left.shape[-1]):
        yield k, left[..., :, k, None] * right[..., k, None, :]


def _convolution(made: Product, image: np.ndarray, kernel: np.ndarray) -> Terms:
    more, group = made.attributes, made.attributes["group"]
    axes, pads = kernel.ndim - 2, made.attributes["pads"]
    image = np.pad(image, [(0, 0), (0, 0), *zip(pads[:axes], pads[axes:], strict=True)])
    each, rows = kernel.shape[1], kernel.shape[0] // group
    spans = [d * (k - 1) + 1 for d, k in zip(more["dilations"], kernel.shape[2:], strict=True)]
    out = [
        (n - s) // t + 1 for n, s, t in zip(image.shape[2:], spans, more["strides"], strict=True)
    ]
    k = 0
    for channel in range(each):
        for tap in positions(*map(range, kernel.shape[2:])):
            taken = tuple(
                slice(t * d, t * d + s * (o - 1) + 1, s)
                for t, d, s, o in zip(tap, more["dilations"], more["strides"], out, strict=True)
            )
            parts = []
            for part in range(group):
                seen = image[(slice(None), part * each + channel, *taken)]
                factors = kernel[(slice(part * rows, part * rows + rows), channel, *tap)]
                parts.append(seen[:, None] * factors.reshape(1, rows, *[1] * axes))
            yield k, np.concatenate(parts, axis=1)
            k += 1


def _transposed(made: Product, image: np.ndarray, kernel: np.ndarray) -> Terms:
    more, group = made.attributes, made.attributes["group"]
    axes, pads = kernel.ndim - 2, made.attributes["pads"]
    each, rows = kernel.shape[0] // group, kernel.shape[1]
    size = [
        (n - 1) * s + d * (k - 1) + 1
        for n, s, d, k in zip(
            image.shape[2:], more["strides"], more["dilations"], kernel.shape[2:], strict=True
        )
    ]
    k = 0
    for channel in range(each):
        for tap in positions(*map(range, kernel.shape[2:])):
            placed = tuple(
                slice(t * d, t * d + s * (n - 1) + 1, s)
                for t, d, s, n in zip(
                    tap, more["dilations"], more["strides"], image.shape[2:], strict=True
                )
            )
            whole = np.zeros((len(image), group * rows, *size), image.dtype)
            for part in range(group):
                seen = image[:, part * each + channel][:, None]
                factors = kernel[(part * each + channel, slice(None), *tap)]
                where = (slice(None), slice(part * rows, part * rows + rows), *placed)
                whole[where] = seen * factors.reshape(1, rows, *[1] * axes)
            cropped = tuple(
                slice(b, n - e) for b, e, n in zip(pads[:axes], pads[axes:], size, strict=True)
            )
            yield k, whole[(slice(None), slice(None), *cropped)]
            k += 1


def extremes(
    made: Product, left: np.ndarray, right: np.ndarray, tile: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(smallest, largest partial sum in the worst order of adding, total) of every output.

    The smallest adds the negative products alone, the largest the positive ones. With tiles,
    these are the smallest and the largest over all tiles.

    Args:
        made: the node.
        left: int64, its first operand.
        right: int64, its second.
        tile: positions of a row that one accumulator adds; None for the whole row.
    """
    below = above = total = lowest = highest = np.zeros(1, np.int64)
    for k, products in terms(made, left, right):
        if tile is not None and k % tile == 0:
            below = above = np.zeros(1, np.int64)
        below = below + np.minimum(products, 0)
        above = above + np.maximum(products, 0)
        total = total + products
        lowest, highest = np.minimum(lowest, below), np.maximum(highest, above)
    return lowest, highest, total


def one_step(made: Product, left: np.ndarray, right: np.ndarray) -> bool:
    """Whether every output adds products of one step only.

    Args:
        made: the node.
        left: steps of its first operand, in its full shape.
        right: of its second.
    """
    smallest = largest = None
    for _, steps in terms(made, left, right):
        known = np.where(steps == 0, np.nan, steps)
        smallest = known if smallest is None else np.fmin(smallest, known)
        largest = known if largest is None else np.fmax(largest, known)
    return smallest is None or bool(
        np.all(np.isnan(smallest) | np.isclose(smallest, largest, 1e-6))
    )
