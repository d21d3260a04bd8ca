"""The console on which tables are printed."""

from __future__ import annotations

from rich.console import Console

# A certificate has a dozen columns; narrower, rich would cut the figures off.
_LEAST_COLUMNS = 132


def console() -> Console:
    """A console that prints whole tables, into pipes and narrow windows too."""
    return Console(width=max(Console().width, _LEAST_COLUMNS))
