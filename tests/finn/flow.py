"""Sends one QONNX file through FINN, and writes down what FINN made of it.

Runs in FINN's environment (see environment.py), so it may import neither brevitas_axe nor torch:

    PYTHON flow.py MODEL.onnx FOLDER [--samples X.npz] [--options OPTIONS.json]

`Options` says what may be asked, `Flow` what the folder holds afterwards. The steps are those of
FINN's builder up to its estimates; see steps.py.
"""

from __future__ import annotations

import argparse
import json
import traceback
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import steps
from finn.analysis.fpgadataflow.exp_cycles_per_layer import exp_cycles_per_layer
from finn.analysis.fpgadataflow.res_estimation import res_estimation
from finn.core.onnx_exec import execute_onnx
from finn.transformation.fpgadataflow.create_dataflow_partition import CreateDataflowPartition
from finn.transformation.fpgadataflow.set_folding import SetFolding
from finn.transformation.fpgadataflow.specialize_layers import SpecializeLayers
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.custom_op.registry import getCustomOp
from qonnx.util.cleanup import cleanup_model

HARDWARE = "finn.custom_op.fpgadataflow"
# After each of these the model is saved, and run on the samples if it is asked for.
STAGES = ("qonnx", "finn", "streamlined", "hardware", "minimized", "partitioned", "specialized")


@dataclass(frozen=True)
class Options:
    """What a caller may ask for, as a JSON object.

    Attributes:
        stages: where the samples are run.
        part: FPGA that layers are specialized and estimated for.
        standalone_thresholds: thresholds as layers of their own, as FINN's RTL units want them;
            False fuses them into the matrix units.
        folding: attributes by node name of the specialized model, such as
            {"MVAU_hls_0": {"PE": 2, "SIMD": 4}}; "Defaults" holds those of all nodes.
        cycles: lets FINN fold towards this many cycles per sample.
    """

    stages: tuple[str, ...] = ("qonnx", "minimized")
    part: str = "xczu7ev-ffvc1156-2-e"
    standalone_thresholds: bool = False
    folding: dict[str, dict[str, Any]] = field(default_factory=dict)
    cycles: int | None = None


class Flow:
    """One run of FINN.

    The folder then holds
        flow.json: "nodes" (of the last stage reached, in topological order: name, op_type, domain,
            datatypes, attributes, resources, cycles), "unmapped" (names of nodes that FINN does
            not build), "errors" (stage, type, message, traceback of what ended the run; empty if
            it came through) and "stages" (those reached).
        weights.npz: the weight matrix of every matrix unit by node name, [MW, MH] of an MVAU,
            [channels, 1, k, k] of a VVAU; and <name>.thresholds where these are fused.
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
        for stage in STAGES:
            try:
                getattr(self, stage)()
                if stage in self.options.stages and self.samples:
                    self.outputs[stage] = self.execute()
            except Exception as error:
                about = {"type": type(error).__name__, "message": str(error)}
                trace = "".join(traceback.format_exception(error))
                self.errors.append({"stage": stage, **about, "traceback": trace})
                break
            self.model.save(str(self.folder / f"{stage}.onnx"))
            self.reached.append(stage)
        self.write()

    def qonnx(self) -> None:
        self.model = cleanup_model(self.model)

    def finn(self) -> None:
        self.model = steps.converted(self.model)

    def streamlined(self) -> None:
        self.model = steps.streamlined(self.model)

    def hardware(self) -> None:
        self.model = steps.hardware(self.model, self.options.standalone_thresholds)

    def minimized(self) -> None:
        self.model = steps.minimized(self.model)

    def partitioned(self) -> None:
        """Only what FINN builds stays; fails where something else lies between its layers."""
        self.unmapped = [n.name for n in self.model.graph.node if not n.domain.startswith(HARDWARE)]
        self.model = self.model.transform(CreateDataflowPartition(str(self.folder / "partitions")))
        parts = self.model.get_nodes_by_op_type("StreamingDataflowPartition")
        if len(parts) != 1:
            raise ValueError(f"FINN needs one partition, this graph has {len(parts)}.")
        self.model = ModelWrapper(str(getCustomOp(parts[0]).get_nodeattr("model")))

    def specialized(self) -> None:
        self.model = steps.apply(self.model, SpecializeLayers(self.options.part), *steps.TIDY)
        if self.options.cycles is not None:
            self.model = self.model.transform(SetFolding(self.options.cycles))
        for node in self.model.graph.node:
            op = getCustomOp(node)
            wanted = self.options.folding
            for key, value in {**wanted.get("Defaults", {}), **wanted.get(node.name, {})}.items():
                op.set_nodeattr(key, value)
        self.minimized()
        self.estimates = (
            res_estimation(self.model, self.options.part),
            exp_cycles_per_layer(self.model),
        )

    def execute(self) -> np.ndarray:
        """The model's first output for every sample, one at a time as the hardware would."""
        names = [i.name for i in self.model.graph.input]
        shapes = [self.shape(name) for name in names]
        count = len(next(iter(self.samples.values())))
        results = []
        for index in range(count):
            feed = {
                name: value[index].reshape(shape)
                for name, shape, value in zip(names, shapes, self.samples.values(), strict=True)
            }
            results.append(execute_onnx(self.model, feed)[self.model.graph.output[0].name])
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
            if node.op_type.startswith(("MVAU", "VVAU")):
                weights[node.name] = self.integers(node.input[1])
                if len(node.input) > 2:
                    weights[f"{node.name}.thresholds"] = self.model.get_initializer(node.input[2])
        if self.unmapped is None:
            self.unmapped = [n["name"] for n in nodes if not n["domain"].startswith(HARDWARE)]
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
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=Path, help="npz, one array [samples, ...] per input")
    parser.add_argument("--options", type=Path)
    arguments = parser.parse_args()
    options = (
        Options(**json.loads(arguments.options.read_text())) if arguments.options else Options()
    )
    samples = dict(np.load(arguments.samples)) if arguments.samples else {}
    warnings.simplefilter("ignore")
    Flow(arguments.model, arguments.folder, samples, options).run()


if __name__ == "__main__":
    main()
