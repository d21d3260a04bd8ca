"""Rewrites of a float model that preserve its function: one method per file."""
