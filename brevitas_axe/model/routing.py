"""Experts of which each reads only some tokens, as data decides: which they are, and their data.

They are those of experts.py, or written by hand as an nn.ModuleList that a loop calls with the
tokens of each. While a block is calibrated and solved, an expert with few tokens gets those of the
experts beside it (shared statistics), and a copy of the block routes tokens as the quantized one
does where that can be arranged, so that an expert's inputs in the two can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from greenlet import getcurrent
from torch import Tensor, nn

from brevitas_axe.model.experts import RoutedExperts, Routing
from brevitas_axe.model.layers import is_inside
from brevitas_axe.model.prepare import one_sample
from brevitas_axe.model.running import Batch, first_input, hooked

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


def routers_within(model: nn.Module, blocks: Iterable[str]) -> tuple[str, ...]:
    """Names of the routers inside some modules."""
    inside = tuple(blocks)
    return tuple(routers(model, [e for e in find_experts(model) if is_inside(e.caller, inside)]))


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


@contextmanager
def reaching_experts(model: nn.Module, batches: Sequence[Batch]) -> Iterator[None]:
    """Context in which every forward calls all experts that have few tokens, in all or in a sample.

    What is measured of one sample then knows all experts. Copies that are made in the context keep
    calling them.

    Args:
        model: float.
        batches: of calibration; the first sample of the first one is that sample.
    """

    def run(some: Sequence[Batch]) -> None:
        with torch.no_grad():
            for args, kwargs in some:
                model(*args, **kwargs)

    candidates = find_experts(model)
    tokens = usage(model, candidates, lambda: run(batches)) if candidates else {}
    experts = [each for each in candidates if each.caller in tokens]
    one = usage(model, experts, lambda: run([one_sample(batches[0])])) if experts else {}
    missed = {
        name
        for caller, counts in tokens.items()
        for name, count in counts.items()
        # A quantized model routes some tokens otherwise.
        if min(count, one.get(caller, {}).get(name, 0)) < LEAST_TOKENS
    }
    with called(model, experts, missed):
        yield


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
def calibrating_experts(model: nn.Module, *runs: Callable[[], Any]) -> Iterator[Calibrated]:
    """Context in which experts with few tokens get all of them, and routing is that of the model.

    Args:
        model: float, or a block of it; its copies made meanwhile follow its routing.
        runs: each runs it over all calibration data, once: over float inputs, and over those of the
            quantized model, whose tokens may go elsewhere. The least count of each expert decides.
    """
    candidates = find_experts(model)
    tokens = [usage(model, candidates, run) for run in runs] if candidates else []
    experts = [each for each in candidates if any(each.caller in found for found in tokens)]
    counts = [pair for found in tokens for each in found.values() for pair in each.items()]
    few = {name for name, count in counts if count < LEAST_TOKENS}
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
    # Forwards are suspended and go on later: each has inputs, and hooks, of its own.
    seen: dict[tuple[Any, str], tuple[list[Tensor], list[Any]]] = {}

    def call(name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        for member in paired[name]:
            module.get_submodule(member)(_tokens(first_input(args, kwargs)))

    def watch(name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        forward, inputs = getcurrent(), []

        def note(_: nn.Module, args: tuple, kwargs: dict) -> None:
            if getcurrent() is forward:
                inputs.append(_tokens(first_input(args, kwargs)))

        # Now, since quantization exchanges layers, and experts may be layers.
        parts = [module.get_submodule(member) for member in everyone[name]]
        hooks = [part.register_forward_pre_hook(note, with_kwargs=True) for part in parts]
        seen[forward, name] = inputs, hooks

    def call_after(name: str, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        inputs, hooks = seen.pop((getcurrent(), name))
        for hook in hooks:
            hook.remove()
        for member in others[name] if inputs else ():
            module.get_submodule(member)(torch.cat(inputs))

    def modules(callers: dict[str, list[str]]) -> dict[str, nn.Module]:
        return {name: model.get_submodule(name) for name, members in callers.items() if members}

    everyone = {each.caller: each.members for each in experts}
    try:
        with hooked(modules(paired), call), hooked(modules(others), watch, call_after):
            yield
    finally:
        for _, hooks in seen.values():  # of forwards that were given up
            for hook in hooks:
                hook.remove()


def _chosen(experts: Experts, names: set[str] | None) -> list[str]:
    """Members of experts, of which names are wanted."""
    pairs = zip(experts.members, experts.names(), strict=True)
    return [member for member, name in pairs if names is None or name in names]
