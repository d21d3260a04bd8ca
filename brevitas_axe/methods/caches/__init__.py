"""Bits for the keys and values that a transformer keeps: one method per file."""

from brevitas_axe.methods.caches.protocol import CacheBits

__all__ = ["CacheBits"]
