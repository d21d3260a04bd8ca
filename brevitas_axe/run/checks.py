"""Checks before the long work, so that each refusal is one clear sentence."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from brevitas_axe.accumulator import one_sided_budgets, required_bit_width
from brevitas_axe.errors import AccumulatorTooNarrow, AxeError, InvalidOption, NotEnoughMemory
from brevitas_axe.model.prepare import Batch
from brevitas_axe.run.solve import axe_mode


def check_runs(model: nn.Module, batch: Batch) -> None:
    """Runs one forward, so that faults of model or data are reported as such."""
    args, kwargs = batch
    try:
        with torch.no_grad():
            model(*args, **kwargs)
    except AxeError:
        raise
    except Exception as error:
        if ran_out_of_memory(error):
            raise NotEnoughMemory(
                "memory ran out in one forward on calibration batch 0; give smaller batches."
            ) from error
        reason = next(iter(str(error).splitlines()), "")
        raise InvalidOption(
            f"the model fails on calibration batch 0 ({type(error).__name__}: {reason}); give "
            "batches as its forward takes them."
        ) from error


def ran_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out. On the CPU torch raises a RuntimeError, told by its text."""
    kinds = MemoryError | torch.OutOfMemoryError | NotEnoughMemory
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


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


@contextmanager
def without_remarks() -> Iterator[None]:
    """Silences Brevitas's warnings about outputs with zero points or scales per token.

    They concern quantized outputs, which the layers here do not have.
    """
    with warnings.catch_warnings():
        for message in ("Could not compute output scale", "Computing zero point of output"):
            warnings.filterwarnings("ignore", message, UserWarning)
        yield
