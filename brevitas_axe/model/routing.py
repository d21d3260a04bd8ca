"""Experts of which each reads only some tokens, as data decides: which they are, and their data.

They are those of experts.py, or written by hand as an nn.ModuleList that a loop calls with the
tokens of each. While a block is calibrated and solved, an expert with few tokens gets those of the
experts beside it (shared statistics), and a copy of the block routes tokens as the quantized one
does where that can be arranged, so that an expert's inputs in the two can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from greenlet import getcurrent
from torch import Tensor, nn

from brevitas_axe.model.experts import RoutedExperts, Routing
from brevitas_axe.model.layers import is_inside
from brevitas_axe.model.running import first_input, hooked

# An expert with fewer tokens in all of the calibration data has shared statistics.
LEAST_TOKENS = 32


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
