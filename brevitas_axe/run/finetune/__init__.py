"""Quantization-aware training that keeps the guarantee at every forward.

The quantizers hold it by themselves, in anybody's loop; this room has what makes such training
good (start, penalty, groups of parameters), and `finetune`, the short way.
"""

from brevitas_axe.run.finetune.balls import accumulator_penalty, ep_init
from brevitas_axe.run.finetune.groups import parameter_groups
from brevitas_axe.run.finetune.losses import accuracy, distillation
from brevitas_axe.run.finetune.norms import fold_batch_norms, reestimate_batch_norms
from brevitas_axe.run.finetune.run import FinetuneResult, finetune, held_plan

__all__ = [
    "FinetuneResult",
    "accumulator_penalty",
    "accuracy",
    "distillation",
    "ep_init",
    "finetune",
    "fold_batch_norms",
    "held_plan",
    "parameter_groups",
    "reestimate_batch_norms",
]
