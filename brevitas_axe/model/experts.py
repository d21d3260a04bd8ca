"""Experts: layers of which each reads only some tokens, as data decides.

Two forms. Transformers keeps the experts of a block fused in tensors [experts, outputs, inputs],
which no quantizer finds; they become named linear layers (`mlp.experts.3.down_proj`). And by hand
one writes an nn.ModuleList of experts, called in a loop over the tokens of each.

While blocks are calibrated and solved, an expert with few tokens gets all tokens of its block
instead (shared statistics), and the float model routes tokens as the quantized one does, so that
the inputs of an expert in the two can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from greenlet import getcurrent
from torch import Tensor, nn

from brevitas_axe.errors import UnsupportedLayer
from brevitas_axe.model.layers import is_inside
from brevitas_axe.model.offload import bring_in
from brevitas_axe.model.running import first_input, hooked

# An expert with fewer tokens in all of the calibration data has shared statistics.
LEAST_TOKENS = 32
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


@dataclass(frozen=True)
class Experts:
    """Experts that share their tokens.

    Attributes:
        caller: name of the module that is called with all tokens.
        members: names of the experts inside it, in their order.
        paired: whether the float model follows the quantized one's routing.
    """

    caller: str
    members: tuple[str, ...]
    paired: bool

    def names(self) -> tuple[str, ...]:
        """The experts by their names in the model."""
        return tuple(f"{self.caller}.{m}" if self.caller else m for m in self.members)


def find_experts(model: nn.Module) -> list[Experts]:
    """Modules that may be experts, by structure: modules of one class, each with linear layers."""
    found = []
    for name, module in model.named_modules():
        if isinstance(module, RoutedExperts):
            members = tuple(str(number) for number in range(module.num_experts))
            found.append(Experts(name, members, paired=True))
            continue
        for key, child in module.named_children():
            parts = list(child.children())
            alike = len({type(part) for part in parts}) == 1
            if (
                type(child) is nn.ModuleList
                and len(parts) > 1
                and alike
                and all(any(isinstance(m, nn.Linear) for m in part.modules()) for part in parts)
            ):
                members = tuple(f"{key}.{number}" for number, _ in child.named_children())
                found.append(Experts(name, members, paired=False))
    return found


def routers(model: nn.Module, experts: list[Experts]) -> list[str]:
    """Names of the modules beside experts that give one number for each of them."""
    found = []
    for each in experts:
        holder = each.caller.rpartition(".")[0] if each.paired else each.caller
        for key, child in model.get_submodule(holder).named_children():
            weight = child._parameters.get("weight")
            if weight is not None and weight.dim() == 2 and len(weight) == len(each.members):
                found.append(f"{holder}.{key}" if holder else key)
    return list(dict.fromkeys(found))


def usage(
    model: nn.Module, experts: list[Experts], run: Callable[[], Any]
) -> dict[str, dict[str, int]]:
    """Tokens of each expert, by caller, for those callers whose experts do not all read all tokens.

    Args:
        model: contains them.
        experts: by structure.
        run: runs the model over all data.
    """
    rows: dict[str, int] = {}

    def note(name: str, _: nn.Module, args: tuple, kwargs: dict) -> None:
        rows[name] = rows.get(name, 0) + _tokens(first_input(args, kwargs)).shape[0]

    watched = {n: model.get_submodule(n) for e in experts for n in (e.caller, *e.names())}
    with hooked(watched, before=note):
        run()
    found = {}
    for each in experts:
        counts = {name: rows.get(name, 0) for name in each.names()}
        if any(0 < count < rows.get(each.caller, 0) for count in counts.values()):
            found[each.caller] = counts
    return found


def _tokens(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


@dataclass(frozen=True)
class Calibrated:
    """Experts while they are calibrated and solved.

    Attributes:
        experts: those that are routed, among all that may be.
        shared: names of the experts with shared statistics; their layers may be called several
            times in one forward, and once in another.
        unpaired: names of the experts whose tokens are others in the float model, so that they are
            solved without its inputs.
    """

    experts: tuple[Experts, ...] = ()
    shared: tuple[str, ...] = ()
    unpaired: tuple[str, ...] = ()

    def is_shared(self, name: str) -> bool:
        """Whether a layer is in an expert with shared statistics."""
        return is_inside(name, self.shared)

    def is_unpaired(self, name: str) -> bool:
        """Whether a layer is in an expert whose tokens are others in the float model."""
        return is_inside(name, self.unpaired)

    def facts_of(self, name: str) -> dict[str, str]:
        """What the log says of a layer's statistics, where they are not the usual ones."""
        if self.is_shared(name):
            return {"statistics": "all tokens of the block, since the expert has few of its own"}
        if self.is_unpaired(name):
            return {"statistics": "quantized inputs only, since the float model routes for itself"}
        return {}


@contextmanager
def calibrating_experts(model: nn.Module, run: Callable[[], Any]) -> Iterator[Calibrated]:
    """Context in which experts with few tokens get all of them, and routing is that of the model.

    Args:
        model: float, or a block of it; its copies made meanwhile follow its routing.
        run: runs it over all calibration data, once.
    """
    candidates = find_experts(model)
    tokens = usage(model, candidates, run) if candidates else {}
    experts = [each for each in candidates if each.caller in tokens]
    few = {n for counts in tokens.values() for n, count in counts.items() if count < LEAST_TOKENS}
    routed: list[Any] = [model.get_submodule(e.caller) for e in experts if e.paired]
    for module in routed:
        module.routing = Routing()
    try:
        with called(model, experts, few):
            yield Calibrated(
                tuple(experts),
                tuple(sorted(few)),
                tuple(n for e in experts if not e.paired for n in e.names()),
            )
    finally:
        for module in routed:
            module.routing = None


@contextmanager
def called(
    model: nn.Module, experts: list[Experts] | tuple[Experts, ...], names: set[str] | None = None
) -> Iterator[None]:
    """Context in which experts are called with all tokens that experts beside them get.

    Fused ones are called first, with the tokens of the module; those written by hand afterwards,
    with what the others were called with.

    Args:
        model: contains them.
        experts: those concerned.
        names: of some of them; None for all.
    """
    chosen = [(each, _chosen(each, names)) for each in experts]
    paired = {each.caller: members for each, members in chosen if each.paired}
    others = {each.caller: members for each, members in chosen if not each.paired}
    # Forwards are suspended and go on later: each has inputs of its own.
    seen: dict[tuple[Any, str], list[Tensor]] = {}

    def call(name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        for member in paired[name]:
            module.get_submodule(member)(_tokens(first_input(args, kwargs)))

    def forget(name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        seen[getcurrent(), name] = []

    def note(name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        known = seen.get((getcurrent(), callers[name]))
        if known is not None:
            known.append(_tokens(first_input(args, kwargs)))

    def call_after(name: str, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        inputs = seen.pop((getcurrent(), name), [])
        for member in others[name] if inputs else ():
            module.get_submodule(member)(torch.cat(inputs))

    def modules(names: Iterable[str]) -> dict[str, nn.Module]:
        return {name: model.get_submodule(name) for name in names}

    callers = {name: e.caller for e, members in chosen for name in e.names() if not e.paired}
    with (
        hooked(modules(n for n, members in paired.items() if members), before=call),
        hooked(modules(n for n, members in others.items() if members), forget, call_after),
        hooked(modules(n for n, caller in callers.items() if others[caller]), before=note),
    ):
        yield


def _chosen(experts: Experts, names: set[str] | None) -> list[str]:
    """Members of experts, of which names are wanted."""
    pairs = zip(experts.members, experts.names(), strict=True)
    return [member for member, name in pairs if names is None or name in names]
