"""Sends QONNX files through FINN, and writes down what FINN made of them.

Runs in FINN's environment (see environment.py), so it may import neither brevitas_axe nor torch. It
answers one request after another, since importing FINN takes many seconds: a request is a line of
JSON, {"model": path, "folder": path, "samples": path of an npz, "options": {...}}, and the answer
an empty line, or one that says what went wrong here. `Options` says what may be asked, `Flow` what
the folder holds afterwards. The steps are those of FINN's builder up to its estimates (steps.py).
"""

from __future__ import annotations

import json
import os
import sys
import traceback
import warnings
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import steps
from finn.analysis.fpgadataflow.exp_cycles_per_layer import exp_cycles_per_layer
from finn.analysis.fpgadataflow.res_estimation import res_estimation
from finn.builder.build_dataflow_config import DataflowBuildConfig, DataflowOutputType
from finn.core.onnx_exec import execute_onnx
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.custom_op.registry import getCustomOp
from qonnx.util.cleanup import cleanup_model

HARDWARE = "finn.custom_op.fpgadataflow"
CLOCK = 10  # nanoseconds


@dataclass(frozen=True)
class Options:
    """What a caller may ask for, as a JSON object.

    Attributes:
        recipe: which of `steps.RECIPES`.
        stages: where the samples are run: "qonnx" (the file as it is), or after which of
            `steps.STAGES`.
        part: FPGA that layers are specialized and estimated for.
        standalone_thresholds: thresholds as layers of their own, as FINN's RTL units want them;
            False fuses them into the matrix units.
        folding: attributes by node name of the specialized model, such as
            {"MVAU_hls_0": {"PE": 2, "SIMD": 4}}.
    """

    recipe: str = "default"
    stages: tuple[str, ...] = ("qonnx", "minimized")
    part: str = "xczu7ev-ffvc1156-2-e"
    standalone_thresholds: bool = False
    folding: dict[str, dict[str, Any]] = field(default_factory=dict)


class Flow:
    """One run of FINN.

    The folder then holds
        flow.json: "nodes" (of the last stage reached, in topological order: name, op_type, domain,
            datatypes, attributes, resources, cycles), "unmapped" (names of nodes that FINN does
            not build), "errors" (step, type, message, traceback of what ended the run; empty if
            it came through) and "stages" (those reached).
        weights.npz: the weight matrix of every matrix unit by node name, [MW, MH] of an MVAU,
            [channels, 1, k, k] of a VVAU, where it is no product of two activations; and
            <name>.thresholds where these are fused.
        outputs.npz: what the model gives for the samples, by stage.
        <stage>.onnx: the model at each stage reached.
    """

    def __init__(self, path: Path, folder: Path, samples: dict[str, np.ndarray], options: Options):
        self.model = ModelWrapper(str(path))
        self.folder = folder
        self.samples = samples
        self.options = options
        self.outputs: dict[str, Any] = {}
        self.reached: list[str] = []
        self.errors: list[dict[str, str]] = []
        self.unmapped: list[str] | None = None
        self.estimates: tuple[dict, dict] = ({}, {})

    def run(self) -> None:
        """Goes as far as FINN does, and writes the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        step = "qonnx"
        try:
            if "qonnx" in self.options.stages and self.samples:
                self.outputs["qonnx"] = self.execute(cleanup_model(deepcopy(self.model)))
            config = self.config()
            for step, function in steps.RECIPES[self.options.recipe].items():
                if step == "step_create_dataflow_partition":
                    self.unmapped = self.outside()
                self.model = function(self.model, config)
                if step in steps.STAGES:
                    self.finish(steps.STAGES[step])
            part = self.options.part
            self.estimates = res_estimation(self.model, part), exp_cycles_per_layer(self.model)
        except Exception as error:
            about = {"type": type(error).__name__, "message": str(error)}
            trace = "".join(traceback.format_exception(error))
            self.errors.append({"step": step, **about, "traceback": trace})
        self.write()

    def finish(self, stage: str) -> None:
        """Saves the model as it is at the end of a stage, and runs it if that is asked for."""
        if stage in self.options.stages and self.samples:
            self.outputs[stage] = self.execute(self.model)
        self.model.save(str(self.folder / f"{stage}.onnx"))
        self.reached.append(stage)

    def config(self) -> DataflowBuildConfig:
        """The builder's configuration, which says everything but the steps."""
        folding = self.folder / "folding.json"
        folding.write_text(json.dumps({"Defaults": {}, **self.options.folding}))
        return DataflowBuildConfig(
            output_dir=str(self.folder / "build"),
            synth_clk_period_ns=CLOCK,
            generate_outputs=[DataflowOutputType.ESTIMATE_REPORTS],
            fpga_part=self.options.part,
            standalone_thresholds=self.options.standalone_thresholds,
            folding_config_file=str(folding) if self.options.folding else None,
        )

    def outside(self) -> list[str]:
        """The nodes that FINN does not build."""
        return [n.name for n in self.model.graph.node if not n.domain.startswith(HARDWARE)]

    def execute(self, model: ModelWrapper) -> np.ndarray:
        """A model's first output for every sample, one at a time as the hardware would."""
        given = {i.name for i in model.graph.initializer}
        names = [i.name for i in model.graph.input if i.name not in given]
        shapes = [list(model.get_tensor_shape(name) or []) for name in names]
        count = len(next(iter(self.samples.values())))
        results = []
        for index in range(count):
            feed = {
                name: value[index].reshape(shape)
                for name, shape, value in zip(names, shapes, self.samples.values(), strict=True)
            }
            results.append(execute_onnx(model, feed)[model.graph.output[0].name])
        return np.stack(results)

    def shape(self, name: str) -> list[int]:
        return list(self.model.get_tensor_shape(name) or [])

    def write(self) -> None:
        resources, cycles = self.estimates
        nodes: list[dict[str, Any]] = []
        weights: dict[str, Any] = {}
        for node in self.model.graph.node:
            entry = {
                "name": node.name,
                "op_type": node.op_type,
                "domain": node.domain,
                "inputs": [self.datatype(name) for name in node.input],
                "outputs": [self.datatype(name) for name in node.output],
                "output_shape": self.shape(node.output[0]),
                "attributes": _attributes(node),
                "resources": resources.get(node.name),
                "cycles": cycles.get(node.name),
            }
            nodes.append(entry)
            units = node.op_type.startswith(("MVAU", "VVAU"))
            # A product of two activations has none.
            if units and self.model.get_initializer(node.input[1]) is not None:
                weights[node.name] = self.integers(node.input[1])
                if len(node.input) > 2:
                    weights[f"{node.name}.thresholds"] = self.model.get_initializer(node.input[2])
        if self.unmapped is None:
            self.unmapped = self.outside()
        report = {
            "nodes": nodes,
            "unmapped": self.unmapped,
            "errors": self.errors,
            "stages": self.reached,
        }
        (self.folder / "flow.json").write_text(json.dumps(report, indent=1))
        np.savez(self.folder / "weights.npz", **weights)
        np.savez(self.folder / "outputs.npz", **self.outputs)

    def integers(self, name: str) -> np.ndarray:
        values: Any = self.model.get_initializer(name)
        integers = np.rint(values).astype(np.int64)
        if not np.array_equal(integers, values):
            raise ValueError(f"the weights '{name}' are not integers.")
        return integers

    def datatype(self, name: str) -> str:
        return str(self.model.get_tensor_datatype(name).name)


def _attributes(node: Any) -> dict[str, Any]:
    """All attributes of a hardware layer with their defaults, the written ones of others."""
    if node.domain.startswith(HARDWARE):
        op = getCustomOp(node)
        names: Iterable[str] = op.get_nodeattr_types()
        values = {name: _get(op, name) for name in names}
    else:
        values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return {key: value for key, value in values.items() if _is_plain(value)}


def _get(op: Any, name: str) -> Any:
    try:
        value = op.get_nodeattr(name)
    except Exception:  # a required attribute that this node has not yet
        return None
    return value.tolist() if isinstance(value, np.ndarray) else value


def _is_plain(value: Any) -> bool:
    items = value if isinstance(value, list) else [value]
    return all(isinstance(item, (str, int, float)) for item in items)


def main() -> None:
    # FINN prints what it does; only answers may go to the caller.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        request = json.loads(line)
        answer = ""
        try:
            samples = dict(np.load(request["samples"]))
            options = Options(**request["options"])
            Flow(Path(request["model"]), Path(request["folder"]), samples, options).run()
        except Exception as error:
            answer = " ".join(str(error).split()) or type(error).__name__
        print(answer, file=answers, flush=True)


if __name__ == "__main__":
    main()
