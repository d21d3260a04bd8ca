"""Fixed factors and constants in front of a layer, which export leaves as Mul and Add."""

from __future__ import annotations

from torch import Tensor, nn


class Offset(nn.Module):
    """Adds a constant, which FINN folds into the thresholds behind it.

    Attributes:
        value: float32, broadcastable to the input.
    """

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def forward(self, x: Tensor) -> Tensor:
        return getattr(x, "value", x) + self.value


class Scale(nn.Module):
    """Multiplies by a constant.

    Attributes:
        value: broadcastable to the input.
    """

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def forward(self, x: Tensor) -> Tensor:
        return getattr(x, "value", x) * self.value


class Fronted(nn.Module):
    """A layer behind another module, in the layer's place.

    Attributes:
        front: takes the layer's input.
        layer: takes what the front gives.
    """

    def __init__(self, front: nn.Module, layer: nn.Module) -> None:
        super().__init__()
        self.front, self.layer = front, layer
        self.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        """The argument's name is that of nn.Linear and nn.Conv2d."""
        return self.layer(self.front(input))
