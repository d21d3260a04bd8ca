"""Compiles the Triton kernels for GPUs that need not be there; prints one line for each."""

from __future__ import annotations

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from brevitas_axe.methods.solvers.on_triton import descent, recursion

INTEGERS = {
    "tile_of", "input_low", "input_high", "weight_low", "weight_high", "room_above", "room_below",
    "edges", "low", "high",
}  # fmt: skip
TYPES = dict.fromkeys(INTEGERS, "*i64") | {"integers": "*i32", "residual": "*fp64"}
DOUBLES = ("wanted", "scale", "half_gradient", "factors", "losses", "diagonal")
NUMBERS = ("start", "stop", "columns", "rows", "tiles", "number", "most_moves")
KERNELS: list[tuple[Any, dict[str, Any], dict[str, Any]]] = [
    (
        recursion._panel,
        {
            "BACKWARD": True,
            "FORGETS_SHRINKAGE": True,
            "WIDTH": 64,
            "AT_ONCE": 64,
            "ROWS_AT_ONCE": recursion.ROWS,
        },
        recursion.PANEL_OPTIONS,
    ),
    (
        recursion._ball_thresholds,
        {"ROWS_AT_ONCE": recursion.ENTRIES // 128, "AT_ONCE": 128},
        recursion.OPTIONS,
    ),
    (
        descent._descend,
        {"REFITS": True, "AT_ONCE": descent.COLUMNS},
        recursion.OPTIONS,
    ),
]


def main() -> None:
    """Compiles each kernel for each architecture and floating-point type."""
    for kernel, constants, options in KERNELS:
        types = TYPES
        if kernel is descent._descend:
            types = TYPES | {"integers": "*i64"} | dict.fromkeys(DOUBLES, "*fp64")
        for number in ("fp32", "fp64"):
            signature = {
                name: "constexpr"
                if name in constants
                else "i32"
                if name in NUMBERS
                else types.get(name, f"*{number}")
                for name in kernel.arg_names
            }
            for capability in (80, 90):
                source = ASTSource(kernel, signature, constants)
                target = GPUTarget("cuda", capability, 32)
                code = triton.compile(source, target=target, options=options).asm
                print(
                    source.name, number, f".target sm_{capability}" in code["ptx"], "cubin" in code
                )


if __name__ == "__main__":
    main()
