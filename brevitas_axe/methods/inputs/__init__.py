"""Quantizers of a layer's input, by name: one method per file."""
