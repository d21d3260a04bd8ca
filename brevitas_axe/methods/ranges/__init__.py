"""The range of every activation quantizer: one method per file."""

from brevitas_axe.methods.ranges.fitting import fit_ranges, fit_ranges_to

__all__ = ["fit_ranges", "fit_ranges_to"]
