"""A layer as a sum of branches, each an ordinary layer: one method per file."""

from brevitas_axe.methods.splits.protocol import Branch, Split

__all__ = ["Branch", "Split"]
