"""The range of every activation quantizer: one method per file."""

from brevitas_axe.methods.ranges.fitting import (
    USUAL_FITTER,
    fit_format_ranges,
    fit_ranges,
    fit_ranges_to,
)

__all__ = ["USUAL_FITTER", "fit_format_ranges", "fit_ranges", "fit_ranges_to"]
