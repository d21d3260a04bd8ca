"""One thread for each test process and for what it starts.

pytest-xdist runs as many processes as there are processors. Where each of them has as many threads
again, they wait for one another: the solvers' tests take six times the processor time on two cores.
The number is read when torch is imported, which is after this file and before any test. Tests of
what several threads do ask for them.

Triton reads at its import whether kernels run in its interpreter, which takes tensors of the CPU.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRITON_INTERPRET", "1")
