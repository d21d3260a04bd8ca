"""Runs a QONNX file as hardware with P-bit accumulators would: wrapping or saturating.

Rules of this package: dot products are exact integers; everything else is left to qonnx and ONNX
Runtime.
"""

from brevitas_axe.proof.emulator.executor import EmulationResult, emulate

__all__ = ["EmulationResult", "emulate"]
