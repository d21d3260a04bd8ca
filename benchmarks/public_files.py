"""Public quantized ONNX files: claims against an independent bound, emulation against qonnx.

    python benchmarks/public_files.py FOLDER [--seconds 120] [--json RESULTS.json]

For every `.onnx` file in FOLDER one line: how many dot products the certificate has, how many are
proven, how many of these are equal to the bound that the code below computes on its own (numpy and
onnx alone: the integer weights, the whole range of the input's type with zero in it, a sum per
row), whether `emulate` gives what qonnx executes, and what `check --target finn` says. Reasons of
what is not proven follow, and the totals at the end. Each file gets a process of its own, whose
time and peak memory are told.

Where such files are, none of which is in this repository (clone them, and copy every .onnx file of
any commit; those with Quant, MultiThreshold, BipolarQuant, QuantizeLinear or XnorPopcountMatMul
nodes count):

    https://github.com/fastmachinelearning/qonnx_model_zoo
    https://github.com/fastmachinelearning/qonnx
    https://github.com/fastmachinelearning/example-models
    https://github.com/Xilinx/finn, https://github.com/eki-project/finn-plus
    https://github.com/Xilinx/brevitas-radioml-challenge-21
    https://github.com/joannapng/finn_rl
    https://github.com/alhusseingamal/finn-brevitas-pynq-labs
    https://github.com/mdc-suite/qonnx2mdc, https://github.com/samufrank/finn-vs-vitisai
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from qonnx.core.datatype import DataType
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.transformation.infer_shapes import InferShapes

from brevitas_axe.errors import AxeError
from brevitas_axe.export import check_finn
from brevitas_axe.export.indexed import IndexedGraph
from brevitas_axe.proof.certificate import certify_file
from brevitas_axe.proof.emulator import emulate

CUSTOM = ("Quant", "IntQuant", "BipolarQuant", "Trunc", "MultiThreshold", "XnorPopcountMatMul")
CUSTOM += ("Im2Col", "MaxPoolNHWC", "QuantAvgPool2d", "GenericPartition", "DebugMarker")
MOVES = ("Transpose", "Reshape", "Flatten", "Identity", "Squeeze", "Unsqueeze", "MaxPool")
MOVES += ("MaxPoolNHWC", "Dropout", "Im2Col", "Pad", "DebugMarker", "GlobalMaxPool")


class Unknown(Exception):
    """This code cannot bound a tensor."""


class Bounds:
    """Integer ranges of a file's tensors by a second way, without the package."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, graph = model, model.graph
        self.made = {name: node for node in graph.node for name in node.output}
        self.stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant":
                self.stored[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        self.inputs = {i.name: i.type.tensor_type.elem_type for i in graph.input}
        self.types = {
            a.tensor_name: p.value
            for a in graph.quantization_annotation
            for p in a.quant_parameter_tensor_names
            if p.key == "finn_datatype"
        }

    def of(self, node: onnx.NodeProto) -> tuple[int, int]:
        """Smallest and largest sum of a dot product of constant weights."""
        low, high, _ = self.range(node.input[0])
        try:
            weights = self.weights(node.input[1])
        except Unknown:
            if node.op_type != "MatMul":
                raise
            return self._of_activations(node, low, high)
        if node.op_type == "XnorPopcountMatMul":
            return 0, len(weights)  # it counts equal bits
        rows = rows_of(node, weights)
        low, high = min(low, 0), max(high, 0)
        ends = rows * low, rows * high
        return int(np.minimum(*ends).sum(1).min()), int(np.maximum(*ends).sum(1).max())

    def _of_activations(self, node: onnx.NodeProto, low: int, high: int) -> tuple[int, int]:
        """Of a product of two activations, all of whose numbers may be at their ends."""
        least, most, _ = self.range(node.input[1])
        ends = [a * b for a in (low, high) for b in (least, most)]
        shaped = ModelWrapper(onnx.ModelProto.FromString(self.model.SerializeToString()))
        length = shaped.transform(InferShapes()).get_tensor_shape(node.input[0])
        if not length:
            raise Unknown("a product of unknown length")
        return min(*ends, 0) * length[-1], max(*ends, 0) * length[-1]

    def weights(self, name: str) -> np.ndarray:
        """The integers of a constant."""
        if name in self.stored:
            values = self.stored[name]
            if self.types.get(name, "FLOAT32").startswith(("INT", "UINT", "BIP", "BIN", "TER")):
                return values.astype(np.int64)
            if np.array_equal(values, np.rint(values)):
                return values.astype(np.int64)
            raise Unknown("float weights")
        node = self.made.get(name)
        if node is None:
            raise Unknown("weights that are no constant")
        if node.op_type in ("Quant", "IntQuant", "BipolarQuant", "DequantizeLinear"):
            return self._quantized(node)
        if node.op_type in ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"):
            return self._moved(node, self.weights(node.input[0]))
        raise Unknown(f"weights behind {node.op_type}")

    def _quantized(self, node: onnx.NodeProto) -> np.ndarray:
        if node.op_type == "DequantizeLinear":
            zero = self.constant(node.input[2]) if len(node.input) > 2 else np.zeros((), np.int8)
            values = self.stored.get(node.input[0])
            if values is None:
                inner = self.made[node.input[0]]
                values, scale = (self.constant(i) for i in inner.input[:2])
                ends = np.iinfo(zero.dtype)
                axis = _attribute(inner, "axis", 1)
                values = np.rint(values / _along(scale, axis, values)) + _along(zero, axis, values)
                values = np.clip(values, ends.min, ends.max)
            zero = _along(zero, _attribute(node, "axis", 1), values)
            return values.astype(np.int64) - zero.astype(np.int64)
        values, scale = (self.constant(i).astype(np.float32) for i in node.input[:2])
        if node.op_type == "BipolarQuant":
            return np.where(values >= 0, 1, -1).astype(np.int64)
        zero, bits = (self.constant(i).astype(np.float32) for i in node.input[2:4])
        if bits.max() == 1 and _attribute(node, "signed", 1):
            return np.where(values >= 0, 1, -1).astype(np.int64)  # as qonnx reads it
        low, high = _ends(node, int(bits.max()), narrow=True)
        q = values / scale + zero
        mode = _attribute(node, "rounding_mode", "ROUND").upper()
        q = {"ROUND": np.rint, "FLOOR": np.floor, "CEIL": np.ceil}[mode](np.clip(q, low, high))
        return (q - zero).astype(np.int64)

    def _moved(self, node: onnx.NodeProto, values: np.ndarray) -> np.ndarray:
        if node.op_type == "Transpose":
            return np.transpose(values, _attribute(node, "perm", None))
        if node.op_type == "Identity":
            return values
        if node.op_type == "Reshape":
            return values.reshape(self.constant(node.input[1]))
        raise Unknown(f"weights behind {node.op_type}")

    def constant(self, name: str) -> np.ndarray:
        """A constant's values; also what stands behind a chain of moves."""
        if name in self.stored:
            return self.stored[name]
        node = self.made.get(name)
        if node is not None and node.op_type in ("Transpose", "Reshape", "Identity"):
            return self._moved(node, self.constant(node.input[0]))
        raise Unknown("a parameter that is no constant")

    def range(self, name: str) -> tuple[int, int, float]:
        """Smallest and largest integer of a tensor, and what one of them is worth."""
        node = self.made.get(name)
        if node is None:
            return self._given(name)
        op = node.op_type
        if op in ("Quant", "IntQuant"):
            scale, zero, bits = (self.constant(i) for i in node.input[1:4])
            low, high = _ends(node, int(bits.max()), narrow=False)
            if bits.max() == 1 and _attribute(node, "signed", 1):
                low, high = -1, 1  # as qonnx reads it
            return low - int(zero.max()), high - int(zero.min()), float(scale.max())
        if op == "BipolarQuant":
            return -1, 1, float(self.constant(node.input[1]).max())
        if op == "DequantizeLinear":
            return self._dequantized(node)
        if op == "MultiThreshold":
            return self._thresholds(node)
        if op in MOVES or (op == "Resize" and _attribute(node, "mode", "nearest") == "nearest"):
            low, high, unit = self.range(node.input[0])
            return (
                (min(low, 0), max(high, 0), unit) if op in ("Im2Col", "Pad") else (low, high, unit)
            )
        if op == "Relu":
            low, high, unit = self.range(node.input[0])
            return max(low, 0), max(high, 0), unit
        if op in ("Mul", "Div"):
            return self._scaled(node)
        if op == "Trunc":
            low, _, _ = self.range(self.made[node.input[0]].input[0])
            bits = int(self.constant(node.input[5 if len(node.input) > 5 else 4]).max())
            return (
                (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1, 0.0) if low < 0 else (0, 2**bits - 1, 0.0)
            )
        if op == "Concat":
            parts = [self.range(i) for i in node.input]
            if len({unit for *_, unit in parts}) > 1:
                raise Unknown("joined tensors of several units")
            return min(p[0] for p in parts), max(p[1] for p in parts), parts[0][2]
        if op in ("Add", "Sub"):
            return self._added(node)
        raise Unknown(f"an input behind {op}")

    def _given(self, name: str) -> tuple[int, int, float]:
        if name in self.stored or name not in self.inputs:
            raise Unknown("a constant input")
        kinds: dict[int, str] = {onnx.TensorProto.UINT8: "UINT8", onnx.TensorProto.INT8: "INT8"}
        kind = kinds.get(self.inputs[name], self.types.get(name, "FLOAT32"))
        if not kind.startswith(("INT", "UINT", "BIP", "BIN", "TER")):
            raise Unknown("a float input")
        return int(DataType[kind].min()), int(DataType[kind].max()), 1.0

    def _dequantized(self, node: onnx.NodeProto) -> tuple[int, int, float]:
        zero = self.constant(node.input[2]) if len(node.input) > 2 else np.zeros((), np.uint8)
        before, ends = self.made.get(node.input[0]), np.iinfo(zero.dtype)
        low, high = int(ends.min), int(ends.max)
        if before is not None and before.op_type == "Clip":
            low, high = (int(self.constant(i)) for i in before.input[1:3])
        return (
            low - int(zero.max()),
            high - int(zero.min()),
            float(self.constant(node.input[1]).max()),
        )

    def _thresholds(self, node: onnx.NodeProto) -> tuple[int, int, float]:
        kind, levels = _attribute(node, "out_dtype", ""), self.constant(node.input[1]).shape[-1]
        scale, bias = _attribute(node, "out_scale", 1.0), _attribute(node, "out_bias", 0.0)
        if kind == "BIPOLAR":
            return -1, 1, 1.0
        if bias % scale:
            raise Unknown("thresholds off their grid")
        low = int(bias / scale)
        if kind.startswith(("INT", "UINT")):
            # Hardware sizes an accumulator by the declared type, so both what is counted and what
            # is declared must fit.
            return (
                min(low, int(DataType[kind].min())),
                max(low + levels, int(DataType[kind].max())),
                scale,
            )
        return low, low + levels, scale

    def _scaled(self, node: onnx.NodeProto) -> tuple[int, int, float]:
        constants = [i for i in node.input if i in self.stored]
        if len(constants) != 1 or self.stored[constants[0]].size != 1:
            raise Unknown("a product of tensors")
        (source,) = (i for i in node.input if i != constants[0])
        factor = float(self.stored[constants[0]].max())
        low, high, unit = self.range(source)
        if factor <= 0:
            raise Unknown("a factor that is not positive")
        return low, high, unit * factor if node.op_type == "Mul" else unit / factor

    def _added(self, node: onnx.NodeProto) -> tuple[int, int, float]:
        constants = [i for i in node.input if i in self.stored]
        if not constants:
            (a, b, unit), (c, d, other) = (self.range(i) for i in node.input)
            if unit != other or not unit or node.op_type == "Sub":
                raise Unknown("a sum of tensors of several units")
            return a + c, b + d, unit
        (source,) = (i for i in node.input if i != constants[0])
        low, high, unit = self.range(source)
        values = self.stored[constants[0]] * (1 if node.op_type == "Add" else -1)
        if values.size != 1 or not unit or float(values.max()) % unit:
            raise Unknown("a sum with a constant off its grid")
        shift = int(float(values.max()) / unit)
        made = self.made.get(source)
        if made is not None and made.op_type == "MultiThreshold":
            levels = self.constant(made.input[1]).shape[-1]
            kind, start = _attribute(made, "out_dtype", ""), int(_attribute(made, "out_bias", 0.0))
            counted = start + shift, start + shift + levels
            if kind and counted == (int(DataType[kind].min()), int(DataType[kind].max())):
                return *counted, unit  # the declared type is that of the sum
        return low + shift, high + shift, unit


def rows_of(node: onnx.NodeProto, weights: np.ndarray) -> np.ndarray:
    """[outputs, length of the dot product]."""
    if "Conv" in node.op_type:
        if node.op_type == "ConvTranspose":
            raise Unknown("a transposed convolution")
        return weights.reshape(len(weights), -1)
    if node.op_type == "Gemm" and _attribute(node, "transB", 0):
        return weights.reshape(-1, weights.shape[-1])
    if weights.ndim != 2:
        raise Unknown("weights of other than two axes")
    return weights.T


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    for attribute in node.attribute:
        if attribute.name == name:
            value = helper.get_attribute_value(attribute)
            return value.decode() if isinstance(value, bytes) else value
    return default


def _along(values: np.ndarray, axis: int, other: np.ndarray) -> np.ndarray:
    """One value per channel, so that it broadcasts."""
    if values.size == 1:
        return values.reshape(())
    return values.reshape([-1 if i == axis % other.ndim else 1 for i in range(other.ndim)])


def _ends(node: onnx.NodeProto, bits: int, narrow: bool) -> tuple[int, int]:
    narrow = narrow and bool(_attribute(node, "narrow", 0))
    if _attribute(node, "signed", 1):
        return -(2 ** (bits - 1)) + narrow, 2 ** (bits - 1) - 1
    return 0, 2**bits - 1 - narrow


def bits_of(low: int, high: int) -> int:
    """Bits of a two's complement accumulator of a symmetric range."""
    return max(max(-low, high).bit_length() + 1, 2)


def judge(path: Path) -> dict[str, Any]:
    """Everything about one file."""
    warnings.simplefilter("ignore")
    result: dict[str, Any] = {"reasons": [], "differs": [], "unbounded": []}
    try:
        certificate = certify_file(path, fixed_initializers=True)
        result["dot_products"] = len(certificate.entries)
        result["proven"] = sum(entry.proven for entry in certificate.entries)
        result["reasons"] = [f"{e.name}: {e.reason}" for e in certificate.entries if not e.proven]
        compare(path, certificate.entries, result)
    except AxeError as error:
        result["certify"] = f"{type(error).__name__}: {error}"
    result["emulate"] = emulated(path)
    try:
        found = check_finn(path, notes=True)
        hard = [f for f in found if f.severity != "note"]
        result["check"] = f"{len(hard)} findings: {hard[0].sentence}" if hard else "built"
        result["notes"] = [f.sentence for f in found if f.severity == "note"]
    except AxeError as error:
        result["check"] = f"{type(error).__name__}: {error}"
    result["mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return result


def compare(path: Path, entries: Any, result: dict[str, Any]) -> None:
    """The claims against the bound of this file's own code."""
    model = onnx.load(path)
    bounds, result["equal"] = Bounds(model), 0
    nodes = {node.name or node.output[0]: node for node in model.graph.node}
    for entry in entries:
        if not entry.proven:
            continue
        node = nodes.get(entry.name)
        try:
            if node is None:
                raise Unknown("a node that is not found by its name")
            low, high = bounds.of(node)
        except Unknown as reason:
            result["unbounded"].append(f"{entry.name}: {reason}")
            continue
        claimed = entry.minimum, entry.maximum, entry.width
        if claimed == (low, high, bits_of(low, high)):
            result["equal"] += 1
        else:
            result["differs"].append(f"{entry.name}: claimed {claimed}, here {(low, high)}")


def emulated(path: Path) -> str:
    """Whether they are equal, or how `emulate` and qonnx differ."""
    model = onnx.load(path)
    given = {t.name for t in model.graph.initializer}
    types, random = Bounds(model).types, np.random.default_rng(0)
    feeds = {}
    for value in model.graph.input:
        if value.name in given:
            continue
        shape = [d.dim_value or 1 for d in value.type.tensor_type.shape.dim]
        kind = types.get(value.name, "FLOAT32")
        kind = "UINT8" if value.type.tensor_type.elem_type == onnx.TensorProto.UINT8 else kind
        values = random.normal(size=shape)
        if kind != "FLOAT32" and DataType[kind].is_integer():
            ends = int(DataType[kind].min()), int(DataType[kind].max())
            values = random.integers(ends[0], ends[1] + 1, shape)
            values = np.where(values == 0, 1, values) if kind == "BIPOLAR" else values
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        feeds[value.name] = values.astype(dtype)
    try:
        ours = emulate(path, feeds).outputs
    except AxeError as error:
        ours, refusal = None, f"{type(error).__name__}: {error}"
    try:
        theirs = executed(model, feeds)
    except Exception as error:
        reason = f"qonnx cannot run it ({type(error).__name__})"
        return f"{reason}, emulate can" if ours is not None else f"{reason}, nor emulate"
    if ours is None:
        return f"qonnx runs it, but {refusal}"
    worst, apart, values = 0.0, 0, 0
    for name, expected in theirs.items():
        scale = max(1.0, float(np.abs(expected).max()))
        distances = np.abs(ours[name] - expected) / scale
        worst, values = max(worst, float(distances.max())), values + distances.size
        apart += int((distances > 1e-4).sum())
    # ONNX Runtime adds up in float32: next to a tie, a quantizer rounds to the other side.
    return "equal" if worst <= 1e-4 else f"differs by {worst:.3g} in {apart} of {values} values"


def executed(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Qonnx's own execution, old domains renamed."""
    for node in model.graph.node:
        if node.op_type in CUSTOM:
            node.domain = "qonnx.custom_op.general"
    if not any(o.domain == "qonnx.custom_op.general" for o in model.opset_import):
        model.opset_import.append(helper.make_opsetid("qonnx.custom_op.general", 1))
    model.ir_version = min(model.ir_version, 10)
    graph = IndexedGraph(model)  # qonnx infers shapes alike, in minutes for large images
    graph.infer_shapes()
    return execute_onnx(ModelWrapper(graph.model()), feeds)


def _child(path: Path, pipe: Any) -> None:
    try:
        pipe.send(judge(path))
    except BaseException as error:
        pipe.send({"crash": f"{type(error).__name__}: {error}"})


def in_a_process(path: Path, seconds: float) -> dict[str, Any]:
    """`judge` in a fork of this process, with its time."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process, start = context.Process(target=_child, args=(path, theirs)), time.monotonic()
    process.start()
    theirs.close()
    result = {"crash": f"no answer in {seconds:.0f} s"}
    if ours.poll(seconds):
        try:
            result = ours.recv()
        except EOFError:
            result = {"crash": "the process ended"}
    process.kill()
    process.join()
    return {"file": path.name, **result, "seconds": round(time.monotonic() - start, 1)}


def show(result: dict[str, Any]) -> None:
    if "crash" in result:
        print(f"{result['file']}: {result['crash']}", flush=True)
        return
    claims = result.get("certify") or (
        f"{result['proven']} of {result['dot_products']} proven, {result['equal']} equal to the "
        f"bound, {len(result['differs'])} not, {len(result['unbounded'])} without a bound"
    )
    cost = f"{result['seconds']} s, {result['mib']} MiB"
    verdicts = f"emulate: {result['emulate']}; check: {result['check']}; {cost}"
    print(f"{result['file']}: {claims}; {verdicts}")
    for line in (*result["differs"], *result["reasons"], *result["unbounded"]):
        print(f"    {line}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=120.0, help="for each file")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results, total = [], Counter()
    for path in sorted(arguments.folder.glob("*.onnx")):
        results.append(result := in_a_process(path, arguments.seconds))
        show(result)
        total["files"] += 1
        total["files with a crash"] += "crash" in result
        for key in ("dot_products", "proven", "equal"):
            total[key] += result.get(key, 0)
        total["differ"] += len(result.get("differs", ()))
        total["without a bound"] += len(result.get("unbounded", ()))
        total["certificate refused"] += "certify" in result
        total[f"emulate: {result.get('emulate', 'none').split(' (')[0].split(': ')[0][:40]}"] += 1
        total[f"check: {result.get('check', 'none').split(': ')[0].split(' ')[-1]}"] += 1
    print(*(f"{key}: {value}" for key, value in total.items()), sep="\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
