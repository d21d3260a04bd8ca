"""Bits for the keys and values that a transformer keeps: one method per file."""
