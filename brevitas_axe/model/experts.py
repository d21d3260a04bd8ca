"""Experts that transformers keeps fused in tensors [experts, outputs, inputs], as named layers.

No quantizer finds the fused ones. They become linear layers with names of their own, such as
`mlp.experts.3.down_proj`, which compute the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from brevitas_axe.errors import UnsupportedLayer
from brevitas_axe.model.layers import is_inside
from brevitas_axe.model.offload import bring_in

# A rewrite may differ from the fused experts by this share of their largest output.
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}
_LOW_PRECISION_TOLERANCE = 2e-2
_ORDER = ("gate_proj", "up_proj", "down_proj")
_FLAGS = ("has_gate", "has_bias", "is_transposed", "is_concatenated")


class Expert(nn.Module):
    """One expert: a gated or plain pair of linear layers.

    Args:
        layers: `gate_proj` (or none), `up_proj` and `down_proj`.
        act_fn: activation of the gate, or of `up_proj` where there is none.
    """

    def __init__(self, layers: Mapping[str, nn.Linear], act_fn: nn.Module) -> None:
        super().__init__()
        for name in sorted(layers, key=_ORDER.index):
            self.add_module(name, layers[name])
        self.act_fn = act_fn
        self.gated = "gate_proj" in layers

    def forward(self, tokens: Tensor) -> Tensor:
        """[n, inputs] to [n, outputs]."""
        first = "gate_proj" if self.gated else "up_proj"
        hidden = self.act_fn(self.get_submodule(first)(tokens))
        if self.gated:
            hidden = hidden * self.get_submodule("up_proj")(tokens)
        return self.get_submodule("down_proj")(hidden)


class Routing:
    """Which experts the tokens of the last quantized forward went to; copies of a model share it.

    The float model runs right behind the quantized one, layer by layer, and follows it.
    """

    def __init__(self) -> None:
        self._last: Tensor | None = None

    def __deepcopy__(self, memo: dict) -> Routing:
        return self

    def followed(self, index: Tensor, leads: bool) -> Tensor:
        """The experts of each token, of this forward or, where it does not lead, of the last."""
        if leads:
            self._last = index
            return index
        known = self._last
        return known if known is not None and known.shape == index.shape else index


class RoutedExperts(nn.Module):
    """Experts in the place of a fused module of transformers, which it computes the same as.

    Args:
        experts: in their order.
        act_fn: of the fused module, under the same name.

    Attributes:
        routing: set while a block is solved.
    """

    def __init__(self, experts: list[Expert], act_fn: nn.Module) -> None:
        super().__init__()
        self.act_fn = act_fn
        self.num_experts = len(experts)
        self.routing: Routing | None = None
        for number, expert in enumerate(experts):
            self.add_module(str(number), expert)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """[tokens, inputs], experts and their weights [tokens, k] to [tokens, outputs]."""
        if self.routing is not None:
            top_k_index = self.routing.followed(top_k_index, _quantizes(self))
        total = torch.zeros_like(hidden_states)
        for number in range(self.num_experts):
            token, place = torch.where(top_k_index == number)
            if len(token):
                given = self.get_submodule(str(number))(hidden_states[token])
                given = given * top_k_weights[token, place, None]
                total.index_add_(0, token, given.to(total.dtype))
        return total


def _quantizes(module: nn.Module) -> bool:
    parts: list[Any] = [m for m in module.modules() if hasattr(m, "weight_quant")]
    return any(part.weight_quant.is_quant_enabled for part in parts)


def fused_experts(model: nn.Module) -> list[str]:
    """Names of modules that hold the weights of several experts in tensors of three axes."""
    return [
        name
        for name, module in model.named_modules()
        if hasattr(module, "num_experts") or "Expert" in type(module).__name__
        if any(p is not None and p.dim() == 3 for p in module._parameters.values())
    ]


def experts_to_linears(model: nn.Module, exclude: tuple[str, ...] = ()) -> Callable[[], None]:
    """Turns fused experts into named linear layers, in place; they share the tensors' memory.

    Args:
        model: float.
        exclude: names of modules to leave as they are, with all inside.

    Returns:
        Puts the fused modules back.

    Raises:
        UnsupportedLayer: fused experts of a form that is not known here; nothing is changed then.
    """
    made = {
        name: _unfused(name, model.get_submodule(name))
        for name in fused_experts(model)
        if not is_inside(name, exclude)
    }
    old = {name: model.get_submodule(name) for name in made}
    for name, module in made.items():
        model.set_submodule(name, module)

    def undo() -> None:
        for name, module in old.items():
            model.set_submodule(name, module)

    return undo


def _unfused(name: str, fused: Any) -> RoutedExperts:
    refusal = UnsupportedLayer(
        f"the experts of '{name}' ({type(fused).__name__}) are fused in a form that is not known "
        f"here, so they would stay in float; say so by exclude=('{name}',), or write them as an "
        "nn.ModuleList of modules with linear layers."
    )
    gate: Any = getattr(fused, "_apply_gate", None)
    plain = getattr(gate, "__name__", "") == "_default_apply_gate"
    known = all(hasattr(fused, flag) for flag in _FLAGS) and hasattr(fused, "act_fn")
    if not known or not (plain or not fused.has_gate) or not fused.is_concatenated:
        raise refusal
    if getattr(fused, "has_post_expert_norm", False):
        raise refusal
    if any(parameter.is_meta for parameter in fused.parameters()):
        bring_in(fused)
    new = RoutedExperts([_expert(fused, i) for i in range(fused.num_experts)], fused.act_fn)
    new.train(fused.training)
    if not _same(fused, new):
        raise refusal
    return new


def _expert(fused: Any, number: int) -> Expert:
    stacked = {"up_proj": "gate_up_proj" if fused.has_gate else "up_proj", "down_proj": "down_proj"}
    layers: dict[str, nn.Linear] = {}
    for name, tensor in stacked.items():
        weight = getattr(fused, tensor)[number].detach()
        weight = weight.mT if fused.is_transposed else weight
        bias = getattr(fused, f"{tensor}_bias")[number].detach() if fused.has_bias else None
        trained = getattr(fused, tensor).requires_grad
        if name == "up_proj" and fused.has_gate:
            gates = (None, None) if bias is None else bias.chunk(2)
            gate, weight = weight.chunk(2)
            layers["gate_proj"] = _linear(gate, gates[0], trained)
            bias = gates[1]
        layers[name] = _linear(weight, bias, trained)
    return Expert(layers, fused.act_fn)


def _linear(weight: Tensor, bias: Tensor | None, trained: bool) -> nn.Linear:
    rows, columns = weight.shape
    linear = nn.Linear(columns, rows, bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.contiguous(), requires_grad=trained)
    if bias is not None:
        linear.bias = nn.Parameter(bias.clone(), requires_grad=trained)
    return linear


@torch.no_grad()
def _same(fused: Any, new: RoutedExperts) -> bool:
    """Whether both give the same for some tokens, one for each expert."""
    like: Tensor = next(p for p in fused.parameters() if p.dim() == 3)
    count, width = new.num_experts, new.get_submodule("0.up_proj").get_parameter("weight").shape[1]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(count, width, generator=generator).to(like)
    index = torch.arange(count, device=like.device).unsqueeze(1)
    weights = torch.linspace(0.5, 1, count).to(like).unsqueeze(1)
    # Not the implementation that the configuration names: some know few types of numbers.
    forward = getattr(type(fused).forward, "__wrapped__", type(fused).forward)
    wanted, found = forward(fused, tokens, index, weights), new(tokens, index, weights)
    tolerance = _TOLERANCE.get(like.dtype, _LOW_PRECISION_TOLERANCE)
    return bool((wanted - found).abs().max() <= tolerance * wanted.abs().max())
