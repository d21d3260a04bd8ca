"""Refuses requests that an allocator would ignore, before any layer is scored."""

from __future__ import annotations

from collections.abc import Iterable

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.allocate.protocol import Allocator
from brevitas_axe.methods.cost.protocol import CostModel
from brevitas_axe.methods.sensitivity.protocol import GroupingScorer, Scorer
from brevitas_axe.registry import method, methods


def check_budget(cost: str | CostModel) -> None:
    """Raises InvalidOption for a budget of a cost that no widths change."""
    if not method("cost", cost).depends_on_bits:
        raise InvalidOption(
            f"{cost} is no budget for bits, which do not change it; bound it by folding the layers "
            "(--max-cycles N, or `foldings_within`)."
        )


def check_target(target: float | None, allocator: str | Allocator) -> None:
    """Raises InvalidOption where there is a target that the allocator would ignore."""
    if target is not None and not method("allocate", allocator).takes_target:
        raise InvalidOption(
            f"the allocator {allocator!r} takes no target; leave it out, or use "
            f"{_others('takes_target')}."
        )


def check_metrics(metrics: Iterable[str], allocator: str | Allocator) -> None:
    """Raises InvalidOption where there are several metrics and only the first would count."""
    if len(set(metrics)) > 1 and not method("allocate", allocator).several_metrics:
        raise InvalidOption(
            f"the allocator {allocator!r} looks at one metric; give one, or use "
            f"{_others('several_metrics')}."
        )


def check_groups(scorer: str | Scorer, allocator: str | Allocator, layers: Iterable[str]) -> None:
    """Raises InvalidOption where the allocator needs groups of layers and the scorer makes none.

    Args:
        scorer, allocator: registered names, with options or without, or the methods themselves.
        layers: names of all layers that are scored.
    """
    found = method("sensitivity", scorer)
    groups = found.groups(layers) if isinstance(found, GroupingScorer) else {}
    if method("allocate", allocator).needs_groups and len(groups) < 2:
        makers = ", ".join(
            f"'{name}'"
            for name, other in methods("sensitivity").items()
            if isinstance(other, GroupingScorer)
        )
        raise InvalidOption(
            f"the allocator {allocator!r} divides budgets between groups of layers, but the scorer "
            f"{scorer!r} judges all of these layers alike; use another allocator, or a scorer that "
            f"makes groups ({makers}) with options under which it finds some."
        )


def _others(fact: str) -> str:
    """Names of the allocators with an attribute that is true, as part of a message."""
    return ", ".join(f"'{name}'" for name, one in methods("allocate").items() if getattr(one, fact))
