"""Kernels for GPUs. A package of its own, since whatever lies in the room is imported with it.

Triton is an optional package: only devices.py imports these modules, where a GPU solves.
"""
