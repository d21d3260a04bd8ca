"""`mend` tells what it changed and proves the model again."""

from __future__ import annotations

from brevitas_axe import load
from brevitas_axe.cli import main
from brevitas_axe.export import check_finn


def test_a_mended_folder_is_proven_and_built(at, capsys, tmp_path) -> None:
    place = tmp_path / "mended"
    assert main(["mend", "solved", "--output", str(place)]) == 0
    out = capsys.readouterr().out
    assert str(place / "model") in out
    assert load(place).certificate.ok
    assert main(["export", str(place), str(place / "model.onnx")]) == 0
    assert not [f for f in check_finn(place / "model.onnx") if f.severity != "note"]
