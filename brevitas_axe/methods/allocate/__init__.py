"""Which layer gets which bits: one allocator per file."""

from brevitas_axe.methods.allocate.allocation import (
    Allocation,
    allocate_bits,
    make_problem,
    pareto,
)
from brevitas_axe.methods.allocate.backend import Backend, load_backend
from brevitas_axe.methods.allocate.checks import (
    check_budget,
    check_groups,
    check_metrics,
    check_target,
)
from brevitas_axe.methods.allocate.problem import Assignment, Problem, Quantity
from brevitas_axe.methods.allocate.products import Beside, following
from brevitas_axe.methods.allocate.protocol import Allocator
from brevitas_axe.methods.allocate.tables import (
    cost_table,
    cost_tables,
    foldings_within,
    output_readers,
)

__all__ = [
    "Allocation",
    "Allocator",
    "Assignment",
    "Backend",
    "Beside",
    "Problem",
    "Quantity",
    "allocate_bits",
    "check_budget",
    "check_groups",
    "check_metrics",
    "check_target",
    "cost_table",
    "cost_tables",
    "foldings_within",
    "following",
    "load_backend",
    "make_problem",
    "output_readers",
    "pareto",
]
