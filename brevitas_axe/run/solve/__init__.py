"""Feeds the solvers from a model, layer by layer, and writes what they find into it."""

from brevitas_axe.run.solve.mode import axe_mode
from brevitas_axe.run.solve.named import axe_gpfq_mode, axe_gptq_mode, axe_qronos_mode

__all__ = ["axe_gpfq_mode", "axe_gptq_mode", "axe_mode", "axe_qronos_mode"]
