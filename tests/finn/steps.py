"""The steps of FINN's own builder that flow.py runs, and where its stages end.

Every step is a function of `finn.builder`. `default` is FINN's list for a build that ends at its
estimates, as it is; the other recipes put steps of FINN's step library in, as FINN's own
configurations of such nets do: graphs that fork and join are streamlined by the ResNet's step, and
1-D convolutions get a second axis first.
"""

from __future__ import annotations

import os
import sys
import tempfile
import types

# Read when FINN's settings are made; it would choose a folder in the user's home.
os.environ.setdefault("FINN_BUILD_DIR", tempfile.mkdtemp(prefix="finn-"))

from finn.util.settings import initialize_dummy_settings

initialize_dummy_settings()
# The simulator of Vivado, which the builder imports; no step here runs it.
_xsi = types.ModuleType("finn.xsi")
_xsi.__getattr__ = lambda name: None  # pyright: ignore[reportAttributeAccessIssue]
sys.modules["finn.xsi"] = _xsi

from finn.builder.build_dataflow_config import estimate_only_dataflow_steps  # noqa: E402
from finn.builder.build_dataflow_steps import (  # noqa: E402
    BuildDataflowStep,
    build_dataflow_step_lookup,
)
from finn.builder.custom_step_library.conv1d import step_pre_streamline  # noqa: E402
from finn.builder.custom_step_library.resnet import (  # noqa: E402
    step_resnet_convert_to_hw,
    step_resnet_streamline,
)
from finn.transformation.fpgadataflow.convert_to_hw.upsample import InferUpsample  # noqa: E402
from finn.transformation.streamline import Streamline  # noqa: E402
from finn.transformation.streamline.absorb import (  # noqa: E402
    AbsorbScalarBiasIntoMultiThreshold,
    AbsorbTransposeIntoResize,
)
from finn.transformation.streamline.reorder import MoveMulPastFork  # noqa: E402
from finn.transformation.streamline.streamline_plus import StreamlinePlus  # noqa: E402
from qonnx.core.modelwrapper import ModelWrapper  # noqa: E402
from qonnx.transformation.infer_data_layouts import InferDataLayouts  # noqa: E402
from qonnx.transformation.infer_datatypes import InferDataTypes  # noqa: E402

# Of streamlining a transformer: a scale passes reshape, transposition and product one by one.
_ROUNDS = 3

DEFAULT = {name: build_dataflow_step_lookup[name] for name in estimate_only_dataflow_steps}


def step_unet_streamline(model: ModelWrapper, cfg: object) -> ModelWrapper:
    """The ResNet's streamlining, and channels last through nearest upsampling.

    FINN converts upsampling, but its list of steps asks for nodes of a former operator set alone,
    and leaves the channels first around today's.
    """
    model = step_resnet_streamline(model, cfg)
    for _ in model.get_nodes_by_op_type("Resize"):
        model = model.transform(AbsorbTransposeIntoResize())
        model = model.transform(StreamlinePlus())
    for inferred in (InferDataLayouts(), InferDataTypes(), InferUpsample()):
        model = model.transform(inferred)
    return model


def step_transformer_streamline(model: ModelWrapper, cfg: object) -> ModelWrapper:
    """FINN's streamlining, until the scales of both operands are behind products of activations.

    A layer norm's quantizer is read by three layers, so its scale has to pass that fork first.
    """
    for _ in range(_ROUNDS):
        for moved in (AbsorbScalarBiasIntoMultiThreshold(), MoveMulPastFork(), Streamline()):
            model = model.transform(moved)
    for inferred in (InferDataLayouts(), InferDataTypes()):
        model = model.transform(inferred)
    return model


def _streamlined(*steps: BuildDataflowStep) -> dict[str, BuildDataflowStep]:
    """FINN's list with other steps in the place of its streamlining."""
    replaced: dict[str, tuple[BuildDataflowStep, ...]]
    replaced = {key: (own,) for key, own in DEFAULT.items()}
    replaced["step_streamline"] = steps
    if {step_resnet_streamline, step_unet_streamline} & set(steps):
        replaced["step_convert_to_hw"] += (step_resnet_convert_to_hw,)
    return {step.__name__: step for group in replaced.values() for step in group}


def _transformer() -> dict[str, BuildDataflowStep]:
    """FINN's list with a streamlining for transformers, and one more step of its whole build.

    That step makes units with estimates of those that move numbers.
    """
    found = _streamlined(step_transformer_streamline)
    name, last = found.popitem()
    decomposition = "step_transpose_decomposition"
    return {**found, decomposition: build_dataflow_step_lookup[decomposition], name: last}


RECIPES: dict[str, dict[str, BuildDataflowStep]] = {
    "default": DEFAULT,
    "resnet": _streamlined(step_resnet_streamline),
    "unet": _streamlined(step_unet_streamline),
    "transformer": _transformer(),
    "conv1d": _streamlined(step_pre_streamline, DEFAULT["step_streamline"]),
    "conv1d_resnet": _streamlined(step_pre_streamline, step_resnet_streamline),
}
# The last step of each stage.
STAGES = {
    "step_tidy_up": "finn",
    "step_streamline": "streamlined",
    "step_resnet_streamline": "streamlined",
    "step_unet_streamline": "streamlined",
    "step_transformer_streamline": "streamlined",
    "step_convert_to_hw": "hardware",
    "step_minimize_bit_width_initial": "minimized",
    "step_create_dataflow_partition": "partitioned",
    "step_generate_estimate_reports": "specialized",
}
