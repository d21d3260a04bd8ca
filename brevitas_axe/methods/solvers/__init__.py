"""From a layer's weights and moments to its integers: one solver per file, pure functions."""

from brevitas_axe.methods.solvers.problem import LayerProblem, LayerSolution
from brevitas_axe.methods.solvers.protocol import Solver

__all__ = ["LayerProblem", "LayerSolution", "Solver"]
