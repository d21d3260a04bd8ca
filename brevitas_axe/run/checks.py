"""Checks before the long work, so that each refusal is one clear sentence."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from brevitas_axe.accumulator import one_sided_budgets, required_bit_width
from brevitas_axe.errors import AccumulatorTooNarrow, NotEnoughMemory
from brevitas_axe.files import check_room
from brevitas_axe.model.layers import Layer, unroll_weight
from brevitas_axe.model.offload import check_offload
from brevitas_axe.recipe import Run
from brevitas_axe.run.solve import axe_mode
from brevitas_axe.run.solve.state import SavedLayers

# Of each layer, at once: products of its inputs in float64, and of a batch, and their mean.
_MATRICES, _BYTES = 3, 8
# The state of a solve has its integers, compressed: about a byte for each weight in float32.
_STATE_SHARE = 4
# A saved model, and the file for other tools beside it.
_COPIES = 2
# The state of a training: the model, the best one, and two numbers of an optimizer for each
# parameter; the next one is whole before the last one goes.
_OF_TRAINING = 8


def check_widths(axe: axe_mode) -> None:
    """Refuses, before any work, a width at which all weights of a layer would have to be zero."""
    for name, precision in axe.plan.layers.items():
        bits, inputs = precision.accumulator, axe.layers[name].weight_quant.input_range
        if bits and inputs and not any(one_sided_budgets(bits, inputs.low, inputs.high)):
            raise AccumulatorTooNarrow(
                f"a {bits}-bit accumulator cannot store one input of layer '{name}', which lies "
                f"in [{inputs.low}, {inputs.high}], so all its weights would be zero; give it "
                f"{required_bit_width(inputs.low, inputs.high)} bits or more, or its input fewer."
            )


def check_memory(layers: Mapping[str, Layer]) -> None:
    """Refuses, before any work, layers whose second moments do not fit into memory.

    Raises:
        NotEnoughMemory: names the layer with the most inputs.
    """
    sizes: dict[str, int] = {}
    for name, layer in layers.items():
        groups, _, columns = unroll_weight(layer, layer.weight).shape
        sizes[name] = moments_bytes(groups, columns)
    name = max(sizes, key=sizes.__getitem__, default=None)
    if name is None:
        return
    free = _free_memory(layers[name].weight.device)
    if free is not None and sizes[name] > free:
        columns = unroll_weight(layers[name], layers[name].weight).shape[2]
        raise NotEnoughMemory(
            f"layer '{name}' multiplies {columns:,} inputs, whose products with each other take "
            f"{sizes[name] / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free; exclude it by "
            f"name, exclude=('{name}',), or reduce its inputs, by pooling in front of it, say."
        )


def moments_bytes(groups: int, columns: int) -> int:
    """Bytes of the second moments of a layer's inputs, while it is solved."""
    return _MATRICES * _BYTES * groups * columns**2


def check_disk(model: nn.Module, run: Run) -> None:
    """Refuses, before any work, folders of a run that cannot be used or have too little room.

    Args:
        model: to be solved.
        run: names the folders.

    Raises:
        InvalidState, InvalidOption: a folder is a file.
        NotEnoughDisk: see `files.check_room`.
    """
    if run.state is not None:
        SavedLayers(run.state)
        check_room(run.state, _missing(run.state, parameter_bytes(model) // _STATE_SHARE))
    if run.offload is not None:
        check_offload(Path(run.offload))
        check_room(run.offload, _missing(run.offload, parameter_bytes(model)))


def check_saving(model: nn.Module, folder: str | Path, times: int = 1) -> None:
    """Refuses, before any work, a folder in which a model and its file find no room.

    Args:
        model: to be quantized and saved.
        folder: of all that a command writes.
        times: so often, each in a folder of its own inside.

    Raises:
        NotEnoughDisk: see `files.check_room`.
    """
    check_room(folder, times * _COPIES * parameter_bytes(model))


def check_training(model: nn.Module, state: str | Path) -> None:
    """Refuses, before any work, a folder in which the state of a training finds no room.

    Raises:
        NotEnoughDisk: see `files.check_room`.
    """
    check_room(state, _missing(state, _OF_TRAINING * parameter_bytes(model)))


def parameter_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers of a model, those that layers share once."""
    tensors = (*model.parameters(), *model.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _missing(folder: str | Path, needed_bytes: int) -> int:
    """What is still to be written, where an earlier run has left its part in the folder."""
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    return needed_bytes - sum(path.stat().st_size for path in files)


def _free_memory(device: torch.device) -> int | None:
    """Bytes that can still be had; None where nobody says."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="utf-8") as file:
            [line] = [line for line in file if line.startswith("MemAvailable:")]
        return 1024 * int(line.split()[1])
    except (OSError, ValueError):
        return None


@contextmanager
def without_remarks() -> Iterator[None]:
    """Silences Brevitas's warnings about outputs with zero points or scales per token.

    They concern quantized outputs, which the layers here do not have.
    """
    with warnings.catch_warnings():
        for message in ("Could not compute output scale", "Computing zero point of output"):
            warnings.filterwarnings("ignore", message, UserWarning)
        yield
