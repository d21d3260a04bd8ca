"""Every rule names layer and way out; tests/hls4ml holds the rules against hls4ml itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from brevitas_axe.errors import ExportRefused, InvalidModelFile
from brevitas_axe.export import check_hls4ml, export_hls4ml
from tests.export.hls4ml.cases import CASES, samples, write


@pytest.mark.filterwarnings("ignore:Computing zero point of output accumulator:UserWarning")
@pytest.mark.parametrize("name", CASES)
def test_a_case_breaks_its_rule_and_no_file_is_written(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model, _proto = write(case, tmp_path / "model.onnx")
    findings = check_hls4ml(tmp_path / "model.onnx")
    if not case.rule:
        assert findings == []
        return
    assert case.rule in {finding.rule for finding in findings}
    for finding in findings:
        assert f"'{finding.layer}'" in finding.sentence
    with pytest.raises(ExportRefused, match=findings[0].layer):
        export_hls4ml(model, tmp_path / "project", samples(case)[:1])
    assert not (tmp_path / "project").exists()


def test_a_broken_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(InvalidModelFile):
        check_hls4ml(tmp_path / "model.onnx")
