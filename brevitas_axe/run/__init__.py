"""Whole runs: they put models, methods and proofs together."""
