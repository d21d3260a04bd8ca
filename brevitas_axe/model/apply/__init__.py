"""Applies widths to a Brevitas model: those of weights and those of activations."""
