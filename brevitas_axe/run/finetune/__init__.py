"""Quantization-aware training that keeps the guarantee at every forward.

The quantizers alone keep the guarantee, in any training loop. This package has what makes such
training accurate (initialization, penalty, groups of parameters), and `finetune`, a complete loop.
"""

from brevitas_axe.run.finetune.balls import accumulator_penalty, ep_init
from brevitas_axe.run.finetune.groups import parameter_groups
from brevitas_axe.run.finetune.losses import accuracy, distillation
from brevitas_axe.run.finetune.norms import fold_batch_norms, reestimate_batch_norms
from brevitas_axe.run.finetune.run import FinetuneResult, accumulator_plan, finetune

__all__ = [
    "FinetuneResult",
    "accumulator_penalty",
    "accumulator_plan",
    "accuracy",
    "distillation",
    "ep_init",
    "finetune",
    "fold_batch_norms",
    "parameter_groups",
    "reestimate_batch_norms",
]
