"""Post-training quantization under an accumulator budget.

Solvers are pure functions on matrices (protocol.py lists them); mode.py feeds them from a model.
"""

from brevitas_axe.ptq.mode import axe_gpfq_mode, axe_gptq_mode, axe_mode, axe_qronos_mode
from brevitas_axe.ptq.problem import LayerProblem, LayerSolution
from brevitas_axe.ptq.protocol import Solver, solver, solvers

__all__ = [
    "LayerProblem",
    "LayerSolution",
    "Solver",
    "axe_gpfq_mode",
    "axe_gptq_mode",
    "axe_mode",
    "axe_qronos_mode",
    "solver",
    "solvers",
]
