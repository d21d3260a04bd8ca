"""Reads QONNX files and judges them, and models as they run. Shares no code with what it judges."""
