"""What a recipe says by pattern: which layers a pattern means, and what a rule may give them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from brevitas_axe.errors import InvalidOption
from brevitas_axe.plan import OF_TYPE, LayerPrecision, name_matches, precision_of

# Key of a rule beside widths.
EXCLUDE = "exclude"
_RULED = tuple(f.name for f in fields(LayerPrecision))


def applies(pattern: str, name: str, layer: object) -> bool:
    """Whether a pattern means a layer.

    Args:
        pattern: of names (see `brevitas_axe.plan.name_matches`), or "type:" and a class.
        name: of the layer.
        layer: the module itself.
    """
    if pattern.startswith(OF_TYPE):
        kind = pattern.removeprefix(OF_TYPE)
        return any(ancestor.__name__ == kind for ancestor in type(layer).__mro__)
    return name_matches(pattern, name)


def check_pattern(what: str, pattern: object) -> None:
    """Raises InvalidOption for what is no pattern, and InvalidPlan for a broken expression.

    Args:
        what: starts with it, for the message.
        pattern: of a file or a caller.
    """
    if not isinstance(pattern, str) or not pattern:
        raise InvalidOption(f"a {what} starts with a pattern of names, not {pattern!r}.")
    name_matches(pattern, "")


def check_rule(pattern: object, rule: object) -> None:
    """Raises InvalidOption or InvalidPlan for a rule that cannot be followed."""
    check_pattern("rule", pattern)
    known = (*_RULED, EXCLUDE)
    if not isinstance(rule, Mapping) or not rule or not set(rule) <= set(known):
        raise InvalidOption(
            f"the rule '{pattern}' must be a mapping with keys among {', '.join(known)}."
        )
    if not isinstance(rule.get(EXCLUDE, False), bool):
        raise InvalidOption(f"the rule '{pattern}': exclude must be true or false.")
    widths = {key: value for key, value in rule.items() if key != EXCLUDE}
    precision_of(f"the rule '{pattern}'", widths)
