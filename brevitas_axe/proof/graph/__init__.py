"""Reads a QONNX file: which integers every tensor can have, on which grid."""
