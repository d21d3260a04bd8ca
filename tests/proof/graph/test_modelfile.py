"""Files that nobody vouches for: one sentence, one error class, whatever is wrong."""

from __future__ import annotations

import os

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from brevitas_axe.errors import AxeError, InvalidModelFile
from brevitas_axe.proof.certificate import certify_file
from brevitas_axe.proof.emulator import emulate
from tests.proof.certificate.graphs import Graph, linear


def refused(model, says: str) -> None:
    with pytest.raises(InvalidModelFile, match=says) as raised:
        certify_file(model, 16)
    assert "\n" not in str(raised.value)
    assert str(raised.value).endswith(".")


@pytest.mark.parametrize("data", [b"", b"not onnx", b"\x00" * 64, b"\xff" * 64, os.urandom(256)])
def test_not_onnx(tmp_path, data) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(data)
    refused(path, "bad.onnx")


def test_truncated(tmp_path) -> None:
    data = linear([[1], [1]]).SerializeToString()
    path = tmp_path / "short.onnx"
    path.write_bytes(data[: len(data) * 2 // 3])
    refused(path, "short.onnx")


@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=4))
def test_any_corruption_gives_a_certificate_or_our_error(tmp_path, place, patch) -> None:
    data = bytearray(linear([[1, -3], [1, 7]]).SerializeToString())
    place %= len(data)
    data[place : place + len(patch)] = patch
    path = tmp_path / "corrupted.onnx"
    path.write_bytes(data)
    try:
        message = certify_file(path, 16).to_json()
    except AxeError as error:
        message = str(error).replace("\n", "two lines")
    assert message
    assert "two lines" not in message


def test_missing_folder_and_other_types(tmp_path) -> None:
    refused(tmp_path / "none.onnx", "none.onnx cannot be read")
    refused(tmp_path, "cannot be read")
    refused(tmp_path / "a\nb.onnx", "a.b.onnx")
    refused(3, "not int")


def external(tmp_path, location: str, **entries: str) -> str:
    """A model whose weight is external data at location."""
    model = linear([[1], [1]])
    for tensor in model.graph.initializer:
        if tensor.name == "fc.weight":
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in {"location": location, **entries}.items():
                tensor.external_data.append(onnx.StringStringEntryProto(key=key, value=value))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return str(folder / "model.onnx")


def test_external_data_beside_the_model_is_read(tmp_path) -> None:
    path = external(tmp_path, "weights.bin", offset="4", length="8")
    data = np.float32([9, 0.5, -0.5]).tobytes()
    (tmp_path / "model" / "weights.bin").write_bytes(data)
    certificate = certify_file(path, 16)
    assert (certificate.entries[0].minimum, certificate.entries[0].maximum) == (-255, 255)
    assert certificate.external[0][0] == "weights.bin"
    (tmp_path / "model" / "weights.bin").write_bytes(np.float32([9, 0.5, 3.5]).tobytes())
    tampered = certify_file(path, 16)
    assert tampered.entries[0].maximum == 8 * 255
    assert tampered.external != certificate.external


@pytest.mark.parametrize(
    "location", ["/etc/passwd", "../secret.bin", "a/../../secret.bin", "", "..\\secret.bin", "\0"]
)
def test_external_data_elsewhere_is_refused(tmp_path, location) -> None:
    path = external(tmp_path, location)
    (tmp_path / "secret.bin").write_bytes(bytes(8))
    refused(path, "outside the model's folder")


def test_a_link_that_leads_out_is_refused(tmp_path) -> None:
    path = external(tmp_path, "link.bin")
    (tmp_path / "secret.bin").write_bytes(bytes(8))
    (tmp_path / "model" / "link.bin").symlink_to(tmp_path / "secret.bin")
    refused(path, "outside the model's folder")


@pytest.mark.parametrize(
    "entries",
    [{"offset": "-1"}, {"offset": "x"}, {"length": "999"}, {"offset": "9"}, {"length": "-8"}],
)
def test_external_data_outside_its_file_is_refused(tmp_path, entries) -> None:
    path = external(tmp_path, "weights.bin", **entries)
    (tmp_path / "model" / "weights.bin").write_bytes(bytes(8))
    refused(path, "outside its external data")


def test_external_data_that_is_missing_or_too_short(tmp_path) -> None:
    path = external(tmp_path, "weights.bin")
    refused(path, "missing")
    (tmp_path / "model" / "weights.bin").write_bytes(bytes(3))
    refused(path, "does not hold what its type and shape say")


def test_external_data_of_a_model_in_memory(tmp_path) -> None:
    model = onnx.load(external(tmp_path, "weights.bin"), load_external_data=False)
    refused(model, "model in memory")


@pytest.mark.parametrize("dims", [[2**40, 2**40], [-2, 1], [3, 1], [2**31 + 1]])
def test_impossible_shapes(dims) -> None:
    model = linear([[1], [1]])
    weight = next(t for t in model.graph.initializer if t.name == "fc.weight")
    del weight.dims[:]
    weight.dims.extend(dims)
    refused(model, "fc.weight")


def test_a_cycle() -> None:
    graph = Graph(1, 2)
    graph.nodes.append(helper.make_node("Add", ["x", "b"], ["a"], name="first"))
    graph.nodes.append(helper.make_node("Relu", ["a"], ["b"], name="second"))
    refused(graph.model(), "'first' is part of a cycle")


def test_a_missing_initializer() -> None:
    model = linear([[1], [1]])
    kept = [t for t in model.graph.initializer if t.name != "fc.weight"]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    refused(model, "needs tensor 'fc.weight', which nothing defines")


def test_an_output_that_nothing_defines() -> None:
    graph = Graph(1, 2)
    graph.op("Relu", "x")
    refused(graph.model("gone"), "nothing defines the output 'gone'")


def test_a_tensor_defined_twice() -> None:
    graph = Graph(1, 2)
    graph.op("Relu", "x", name="a")
    graph.nodes.append(helper.make_node("Relu", ["x"], ["a.out"], name="b"))
    refused(graph.model(), "'a.out' is defined twice, again by node 'b'")
    graph = Graph(1, 2)
    graph.nodes.append(helper.make_node("Relu", ["x"], ["x"], name="b"))
    refused(graph.model(), "'x' is defined twice")


@pytest.mark.parametrize("what", ["graph input", "graph output", "initializer"])
def test_what_has_no_name(what) -> None:
    model = linear([[1], [1]])
    values = {
        "graph input": model.graph.input,
        "graph output": model.graph.output,
        "initializer": model.graph.initializer,
    }
    values[what][0].name = ""
    refused(model, f"one {what} has no name")
    with pytest.raises(InvalidModelFile, match=f"one {what} has no name"):
        emulate(model, {"x": np.ones((1, 2), np.float32)}, 16)


def test_an_attribute_of_a_wrong_type() -> None:
    model = linear([[1], [1]])
    for attribute in model.graph.node[0].attribute:
        if attribute.name == "signed":
            attribute.type = onnx.AttributeProto.STRING
            attribute.s = b"yes"
    refused(model, "'input_quant': attribute 'signed' must be INT")


def test_nodes_in_any_order_and_without_names() -> None:
    model = linear([[1], [1]])
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
    expected = certify_file(linear([[1], [1]]), 16).entries
    assert certify_file(model, 16).entries == expected
    for node in model.graph.node:
        node.name = ""
    assert [e.width for e in certify_file(model, 16).entries] == [expected[0].width]


def test_names_that_repeat_are_told_apart() -> None:
    graph = Graph(1, 1)
    x = graph.quant(graph.input)
    for index in range(3):
        weight = graph.weight([[1]], name=f"w{index}")
        node = helper.make_node("MatMul", [x, weight], [f"y{index}"], name="same")
        graph.nodes.append(node)
    names = [e.name for e in certify_file(graph.model("y0", "y1", "y2"), 16).entries]
    assert len(set(names)) == 3


def test_a_name_with_control_characters_stays_on_one_line() -> None:
    graph = Graph(1, 1)
    graph.op("MatMul", graph.input, graph.weight([[1]]), name="a\nb\x1b[31m" + "c" * 500)
    entry = certify_file(graph.model(), 16).entries[0]
    assert entry.name.isprintable()
    assert len(entry.name) <= 120
