"""Compares FINN's matrix units with the layers of a model, by their integers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from qonnx.core.datatype import DataType
from torch import nn

from brevitas_axe.model.layers import layer_groups
from tests.finn.runner import Finn


def match(finn: Finn, integers: dict[str, np.ndarray], model: nn.Module) -> dict[str, dict]:
    """The matrix unit of every layer, with the "signs" that FINN gave its columns.

    Raises:
        AssertionError: a unit holds no layer's integers, or a layer has no unit.
    """
    left, found = dict(integers), {}
    for unit in finn.matrix_units:
        weights = finn.weights[unit["name"]]
        for name in left:
            layer: Any = model.get_submodule(name)
            kind = "VVAU" if layer_groups(layer) > 1 else "MVAU"
            signs = _signs(weights, left[name], kind == "VVAU")
            if unit["op_type"].startswith(kind) and signs is not None:
                found[name] = {**unit, "signs": signs}
                del left[name]
                break
        else:
            raise AssertionError(f"{unit['name']} holds the integers of none of {list(left)}")
    assert not left, f"no unit holds the integers of {list(left)}"
    return found


def _signs(found: np.ndarray, integers: np.ndarray, depthwise: bool) -> np.ndarray | None:
    """±1 by output channel, 0 where all of its weights are zero; None if it is another layer."""
    if found.size != integers.size:
        return None
    if depthwise:
        found, candidates = found.reshape(len(found), -1).T, iter([_columns(integers)])
    else:
        candidates = _orders(integers)
    for expected in candidates:
        if found.shape != expected.shape:
            continue
        signs = np.sign((found * expected).sum(0))
        if np.array_equal(found, expected * signs):
            return signs
    return None


def _columns(integers: np.ndarray) -> np.ndarray:
    """[outputs, ...] → [inputs of the dot product, outputs]."""
    return integers.reshape(len(integers), -1).T


def _orders(integers: np.ndarray) -> Iterator[np.ndarray]:
    """FINN computes channels-last, also in what follows a Flatten."""
    if integers.ndim > 2:
        yield _columns(np.moveaxis(integers, 1, -1))
        return
    outputs, inputs = integers.shape
    for channels in (c for c in range(1, inputs + 1) if inputs % c == 0):
        yield _columns(integers.reshape(outputs, channels, -1).swapaxes(1, 2))


def accumulator_bits(weights: np.ndarray, unit: dict[str, Any]) -> int:
    """Bits that hold every sum over the whole data type of the unit's input, in Python integers."""
    reach = DataType[unit["attributes"]["inputDataType"]]
    low, high = int(reach.min()), int(reach.max())
    if unit["op_type"].startswith("VVAU"):
        weights = weights.reshape(len(weights), -1).T
    columns = [[int(w) for w in column] for column in weights.T]
    least = min(sum(w * (low if w > 0 else high) for w in column) for column in columns)
    most = max(sum(w * (high if w > 0 else low) for w in column) for column in columns)
    return max((-least - 1).bit_length(), most.bit_length()) + 1
