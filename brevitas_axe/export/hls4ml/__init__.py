"""Checks of models for hls4ml, without hls4ml, and projects with proven types."""

from brevitas_axe.export.hls4ml.alone import WorstCase, export_layers_alone
from brevitas_axe.export.hls4ml.check import check_hls4ml
from brevitas_axe.export.hls4ml.prepare import prepare_for_hls4ml
from brevitas_axe.export.hls4ml.project import Accumulator, Hls4mlProject, export_hls4ml

__all__ = [
    "Accumulator",
    "Hls4mlProject",
    "WorstCase",
    "check_hls4ml",
    "export_hls4ml",
    "export_layers_alone",
    "prepare_for_hls4ml",
]
