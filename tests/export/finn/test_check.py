"""Every rule speaks where FINN fails, names the layer, and is silent where FINN builds."""

from __future__ import annotations

from dataclasses import replace

import onnx
import pytest
import torch
from torch import nn

from brevitas_axe.errors import ExportRefused, InvalidModelFile, InvalidOption, NonFiniteValues
from brevitas_axe.export import check_finn, export_qonnx
from tests.export.finn.cases import (
    ACCEPTED,
    REFUSED,
    TIED,
    Branches,
    Case,
    conv,
    relu,
    tail,
)
from tests.export.finn.models import build, samples, write

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_finn_builds_is_accepted(name, tmp_path):
    write(ACCEPTED[name], tmp_path / "m.onnx")
    assert check_finn(tmp_path / "m.onnx") == []
    notes = {note.rule for note in check_finn(tmp_path / "m.onnx", notes=True)}
    assert notes - {"tie"} == set(ACCEPTED[name].notes)


@pytest.mark.parametrize("name", TIED)
def test_a_tie_is_found_and_exported_with_a_warning(name, tmp_path):
    case = TIED[name]
    with pytest.warns(UserWarning, match="halfway between two levels"):
        export_qonnx(build(case), samples(case)[:1], tmp_path / "m.onnx")
    findings = check_finn(tmp_path / "m.onnx")
    assert [(f.layer, f.rule, f.severity) for f in findings] == [(case.layer, "tie", "tie")]


@pytest.mark.parametrize("name", REFUSED)
def test_what_finn_refuses_is_found_with_a_name_and_a_way_out(name, tmp_path):
    case = REFUSED[name]
    write(case, tmp_path / "m.onnx")
    findings = check_finn(tmp_path / "m.onnx")
    assert {finding.rule for finding in findings} == set(case.rules)
    first = findings[0]
    assert first.severity in ("refused", "wrong")
    assert f"'{first.layer}'" in first.problem
    assert first.sentence.count(". ") == 0
    assert first.way_out in first.sentence
    if case.layer:
        assert first.layer == case.layer


@pytest.mark.parametrize("first", [True, False])
def test_what_is_upsampled_comes_first_in_a_concatenation(first, tmp_path):
    """FINN, which works on the other order for minutes before it fails, is asked by no test."""
    shared = relu()
    small = nn.Sequential(conv(stride=2), shared, nn.Upsample(scale_factor=2))

    def join(a, b):
        return torch.cat([a, b] if first else [b, a], 1)

    case = Case(lambda: Branches(small, nn.Sequential(conv(), shared), join, *tail(channels=8)))
    write(case, tmp_path / "m.onnx")
    assert [finding.rule for finding in check_finn(tmp_path / "m.onnx")] == (
        [] if first else ["upsampling"]
    )


@pytest.mark.parametrize("name", [n for n, case in REFUSED.items() if not case.raw])
def test_export_for_finn_refuses_what_the_check_finds(name, tmp_path):
    case = REFUSED[name]
    model, x = build(case), samples(case)[:1]
    with pytest.raises(ExportRefused):
        export_qonnx(model, x, tmp_path / "m.onnx")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("target", ["finn", "qonnx"])
def test_all_zero_layers_are_refused_for_every_target(target, tmp_path):
    case = REFUSED["all zero"]
    with pytest.raises(ExportRefused, match=r"weights of layer '1' are zero.*wider accumulator"):
        export_qonnx(build(case), samples(case)[:1], tmp_path / "m.onnx", target=target)
    assert not any(tmp_path.iterdir())


def test_unknown_targets_and_broken_weights_are_refused(tmp_path):
    case = ACCEPTED["plain"]
    model, x = build(case), samples(case)[:1]
    with pytest.raises(InvalidOption, match="'vivado' is unknown"):
        export_qonnx(model, x, tmp_path / "m.onnx", target="vivado")
    model[1].weight.data[0] = float("nan")
    with pytest.raises(NonFiniteValues, match="layer '1'"):
        export_qonnx(model, x, tmp_path / "m.onnx")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["plain", "residual", "image average", "truncated average"])
def test_files_that_brevitas_wrote_are_read_alike(name, tmp_path):
    write(replace(ACCEPTED[name], raw=True), tmp_path / "m.onnx")
    assert check_finn(tmp_path / "m.onnx") == []


def test_an_open_batch_is_refused(tmp_path):
    case = ACCEPTED["plain"]
    write(case, tmp_path / "m.onnx")
    proto = onnx.load(tmp_path / "m.onnx")
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    del proto.graph.value_info[:]
    assert {finding.rule for finding in check_finn(proto)} == {"batch"}


def test_the_file_stays_as_it_was(tmp_path):
    write(ACCEPTED["residual"], tmp_path / "m.onnx")
    proto = onnx.load(tmp_path / "m.onnx")
    before = proto.SerializeToString(deterministic=True)
    check_finn(proto)
    assert proto.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("data", [b"", b"no model", b"\x08\x07"])
def test_files_that_are_no_models(data, tmp_path):
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(InvalidModelFile):
        check_finn(tmp_path / "m.onnx")


def test_a_broken_graph_is_one_sentence(tmp_path):
    write(ACCEPTED["plain"], tmp_path / "m.onnx")
    proto = onnx.load(tmp_path / "m.onnx")
    conv = next(node for node in proto.graph.node if node.op_type == "Conv")
    del conv.attribute[:]
    conv.attribute.append(onnx.helper.make_attribute("group", "two"))
    with pytest.raises(InvalidModelFile):
        check_finn(proto)
