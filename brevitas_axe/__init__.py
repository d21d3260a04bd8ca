"""Accumulator-aware quantization for Brevitas: overflow made impossible, proven, exported.

What users import is here, and is loaded at its first use: `import brevitas_axe` loads
neither torch nor Brevitas. Rooms (`brevitas_axe.methods`, `brevitas_axe.run`, ...) are for those
who write methods.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from brevitas_axe.errors import AxeError
    from brevitas_axe.export import (
        check_finn,
        check_hls4ml,
        export_hls4ml,
        export_qonnx,
        mend_for_finn,
        prepare_for_finn,
        prepare_for_hls4ml,
    )
    from brevitas_axe.export.layers import export_layers
    from brevitas_axe.model.apply.weights import apply_plan
    from brevitas_axe.model.quantizers import (
        Int8WeightPerChannelFixedPointAXE,
        Int8WeightPerChannelFloatAXE,
        Int8WeightPerTensorFixedPointAXE,
        Int8WeightPerTensorFloatAXE,
    )
    from brevitas_axe.plan import LayerPrecision, Plan
    from brevitas_axe.proof.certificate import Certificate, certify, certify_file
    from brevitas_axe.proof.emulator import emulate
    from brevitas_axe.recipe import Recipe, Run
    from brevitas_axe.run.allocate import AllocateResult, allocate
    from brevitas_axe.run.finetune import FinetuneResult, finetune
    from brevitas_axe.run.quantize import quantize
    from brevitas_axe.run.quantize_blocks import quantize_blocks
    from brevitas_axe.run.result import BlocksResult, QuantizeResult
    from brevitas_axe.run.saving.load import load
    from brevitas_axe.run.saving.save import save
    from brevitas_axe.run.search_widths import search_widths
    from brevitas_axe.run.solve import axe_gpfq_mode, axe_gptq_mode, axe_qronos_mode
    from brevitas_axe.run.tune import TuneResult, Tuning, tune

__version__ = "0.1.0"

__all__ = [
    "AllocateResult",
    "AxeError",
    "BlocksResult",
    "Certificate",
    "FinetuneResult",
    "Int8WeightPerChannelFixedPointAXE",
    "Int8WeightPerChannelFloatAXE",
    "Int8WeightPerTensorFixedPointAXE",
    "Int8WeightPerTensorFloatAXE",
    "LayerPrecision",
    "Plan",
    "QuantizeResult",
    "Recipe",
    "Run",
    "TuneResult",
    "Tuning",
    "allocate",
    "apply_plan",
    "axe_gpfq_mode",
    "axe_gptq_mode",
    "axe_qronos_mode",
    "certify",
    "certify_file",
    "check_finn",
    "check_hls4ml",
    "emulate",
    "export_hls4ml",
    "export_layers",
    "export_qonnx",
    "finetune",
    "load",
    "mend_for_finn",
    "prepare_for_finn",
    "prepare_for_hls4ml",
    "quantize",
    "quantize_blocks",
    "save",
    "search_widths",
    "tune",
]

# Where each name is found; a new one also goes into the two lists above (a test compares them).
_NAMES_OF = {
    "errors": ("AxeError",),
    "export": (
        "check_finn",
        "check_hls4ml",
        "export_hls4ml",
        "export_qonnx",
        "mend_for_finn",
        "prepare_for_finn",
        "prepare_for_hls4ml",
    ),
    "export.layers": ("export_layers",),
    "model.apply.weights": ("apply_plan",),
    "model.quantizers": (
        "Int8WeightPerChannelFixedPointAXE",
        "Int8WeightPerChannelFloatAXE",
        "Int8WeightPerTensorFixedPointAXE",
        "Int8WeightPerTensorFloatAXE",
    ),
    "plan": ("LayerPrecision", "Plan"),
    "proof.certificate": ("Certificate", "certify", "certify_file"),
    "proof.emulator": ("emulate",),
    "run.finetune": ("FinetuneResult", "finetune"),
    "recipe": ("Recipe", "Run"),
    "run.allocate": ("AllocateResult", "allocate"),
    "run.quantize": ("quantize",),
    "run.quantize_blocks": ("quantize_blocks",),
    "run.result": ("BlocksResult", "QuantizeResult"),
    "run.saving.load": ("load",),
    "run.saving.save": ("save",),
    "run.search_widths": ("search_widths",),
    "run.solve": ("axe_gpfq_mode", "axe_gptq_mode", "axe_qronos_mode"),
    "run.tune": ("TuneResult", "Tuning", "tune"),
}
_MODULE_OF = {name: module for module, names in _NAMES_OF.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with _without_hadamard_advice():
        found = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = found  # so that later look-ups do not call this function
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


@contextmanager
def _without_hadamard_advice() -> Iterator[None]:
    """Silences a warning about an optional package that Brevitas gives when it is imported.

    Not by `warnings.catch_warnings`, which would also undo the filters that torch and NumPy install
    when they are imported.
    """
    before = list(warnings.filters)
    warnings.filterwarnings("ignore", message="fast_hadamard_transform package not found")
    ours = warnings.filters[0]
    try:
        yield
    finally:
        if ours not in before and ours in warnings.filters:
            warnings.filters.remove(ours)  # type: ignore[attr-defined]
