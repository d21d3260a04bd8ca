"""CPU seconds and memory that small hostile files take of certify, emulate and check.

    python benchmarks/proof_bombs.py [--use certify emulate check] [--only NAME ...]

Every file, and the input that it asks for, has at most 1 MB. Each is given to each use in a process
of its own, which is stopped after 40 seconds of CPU time. "answer" is a result; a refusal is one
of our exceptions by name. Memory is what the process takes beside what it had before.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parents[1]))

from brevitas_axe.errors import AxeError
from brevitas_axe.export.finn import check_finn
from brevitas_axe.proof.certificate import certify_file
from brevitas_axe.proof.emulator import emulate

QONNX = "qonnx.custom_op.general"
LIMIT_SECONDS, LIMIT_MEGABYTES, _STOP = 10, 1024, 40


class File:
    """A file that grows node by node, behind one quantizer and before one MatMul."""

    def __init__(self, *shape: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.functions: list[onnx.FunctionProto] = []
        self.shape = shape or (1, 2)
        self.x = self.quant("x")

    def constant(self, values: object) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def quant(self, tensor: str, bits: int = 8) -> str:
        parameters = [self.constant(np.float32(v)) for v in (1, 0, bits)]
        return self.op("Quant", tensor, *parameters, domain=QONNX, signed=1, narrow=0)

    def op(self, op: str, *tensors: str, domain: str = "", **attributes) -> str:
        output = f"t{len(self.nodes)}"
        node = helper.make_node(op, list(tensors), [output], domain=domain, **attributes)
        self.nodes.append(node)
        return output

    def data(self) -> bytes:
        value = helper.make_tensor_value_info("x", TensorProto.FLOAT, list(self.shape))
        last = self.nodes[-1].output[0]
        graph = helper.make_graph(
            self.nodes, "bomb", [value],
            [helper.make_tensor_value_info(last, TensorProto.FLOAT, None)], self.constants,
        )  # fmt: skip
        opsets = [helper.make_opsetid(d, v) for d, v in (("", 13), (QONNX, 2), ("l", 1))]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        model.functions.extend(self.functions)
        return model.SerializeToString()


def expanded_range(f: File) -> None:
    numbers = (f.constant(np.array(n)) for n in (0, 2**40, 1))
    f.op("MatMul", f.x, f.op("Expand", f.x, f.op("Range", *numbers)))


def functions(f: File) -> None:
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("l", 1)]
    for index in range(40):
        called = f"f{index + 1}"
        nodes = [helper.make_node(called, [a], [b], domain="l") for a, b in ("ac", "cb")]
        f.functions.append(helper.make_function("l", f"f{index}", ["a"], ["b"], nodes, opsets))
    relu = [helper.make_node("Relu", ["a"], ["b"])]
    f.functions.append(helper.make_function("l", "f40", ["a"], ["b"], relu, opsets))
    f.op("MatMul", f.op("f0", f.x, domain="l"), f.constant(np.ones((2, 1), np.float32)))


def doubling_constants(f: File) -> None:
    weight = f.quant(f.constant(np.ones((2, 1), np.float32)), 4)
    for _ in range(22):
        weight = f.op("Concat", weight, weight, axis=1)
    for _ in range(40):
        f.op("Concat", weight, weight, axis=1)
    f.op("MatMul", f.x, weight)


def doubling_activations(f: File) -> None:
    x = f.x
    for _ in range(40):
        x = f.op("Concat", x, x, axis=1)


def doubling_sums(f: File) -> None:
    x = f.op("MatMul", f.x, f.quant(f.constant(np.ones((2, 1), np.float32)), 4))
    for _ in range(40):
        x = f.op("Add", x, x)


def chained_sums(f: File) -> None:
    w, x = f.quant(f.constant(np.ones((2, 1), np.float32)), 4), ""
    for _ in range(6000):
        y = f.op("MatMul", f.x, w)
        x = f.op("Add", x, y) if x else y


def long_activations(f: File) -> None:
    f.shape = (1, 2**18)
    turned = f.op("Transpose", f.x)
    for _ in range(8000):
        f.op("MatMul", f.x, turned)


def sum_of_many(f: File) -> None:
    x = f.op("Mul", f.x, f.constant(np.float32([3, 4])))
    f.op("Sum", *[x] * 200_000)


def concat_of_many(f: File) -> None:
    x = f.op("Concat", *[f.x] * 200_000, axis=1)
    f.op("MatMul", x, f.constant(np.ones((1, 1), np.float32)))


def concat_of_constants(f: File) -> None:
    one = f.constant(np.ones((1, 1), np.float32))
    f.op("MatMul", f.x, f.op("Concat", *[one] * 200_000, axis=0))


def chain(f: File) -> None:
    x = f.x
    for _ in range(20_000):
        x = f.op("Relu", x)


def chain_of_functions_of_one(f: File) -> None:
    x = f.x
    for index in range(15_000):
        x = f.op("LeakyRelu", x, alpha=0.1 + index * 1e-6)


def chain_of_constants(f: File) -> None:
    w = f.constant(np.ones((2, 1), np.float32))
    for _ in range(20_000):
        w = f.op("Transpose", w)
    f.op("MatMul", f.x, w)


def chain_of_quantizers(f: File) -> None:
    x, parameters = f.x, [f.constant(np.float32(v)) for v in (1, 0, 8)]
    for _ in range(10_000):
        x = f.op("Quant", x, *parameters, domain=QONNX, signed=1, narrow=0)


def many_products(f: File) -> None:
    w = f.constant(np.ones((200, 400), np.float32))
    f.shape = (1, 200)
    for _ in range(20_000):
        f.op("MatMul", f.x, w)


def large_products(f: File) -> None:
    w = f.constant(np.ones((400, 400), np.float32))
    y = f.op("MatMul", w, w)
    for _ in range(10_000):
        y = f.op("MatMul", y, w)
    f.op("MatMul", f.x, y)


def large_integer_products(f: File) -> None:
    w = f.constant(np.ones((700, 700), np.int8))
    for _ in range(10_000):
        f.op("MatMulInteger", w, w)


def captured_names(f: File) -> None:
    flag = f.constant(np.array(True))
    values = [f.op("Relu", f.x) for _ in range(3000)]
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    node = helper.make_node("Sum", values, ["y"])
    for _ in range(8):
        branch = helper.make_graph([node], "b", [], [value])
        f.op("If", flag, then_branch=branch, else_branch=branch)


def nested_branches(f: File) -> None:
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    flag = f.constant(np.array(True))
    node = helper.make_node("Relu", [f.x], ["y"])
    for _ in range(24):
        branch = helper.make_graph([node], "b", [], [value])
        node = helper.make_node("If", [flag], ["y"], then_branch=branch, else_branch=branch)
        if node.ByteSize() > 300_000:
            break
    f.op("If", flag, **{a.name: a.g for a in node.attribute})


def branch_that_grows(f: File) -> None:
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    shape, flag = f.constant(np.array([2**33, 1, 2])), f.constant(np.array(True))
    nodes = [
        helper.make_node("Expand", [f.x, shape], ["e"]),
        helper.make_node("ReduceMax", ["e"], ["y"]),
    ]
    branch = helper.make_graph(nodes, "b", [], [value])
    f.op("If", flag, then_branch=branch, else_branch=branch)


def endless_loop(f: File) -> None:
    state = [
        helper.make_tensor_value_info(n, k, s)
        for n, k, s in (
            ("i", TensorProto.INT64, []), ("c", TensorProto.BOOL, []),
            ("s", TensorProto.FLOAT, [1, 2]), ("d", TensorProto.BOOL, []),
            ("t", TensorProto.FLOAT, [1, 2]),
        )
    ]  # fmt: skip
    nodes = [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Neg", ["s"], ["t"])]
    body = helper.make_graph(nodes, "body", state[:3], state[3:])
    f.op("Loop", f.constant(np.array(2**60)), f.constant(np.array(True)), f.x, body=body)


def pooled(op: str) -> Callable[[File], None]:
    def build(f: File) -> None:
        x = f.op("Reshape", f.x, f.constant(np.array([1, 1, 2, 1])))
        x = f.op("Expand", x, f.constant(np.array([1, 1, 2, 2**22])))
        x = f.op("Reshape", x, f.constant(np.array([1, 1, 2**12, 2**11])))
        f.op(op, x, kernel_shape=[1000, 1000])

    return build


def normalized(f: File) -> None:
    x = f.op("Expand", f.op("Reshape", f.x, f.constant(np.array([1, 2, 1]))),
             f.constant(np.array([2**20, 2, 8])))  # fmt: skip
    x = f.op("Reshape", x, f.constant(np.array([1, 2**20, 16, 1])))
    f.op("LRN", x, size=2**20 - 1)


def convolved(f: File) -> None:
    x = f.op("Expand", f.op("Reshape", f.x, f.constant(np.array([1, 1, 2, 1]))),
             f.constant(np.array([1, 1, 2, 2**22])))  # fmt: skip
    x = f.op("Reshape", x, f.constant(np.array([1, 1, 2**12, 2**11])))
    f.op("Conv", x, f.constant(np.ones((4, 1, 200, 200), np.float32)))


def thresholds(f: File) -> None:
    x = f.op("Expand", f.x, f.constant(np.array([2**20, 2])))
    table = f.constant(np.arange(200_000, dtype=np.float32).reshape(1, -1))
    f.op("MultiThreshold", x, table, domain=QONNX, out_dtype="UINT18")


def einsum(f: File) -> None:
    w = f.constant(np.ones((400, 400), np.float32))
    f.op("Einsum", *[w] * 4, equation="ij,kl,mn,op->ikmo")


def absurd_width(f: File) -> None:
    f.op("MatMul", f.quant("x", 10**9), f.constant(np.ones((2, 1), np.float32)))


def long_name(f: File) -> None:
    f.nodes[-1].name = "n" * 900_000
    f.op("MatMul", f.x, f.constant(np.ones((2, 1), np.float32)))


def impossible_shape(f: File) -> None:
    f.constants.append(TensorProto(name="w", data_type=TensorProto.INT4, dims=[2**15, 2**15]))
    f.op("MatMul", f.x, "w")


def many_gathers(f: File) -> None:
    w = f.constant(np.ones((400, 400), np.float32))
    rows = f.constant(np.arange(400).repeat(40))
    for _ in range(8000):
        w2 = f.op("Gather", w, rows)
    f.op("MatMul", f.x, w2)


def wide_factors(f: File) -> None:
    row = f.constant(np.arange(1, 10**5, dtype=np.float32).reshape(1, -1))
    column = f.constant(np.arange(1, 10**5, dtype=np.float32).reshape(-1, 1))
    f.op("MatMul", f.op("Mul", f.op("Mul", f.x, row), column), f.constant(np.float32([[1]])))


def many_assumptions(f: File) -> None:
    x = [f.op("Quant", "x", *(f.constant(np.float32(v)) for v in (1, 3, 8)), domain=QONNX,
              signed=0, narrow=0) for _ in range(2500)]  # fmt: skip
    y = x[0]
    for other in x[1:]:
        y = f.op("Concat", y, other, axis=1)
        f.op("MatMul", y, f.constant(np.float32([[1], [1]])))


def padded_image(f: File) -> None:
    x = f.op("Reshape", f.x, f.constant(np.array([1, 1, 1, 2])))
    f.op("Conv", x, f.constant(np.ones((1, 1, 1, 1), np.float32)), pads=[2**16] * 4)


def spread_image(f: File) -> None:
    x = f.op("Reshape", f.x, f.constant(np.array([1, 1, 1, 2])))
    one = f.constant(np.ones((1, 1, 1, 1), np.float32))
    f.op("ConvTranspose", x, one, strides=[1, 2**33])


BOMBS: dict[str, Callable[[File], None]] = {
    build.__name__: build
    for build in (
        *(expanded_range, functions, doubling_constants, doubling_activations, doubling_sums),
        *(chained_sums, long_activations, sum_of_many, concat_of_many, concat_of_constants, chain),
        *(chain_of_functions_of_one, chain_of_constants, chain_of_quantizers, many_products),
        *(large_products, large_integer_products, captured_names, nested_branches),
        *(branch_that_grows, endless_loop, normalized, convolved, thresholds, einsum),
        *(absurd_width, long_name, impossible_shape, many_gathers, wide_factors),
        *(many_assumptions, padded_image, spread_image),
    )
}
BOMBS |= {f"pooled_{op}": pooled(op) for op in ("MaxPool", "AveragePool")}


def data_of(name: str) -> bytes:
    """The bytes of one bomb."""
    file = File()
    BOMBS[name](file)
    return file.data()


def used(data: bytes, use: str) -> str:
    """What one use makes of a file: "answer", or the exception's name."""
    model = onnx.ModelProto()
    model.ParseFromString(data)
    dims = model.graph.input[0].type.tensor_type.shape.dim
    try:
        if use == "certify":
            certify_file(model).to_json()
        elif use == "emulate":
            emulate(model, np.ones([d.dim_value for d in dims], np.float32), 32)
        else:
            check_finn(model)
    except AxeError as error:
        return type(error).__name__
    except MemoryError:
        return "MemoryError"
    return "answer"


def measured(name: str, use: str) -> tuple[float, float, str]:
    """(CPU seconds, megabytes beside the start, what came of it), in a process of its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        resource.setrlimit(resource.RLIMIT_CPU, (_STOP, _STOP))
        data = data_of(name)
        start = resource.getrusage(resource.RUSAGE_SELF)
        held = int(Path("/proc/self/statm").read_text().split()[1]) * 4
        try:
            outcome = used(data, use)
        except BaseException as error:  # whatever it is, it is the finding
            outcome = f"FOREIGN {type(error).__name__}"
        end = resource.getrusage(resource.RUSAGE_SELF)
        seconds = end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime
        os.write(writer, f"{seconds} {(end.ru_maxrss - held) / 1024} {outcome}".encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        told = pipe.read()
    _, status, usage = os.wait4(child, 0)
    if not told:
        seconds = usage.ru_utime + usage.ru_stime
        return seconds, usage.ru_maxrss / 1024, f"KILLED {os.waitstatus_to_exitcode(status)}"
    seconds, megabytes, outcome = told.split(" ", 2)
    return float(seconds), float(megabytes), outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    uses = ("certify", "emulate", "check")
    parser.add_argument("--use", nargs="+", choices=uses, default=uses)
    parser.add_argument("--only", nargs="+", choices=BOMBS, default=list(BOMBS))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    over = 0
    for name in options.only:
        size = len(data_of(name))
        assert size <= 10**6, f"{name} has {size} bytes"
        for use in options.use:
            seconds, megabytes, outcome = measured(name, use)
            bad = seconds > LIMIT_SECONDS or megabytes > LIMIT_MEGABYTES or " " in outcome
            over += bad
            flag = "OVER" if bad else "    "
            measure = f"{use:8} {seconds:6.2f} s {megabytes:6.0f} MB"
            print(f"{flag} {name:26} {size:7} B  {measure}  {outcome}", flush=True)
    print(f"{over} over {LIMIT_SECONDS} CPU seconds or {LIMIT_MEGABYTES} MB")


if __name__ == "__main__":
    main()
