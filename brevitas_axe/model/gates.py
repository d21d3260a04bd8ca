"""Activation functions that only multiply other numbers, as in swish and squeeze-and-excitation.

No dot product reads what they give, so rounding it would only add an error; and the mean of a
product of two rounded tensors looks like a dot product of activations. Likewise a sum with a number
is no sum of two tensors that need one scale.
"""

from __future__ import annotations

import operator

import torch
from torch import Tensor, nn

from brevitas_axe.model.nodes import is_node
from brevitas_axe.model.running import Graph, tensor_of

_PLUS = (operator.add, operator.iadd, torch.add, "add", "add_")
_FUNCTIONS = (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh)
_TIMES = (operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_", "multiply")
_OVER = (operator.truediv, operator.itruediv, torch.div, "div", "div_")


class Gate(nn.Module):
    """An activation function on plain numbers.

    Args:
        function: of a tensor.
    """

    def __init__(self, function: nn.Module) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Between the function's bounds, shaped like x."""
        return self.function(tensor_of(x))


def plus(x: Tensor, number: float) -> Tensor:
    """The sum, under a name that Brevitas does not know for one of two tensors."""
    return tensor_of(x) + number


def gates_as_modules(graph: Graph) -> Graph:
    """Wraps activation functions whose results are only factors, and sums with numbers, in place.

    Args:
        graph: of a float model, with modules for its activation functions.
    """
    for node in graph.graph.nodes:
        numbers = [arg for arg in node.args if isinstance(arg, (int, float))]
        if node.op.startswith("call_") and node.target in _PLUS and len(numbers) == 1:
            [source] = node.all_input_nodes
            node.op, node.target, node.args = "call_function", plus, (source, numbers[0])
    graph.recompile()
    calls = [node for node in graph.graph.nodes if node.op == "call_module"]
    for node in calls:
        module = graph.get_submodule(node.target)
        once = sum(other.target == node.target for other in calls) == 1
        if once and isinstance(module, _FUNCTIONS) and _only_multiplies(node):
            graph.set_submodule(node.target, Gate(module))
    return graph


def _only_multiplies(node: Graph) -> bool:
    """Whether all that reads a node is a product with another tensor, or such of its multiple."""
    if not node.users:
        return False
    for user in node.users:
        if user.op not in ("call_function", "call_method") or len(user.args) != 2:
            return False
        other = [arg for arg in user.args if arg is not node]
        if len(other) != 1 or user.target not in (*_TIMES, *_OVER):
            return False
        if is_node(other[0]):
            if user.target in _OVER:
                return False
        elif not isinstance(other[0], (int, float)) or not _only_multiplies(user):
            return False
    return True
