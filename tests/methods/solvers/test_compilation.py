"""Kernels can be compiled ahead of time."""

from __future__ import annotations

from brevitas_axe.methods.solvers.compilation import compile_kernels, kernels_are_ready


def test_compiled_once() -> None:
    compile_kernels()
    assert kernels_are_ready()
    assert compile_kernels() < 1
