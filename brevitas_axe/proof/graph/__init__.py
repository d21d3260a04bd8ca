"""Reads a QONNX file: which integers, on which grid, arrive at every tensor."""
