"""Executes a graph node by node; its dot products on accumulators of P bits."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, get_args

import numpy as np
import onnx
from qonnx.core.execute_custom_node import execute_custom_node
from qonnx.custom_op.registry import is_custom_op

from brevitas_axe.accumulator import MAX_BIT_WIDTH, check_bit_width
from brevitas_axe.display import html_table, one_line
from brevitas_axe.errors import InvalidModelFile, InvalidOption
from brevitas_axe.plan import Plan
from brevitas_axe.proof.certificate.certificate import Targets
from brevitas_axe.proof.certificate.dot_products import find, operand
from brevitas_axe.proof.certificate.proof import Found
from brevitas_axe.proof.emulator.allowance import Allowance
from brevitas_axe.proof.emulator.convolution import Product, convolve
from brevitas_axe.proof.emulator.overflow import Accumulated, Overflow, accumulate
from brevitas_axe.proof.emulator.session import needed, renamed, session
from brevitas_axe.proof.graph.flow import analyse
from brevitas_axe.proof.graph.grid import Fact, Grid, Unprovable
from brevitas_axe.proof.graph.modelfile import ModelFile, Node, analysing, read, shown
from brevitas_axe.proof.graph.operators import CHANNELS_LAST, QONNX, operator_set

# Integers up to here are told apart by float32.
_FLOAT32_EXACT = 2**24


@dataclass
class EmulationResult:
    """Outputs of a run, and overflows and largest sums of its accumulators.

    Attributes:
        outputs: output name → array.
        overflow_counts: dot product → accumulators that left their range, over all samples.
        largest_sums: dot product → largest |sum| of a tile before wrapping or clipping.
        float_nodes: dot products that are no integer products, run in floating point, and why.
        layers: dot product → its layer, as certificates and plans name it, where names tell it.
    """

    outputs: dict[str, np.ndarray] = field(default_factory=dict)
    overflow_counts: dict[str, int] = field(default_factory=dict)
    largest_sums: dict[str, int] = field(default_factory=dict)
    float_nodes: dict[str, str] = field(default_factory=dict)
    layers: dict[str, str] = field(default_factory=dict)

    @property
    def overflows(self) -> int:
        """Accumulators that left their range, in all."""
        return sum(self.overflow_counts.values())

    @property
    def output(self) -> np.ndarray:
        """The array of the model's only output.

        Raises:
            InvalidOption: the model has several.
        """
        if len(self.outputs) != 1:
            raise InvalidOption(f"the model has the outputs {', '.join(self.outputs)}; name one.")
        return next(iter(self.outputs.values()))

    def __getitem__(self, name: str) -> np.ndarray:
        return self.outputs[name]

    def __repr__(self) -> str:
        shapes = ", ".join(f"{one_line(n)} {list(a.shape)}" for n, a in self.outputs.items())
        count = len(self.overflow_counts)
        parts = [f"{self.overflows} overflows in {count} dot product{'s' * (count != 1)}"]
        if self.float_nodes:
            parts.append(f"{len(self.float_nodes)} in floating point")
        return f"EmulationResult({', '.join([*parts, *([shapes] if shapes else [])])})"

    def _repr_html_(self) -> str:
        rows = [
            (self.layers.get(name, name), count, self.largest_sums.get(name), "")
            for name, count in self.overflow_counts.items()
        ]
        rows += [
            (self.layers.get(name, name), None, None, f"in floating point, {reason}")
            for name, reason in self.float_nodes.items()
        ]
        return html_table(repr(self), ("layer", "overflows", "largest sum", "remark"), rows)


def emulate(
    path_or_model: str | os.PathLike | onnx.ModelProto | object,
    inputs: Mapping[str, np.ndarray] | np.ndarray,
    accumulator_bit_width: int = 64,
    tile_size: int | None = None,
    overflow: Overflow = "wrap",
    plan: Plan | None = None,
) -> EmulationResult:
    """Runs a QONNX file as hardware with narrow accumulators would.

    A batch of another size than the file's is run in pieces of the file's size.

    Args:
        path_or_model: path of the file, a ModelProto, or a qonnx ModelWrapper.
        inputs: input name → array, or the array of the only input. Axis 0 is the batch.
        accumulator_bit_width: P of every dot product; 64 is the plain execution.
        tile_size: inputs per inner accumulator.
        overflow: "wrap" or "saturate".
        plan: widths and tiles by layer; where it has None, the arguments above count.

    Raises:
        InvalidModelFile: the file is broken, or one of its nodes cannot be executed.
        InvalidOption: inputs or overflow do not fit.
        InvalidPlan: the plan names a layer that the file does not have.
    """
    check_bit_width(accumulator_bit_width)
    if overflow not in get_args(Overflow):
        raise InvalidOption(f"overflow is 'wrap' or 'saturate', not {overflow!r}.")
    targets = Targets(accumulator_bit_width, tile_size, plan)
    run = _Run(read(path_or_model), targets, overflow)
    pieces = [run(piece) for piece in _pieces(run.file, inputs, run.result)]
    run.result.outputs = {name: _joined(name, pieces) for name in pieces[0]}
    return run.result


def _joined(name: str, pieces: list[dict[str, np.ndarray]]) -> np.ndarray:
    """An output of the whole batch, from that of its pieces."""
    if len(pieces) == 1:
        return pieces[0][name]
    if pieces[0][name].ndim == 0:
        raise InvalidOption(
            f"output '{shown(name)}' has no batch axis; pass the model's own batch."
        )
    return np.concatenate([piece[name] for piece in pieces])


def _pieces(
    file: ModelFile, inputs: Mapping[str, np.ndarray] | np.ndarray, result: EmulationResult
) -> Iterator[dict[str, np.ndarray]]:
    """The inputs, cut along the batch axis as the file's input shape demands."""
    constants = {i.name for i in file.graph.initializer}
    wanted = {v.name: v for v in file.graph.input if v.name not in constants}
    if not isinstance(inputs, Mapping):
        if len(wanted) != 1:
            raise InvalidOption(f"the model has {len(wanted)} inputs; pass a dict of arrays.")
        inputs = {next(iter(wanted)): inputs}
    if set(inputs) != set(wanted):
        raise InvalidOption(
            f"the model's inputs are {', '.join(map(shown, wanted))}, but "
            f"{', '.join(map(str, inputs)) or 'none'} were given."
        )
    arrays, steps, whole = {}, set(), True
    for name, value in wanted.items():
        arrays[name] = np.asarray(inputs[name]).astype(_input_dtype(value, file))
        dims = value.type.tensor_type.shape.dim
        shape = arrays[name].shape
        fixed = [d.dim_value if d.HasField("dim_value") else None for d in dims]
        fits = len(fixed) == len(shape) and all(
            f in (None, s) for f, s in zip(fixed[1:], shape[1:], strict=True)
        )
        if not fits or 0 in shape:
            raise InvalidOption(
                f"input '{shown(name)}' has shape {list(shape)}, but the model takes "
                f"{['any' if f is None else f for f in fixed]}."
            )
        steps.add((shape[0], fixed[0] or shape[0]) if shape else (1, 1))
        whole &= bool(fixed) and fixed[0] == shape[0]
    if whole:  # the file's own shapes, whatever their first axes mean
        yield arrays
        return
    if len({batch for batch, _ in steps}) != 1:
        raise InvalidOption("the inputs have different batch sizes.")
    batch, step = min(steps, key=lambda pair: pair[1])
    if batch % step:
        raise InvalidOption(
            f"a batch of {batch} does not divide into the model's batch of {step}; pass a "
            "multiple of it, or export with batch 1."
        )
    if batch == step:
        yield arrays
        return
    for start in range(0, batch, step):
        yield {name: array[start : start + step] for name, array in arrays.items()}


def _input_dtype(value: onnx.ValueInfoProto, file: ModelFile) -> np.dtype:
    """The element type of a graph input; raises InvalidModelFile where it holds no numbers."""
    kind = value.type.tensor_type.elem_type
    known = kind in onnx.TensorProto.DataType.values() and kind != onnx.TensorProto.UNDEFINED
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind) if known else np.dtype(object)
    if dtype.kind not in "fiub":
        raise InvalidModelFile(
            f"{file.subject}: graph input '{shown(value.name)}' does not hold numbers of a plain "
            "type; export the model again."
        )
    return dtype


def _is_beyond_float32(found: Found) -> bool:
    """Whether inputs of a floating-point format are integers that cannot be read from float32."""
    numbers = found.integers
    if numbers is None or not (found.input_type or "").startswith("FLOAT"):
        return False
    return max(-numbers.low, numbers.high) > _FLOAT32_EXACT


class _Run:
    """One model, its compiled nodes, and the counts of its accumulators so far."""

    def __init__(self, file: ModelFile, targets: Targets, overflow: Overflow) -> None:
        self.file, self.result = file, EmulationResult()
        self._overflow: Overflow = overflow
        self._sessions: dict[str, Any] = {}
        with analysing(file):
            self._facts: dict[str, Fact] = analyse(file)
            products = tuple(find(file, self._facts))
        self._constants = {t.name: file.array(t) for t in file.graph.initializer}
        self._steps: dict[str, np.ndarray | float] = {}
        self._widths: dict[str, tuple[int, int | None]] = {}
        plain = targets.accumulator_bit_width or MAX_BIT_WIDTH
        aliases = []
        for found in products:
            aliases.append([n for n in (found.layer, found.name, found.weight) if n])
            if found.layer:
                self.result.layers[found.name] = found.layer
            if found.integers is None:
                self.result.float_nodes[found.name] = found.reason
            elif found.op == "XnorPopcountMatMul":
                self.result.float_nodes[found.name] = "it counts bits, which qonnx executes"
            elif _is_beyond_float32(found):
                self.result.float_nodes[found.name] = "float32 rounds its inputs over their step"
            else:
                self._steps[found.name] = found.integers.step
                width, tile_size = targets.of(aliases[-1])
                self._widths[found.name] = width or plain, tile_size
        targets.check_aliases(aliases)

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        context: dict[str, Any] = {**self._constants, **inputs}
        self._allowance = Allowance(self.file, inputs)
        for node in self.file.nodes:
            try:
                self._execute(node, context)
            except InvalidModelFile:
                raise
            except Unprovable as reason:
                raise InvalidModelFile(f"{self.file.subject}: {reason}.") from None
            except Exception as error:  # libraries raise many types for a node that they refuse
                first_line = next(iter(str(error).splitlines()), "")
                raise InvalidModelFile(
                    f"{self.file.subject}: {shown(node.op)} '{node.name}' cannot be executed: "
                    f"{type(error).__name__}: {shown(first_line)}"
                ) from error
        return {output.name: context[output.name] for output in self.file.graph.output}

    def _execute(self, node: Node, context: dict[str, Any]) -> None:
        group = operator_set(node)
        if group == CHANNELS_LAST or node.op == "MaxPoolNHWC":
            self._channels_last(node, context)
            return
        if node.name in self._steps:
            self._allowance.check(node.proto, {i: context[i] for i in node.inputs if i})
            context[node.outputs[0]] = self._product(node, context)
            return
        if group == QONNX or is_custom_op(node.proto.domain, node.op):
            proto, version = onnx.NodeProto(), self.file.opset(node.proto.domain)
            proto.CopyFrom(node.proto)
            proto.domain = group
            self._allowance.check_custom(node, context)
            execute_custom_node(proto, context, self.file.graph, version)
            return
        feeds = {i: context[i] for i in needed(node.proto) if i in context}
        context.update(self._run_standard(node.proto, feeds))

    def _run_standard(
        self, proto: onnx.NodeProto, feeds: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Outputs of a node of ONNX, by ONNX Runtime."""
        self._allowance.check(proto, feeds)
        outputs = [o for o in proto.output if o]
        # Nodes that differ in their names alone share one session.
        alike, feeds = renamed(proto, feeds)
        kinds = [(np.asarray(array).dtype.str, np.ndim(array)) for array in feeds.values()]
        key = f"{alike.SerializeToString(deterministic=True)!r}{kinds}"
        if key not in self._sessions:
            self._sessions[key] = session(alike, feeds, self.file.model)
        results = self._sessions[key].run([o for o in alike.output if o], feeds)
        return dict(zip(outputs, results, strict=True))

    def _channels_last(self, node: Node, context: dict[str, Any]) -> None:
        """Runs a node whose channels are its last axis as the one of ONNX."""
        proto = onnx.NodeProto()
        proto.CopyFrom(node.proto)
        proto.domain, proto.op_type = "", node.op.removesuffix("NHWC")
        moved = 2 if node.op == "Conv" else 1
        feeds = {
            name: np.ascontiguousarray(np.moveaxis(context[name], -1, 1))
            if i < moved
            else context[name]
            for i, name in enumerate(node.inputs)
            if name
        }
        if node.name in self._steps:
            self._allowance.check(proto, feeds)
            result = self._product(node, context)
        else:
            result = self._run_standard(proto, feeds)[node.outputs[0]]
        context[node.outputs[0]] = np.ascontiguousarray(np.moveaxis(result, 1, -1))

    def _product(self, node: Node, context: dict[str, Any]) -> np.ndarray:
        """A dot product's output from its integer accumulators."""
        grids = [operand(tensor, self._facts) for tensor in node.inputs[:2]]
        left, right = (
            _integers(grid, context[tensor], node)
            for grid, tensor in zip(grids, node.inputs[:2], strict=True)
        )
        multiply = partial(self._accumulate, node)
        third = node.inputs[2] if len(node.inputs) > 2 else ""
        bias = np.asarray(context[third], np.float64) if third else 0.0
        if node.op in ("Conv", "ConvTranspose"):
            if operator_set(node) == CHANNELS_LAST:
                left, right = (np.moveaxis(array, -1, 1) for array in (left, right))
            channels = (-1, *(1,) * (left.ndim - 2))
            sums = convolve(left, right, node, multiply)
            step = np.asarray(self._steps[node.name]).reshape(channels)
            bias = np.asarray(bias).reshape(channels)
            return (sums.astype(np.float64) * step + bias).astype(np.float32)
        steps = [grid.scale.astype(np.float64) for grid in grids]
        if node.op == "Gemm":
            for index, flag in enumerate(("transA", "transB")):
                if node.attribute(flag, 0):
                    left, right = (left.T, right) if index == 0 else (left, right.T)
                    steps[index] = steps[index].T
        scale = _scale(steps[0], steps[1], right.shape)
        output = _matmul(left, right, multiply).astype(np.float64) * scale
        if node.op == "Gemm":
            output = output * node.attribute("alpha", 1.0) + bias * node.attribute("beta", 1.0)
        return output.astype(np.float32)

    def _accumulate(self, node: Node, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        width, tile_size = self._widths[node.name]
        done: Accumulated = accumulate(left, right, width, tile_size, self._overflow)
        counts, largest = self.result.overflow_counts, self.result.largest_sums
        counts[node.name] = counts.get(node.name, 0) + done.overflows
        largest[node.name] = max(largest.get(node.name, 0), done.largest)
        return done.sums


def _integers(grid: Grid, values: np.ndarray, node: Node) -> np.ndarray:
    """Integers of a floating-point tensor on a grid."""
    if grid.integers is not None:
        return grid.integers
    ratio = np.asarray(values, np.float64) / grid.scale
    integers = np.rint(ratio)
    off_grid = np.abs(ratio - integers) > 1e-3 * np.maximum(1, np.abs(integers) * 1e-3)
    if not np.isfinite(ratio).all() or off_grid.any():
        raise InvalidModelFile(
            f"node '{node.name}': its input is not on the grid that the file declares; give it "
            "finite inputs that fit their annotation."
        )
    # Zeros that padding inserted may lie outside the quantizer's own range.
    if integers.min(initial=0) < min(grid.low, 0) or integers.max(initial=0) > max(grid.high, 0):
        raise InvalidModelFile(
            f"node '{node.name}': its input leaves the range {grid.type} that the file "
            "declares; give it inputs that fit their annotation."
        )
    return integers.astype(np.int64)


def _matmul(left: np.ndarray, right: np.ndarray, multiply: Product) -> np.ndarray:
    """Matmul rules of numpy for vectors, on a product that takes matrices."""
    sums = multiply(np.atleast_2d(left), right if right.ndim > 1 else right[:, None])
    dropped = [axis for axis, operand in ((-1, right), (-2, left)) if operand.ndim == 1]
    # A vector on the right leaves no column axis, a vector on the left no row axis.
    return np.squeeze(sums, axis=tuple(dropped))


def _scale(left: np.ndarray, right: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Scale of each output, which is constant along each dot product (checked by `find`).

    Args:
        left: scale of the left operand, scalar or [..., 1].
        right: scale of the right operand, broadcastable to shape.
        shape: of the right operand.
    """
    left = left if left.size > 1 else left.reshape(())
    if right.size == 1:
        return left * right.reshape(())
    return left * np.broadcast_to(right, shape)[..., :1, :]
