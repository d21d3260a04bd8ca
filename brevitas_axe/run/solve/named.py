"""The published algorithms, each as a mode with its own name."""

from __future__ import annotations

from brevitas_axe.run.solve.mode import axe_mode


class axe_gpfq_mode(axe_mode):
    """`axe_mode` by GPFQ: greedy path following, against the activations of the float model.

    Arguments and attributes are those of `axe_mode`, and Brevitas's `gpfq_mode` is its model.

    Sources: GPFQ (arXiv 2201.11113), AXE (arXiv 2409.17092).
    """

    own_solver = "gpfq"


class axe_gptq_mode(axe_mode):
    """`axe_mode` by GPTQ (OPTQ): errors are propagated by the inverse of the Hessian.

    Arguments and attributes are those of `axe_mode`, and Brevitas's `gptq_mode` is its model.

    Sources: GPTQ (arXiv 2210.17323), AXE (arXiv 2409.17092).
    """

    own_solver = "gptq"


class axe_qronos_mode(axe_mode):
    """`axe_mode` by Qronos: GPTQ that also corrects the errors of quantized inputs.

    Arguments and attributes are those of `axe_mode`; in Brevitas it is `gpfq_mode` with Qronos as
    its algorithm.

    Sources: Qronos (arXiv 2505.11695), AXE (arXiv 2409.17092).
    """

    own_solver = "qronos"
