"""Widths into a Brevitas model: of weights and of activations."""
