"""A file appears whole or not at all."""

from __future__ import annotations

import json
import os

import pytest

from brevitas_axe.files import json_text, write_whole


def test_json_has_no_numbers_that_json_lacks() -> None:
    text = json_text([1.5, float("nan"), {"a": float("inf")}, None, "é"])
    assert json.loads(text, parse_constant=pytest.fail) == [1.5, None, {"a": None}, None, "é"]


def test_writes_and_overwrites(tmp_path) -> None:
    path = tmp_path / "new" / "folder" / "file.bin"
    write_whole(path, b"one")
    write_whole(str(path), b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(path.parent) == ["file.bin"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, step) -> None:
    path = tmp_path / "file.bin"
    write_whole(path, b"old")

    def fail(*_args) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="disk full"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file.bin"]


def test_an_interrupt_leaves_nothing_behind(tmp_path, monkeypatch) -> None:
    def interrupt(*_args) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "file.bin", b"new")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no permission bits")
def test_a_file_has_ordinary_permissions(tmp_path) -> None:
    ordinary, ours = tmp_path / "ordinary", tmp_path / "ours"
    mask = os.umask(0o022)
    try:
        ordinary.write_bytes(b"")
        write_whole(ours, b"")
    finally:
        os.umask(mask)
    assert ours.stat().st_mode == ordinary.stat().st_mode
    assert ours.stat().st_mode & 0o777 == 0o644
