"""A layer as a sum of branches, each an ordinary layer: one method per file."""
