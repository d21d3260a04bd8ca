"""Random QONNX graphs and damaged files against the proof: no claim exceeded, no foreign exception.

Every graph is a chain of operators of the allow-list behind a quantizer, with a MatMul at its end.
What the certificate claims of the MatMul is compared with what qonnx and ONNX Runtime give for
extreme inputs and for inputs that drive the largest row.

    python benchmarks/proof_fuzz.py --graphs 20000 --bytes 20000 --seed 0
"""

from __future__ import annotations

import argparse
import random
import warnings
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from brevitas_axe.errors import AxeError, InvalidModelFile
from brevitas_axe.proof.certificate import certify_file
from brevitas_axe.proof.emulator import emulate

QONNX = "qonnx.custom_op.general"
DOMAINS = (QONNX, "onnx.brevitas", "finn.custom_op.general", "qonnx", "")
WIDTH = 6


@dataclass
class Builder:
    """Collects one random graph; `x` is the tensor that the next operator takes."""

    random: random.Random
    x: str = "x"
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def constant(self, values) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def add(self, op: str, *inputs: str, domain: str = "", **attributes) -> str:
        output = f"t{len(self.nodes)}"
        node = helper.make_node(op, list(inputs), [output], f"n{len(self.nodes)}", domain=domain)
        node.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
        self.nodes.append(node)
        return output

    def quant(self, tensor: str, signed: int, bits: int, scale) -> str:
        zero = self.random.choice([0, 0, 0, 1])
        numbers = scale, 0 if signed else zero, bits
        parameters = [self.constant(np.float32(v)) for v in numbers]
        narrow, domain = self.random.randint(0, 1), self.random.choice(DOMAINS)
        mode = self.random.choice(["ROUND", "FLOOR", "CEIL"])
        return self.add(
            "Quant", tensor, *parameters, domain=domain, signed=signed, narrow=narrow,
            rounding_mode=mode,
        )  # fmt: skip


def build(seed: int) -> onnx.ModelProto:
    """One random graph [1, 6] → quantizer → operators → MatMul [6, n]."""
    b = Builder(random.Random(seed))
    choose, scale = b.random, b.random.choice([1.0, 0.25, 0.1])
    kind = choose.choice(["quant", "threshold", "qdq"])
    if kind == "quant":
        b.x = b.quant("x", choose.randint(0, 1), choose.randint(1, 9), scale)
    elif kind == "threshold":
        count = choose.choice([1, 3, 15])
        steps = b.constant(np.sort(np.float32([[choose.uniform(-9, 9) for _ in range(count)]])))
        declared = choose.choice(["UINT4", "INT4", "INT5"])
        b.x = b.add("MultiThreshold", "x", steps, domain=QONNX, out_dtype=declared)
        scale = 1.0
    else:
        zero = np.array(choose.randint(0, 9), choose.choice([np.int8, np.uint8]))
        parameters = b.constant(np.float32(scale)), b.constant(zero)
        b.x = b.add("DequantizeLinear", b.add("QuantizeLinear", "x", *parameters), *parameters)
    for _ in range(choose.randint(0, 4)):
        b.x = choose.choice(STEPS)(b, np.float32(scale))
    weights = np.float32([[choose.randint(-8, 7) for _ in range(3)] for _ in range(WIDTH)])
    weight = b.quant(b.constant(weights * np.float32(0.5)), 1, 4, 0.5)
    b.nodes.append(helper.make_node("MatMul", [b.x, weight], ["y"], "fc"))
    graph = helper.make_graph(
        b.nodes, "fuzz", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], b.constants,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid(QONNX, 2)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


STEPS = (
    lambda b, s: b.add("Relu", b.x),
    lambda b, s: b.add("Identity", b.x),
    lambda b, s: b.add("Add", b.x, b.constant(np.float32(b.random.randint(-9, 9)) * s)),
    lambda b, s: b.add("Sub", b.x, b.constant(np.float32(b.random.randint(-9, 9)) * s)),
    lambda b, s: b.add("Mul", b.x, b.constant(np.float32(b.random.choice([2, 0.5, -1])))),
    lambda b, s: b.add("Add", b.x, b.x),
    lambda b, s: b.add("Transpose", b.add("Transpose", b.x)),
    lambda b, s: b.add("Clip", b.x, b.constant(np.float32(-2) * s), b.constant(np.float32(5) * s)),
    lambda b, s: b.add("Reshape", b.x, b.constant(np.array([1, WIDTH]))),
    lambda b, s: b.add("Where", b.constant(np.array(True)), b.x, b.x),
    lambda b, s: b.add("Gather", b.x, b.constant(np.array([5, 0, 1, 1, 4, 2])), axis=1),
    lambda b, s: b.add("Pad", b.add("Slice", b.x, *_cut(b)), b.constant(np.array([0, 1, 0, 1]))),
    lambda b, s: b.add("Dropout", b.x),
    lambda b, s: b.add("Trilu", b.x, upper=1),
    lambda b, s: b.quant(b.x, b.random.randint(0, 1), b.random.randint(1, 6), s),
)


def _cut(b: Builder) -> list[str]:
    return [b.constant(np.array([v])) for v in (1, WIDTH - 1, 1)]


def exceeded(model: onnx.ModelProto, seed: int) -> str:
    """What a run shows beyond the claim, or ''. AxeErrors are answers; others pass through."""
    certificate = certify_file(model)
    entry = certificate.entries[-1]
    if not entry.proven or entry.minimum is None or entry.maximum is None:
        return ""
    rng = np.random.default_rng(seed)
    extremes = [np.full((1, WIDTH), v, np.float32) for v in (-1e6, 0, 1e6)]
    extremes += [np.float32(rng.choice([-1e6, 0.0, 0.3, 1e6], (1, WIDTH))) for _ in range(5)]
    for x in extremes:
        try:
            largest = emulate(model, x, 64).largest_sums.get("fc", 0)
        except InvalidModelFile as error:
            if "the range" in str(error) or "on the grid" in str(error):
                return f"seed {seed}: {error}"
            raise
        if largest > max(-entry.minimum, entry.maximum):
            return f"seed {seed}: sum {largest}, claimed {entry.minimum} to {entry.maximum}"
    return ""


def damaged(seed: int) -> bytes:
    """A random graph's bytes, some of them changed; or fields of its nodes exchanged."""
    choose, model = random.Random(seed), build(seed)
    if seed % 2:
        nodes = model.graph.node
        one, other = choose.choice(nodes), choose.choice(nodes)
        if one.input and other.input:
            one.input[choose.randrange(len(one.input))] = choose.choice(list(other.input))
        if one.attribute:
            choose.choice(list(one.attribute)).i = choose.choice([-1, 2, 2**62])
        one.op_type = choose.choice([one.op_type, other.op_type])
        return model.SerializeToString()
    data = bytearray(model.SerializeToString())
    for _ in range(choose.randint(1, 4)):
        data[choose.randrange(len(data))] = choose.randrange(256)
    return bytes(data)


def survives(data: bytes) -> bool:
    """Whether bytes give a certificate or one of our errors; whatever else is raised passes."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception:  # protobuf's own answer; certify_file gives ours for the same file
        return True
    try:
        certify_file(model).to_json()
        emulate(model, np.ones((1, WIDTH), np.float32), 32)
    except AxeError:
        pass
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graphs", type=int, default=20000)
    parser.add_argument("--bytes", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    proven = refused = 0
    for seed in range(arguments.seed, arguments.seed + arguments.graphs):
        model = build(seed)
        try:
            proven += certify_file(model).entries[-1].proven
            if problem := exceeded(model, seed):
                raise SystemExit(problem)
        except AxeError as error:
            refused += 1
            print(f"seed {seed} is refused: {error}")
    print(f"{arguments.graphs} graphs: {proven} proven, {refused} refused, no claim exceeded")
    for seed in range(arguments.seed, arguments.seed + arguments.bytes):
        survives(damaged(seed))
    print(f"{arguments.bytes} damaged files: no foreign exception")


if __name__ == "__main__":
    main()
