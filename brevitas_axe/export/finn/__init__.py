"""Checks and preparation of files and models for FINN, without FINN."""

from brevitas_axe.export.finn.check import check_finn
from brevitas_axe.export.finn.finding import Finding

__all__ = ["Finding", "check_finn"]
