"""Files of others, in a folder that BREVITAS_AXE_FOREIGN names: claims, emulation and check.

They are public models, none of them in this repository: `benchmarks/public_files.py` says where
such files are, and compares each claim with a bound of its own.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.public_files import judge
from brevitas_axe.export import check_finn
from brevitas_axe.proof.certificate import certify_file

# Smallest and largest sum and width of each dot product; None where its input is not quantized.
CLAIMS: dict[str, list[tuple[int, int, int] | None]] = {
    "brevitas_debug": [(-683, 669, 11), (-124, 130, 9), (-115, 110, 8), (-129, 132, 9)],
    "qkeras_dense_12": [None, (-1386, 1323, 12)],
    "separable_conv_ch_last": [(-179, 166, 9), (-94, 101, 8), (-182, 178, 9), (-302, 298, 10)],
    "jettagging_finn_domain": [None, (-6237, 9324, 15), (-6867, 9387, 15), (-20727, 14049, 16)],
    "finn_builder_model": [(-784, 784, 11), (-64, 64, 8), (-64, 64, 8), (-64, 64, 8)],
    "tfc_1w1a": [(-784, 784, 11), (-64, 64, 8), (-64, 64, 8), (-64, 64, 8)],
    "unsw_mlp_w2a2": [(-144, 148, 9), (-6120, 5610, 14), (-42, 39, 7), (-27, 48, 7)],
}
BUILT = ("finn_builder_model", "tfc_1w1a", "unsw_mlp_w2a2")


def place(name: str) -> Path:
    folder = os.environ.get("BREVITAS_AXE_FOREIGN")
    path = Path(folder or ".") / f"{name}.onnx"
    if folder is None or not path.exists():
        pytest.skip("BREVITAS_AXE_FOREIGN names no folder with this file")
    return path


@pytest.mark.parametrize("name", CLAIMS)
def test_what_is_claimed_of_a_file(name: str) -> None:
    certificate = certify_file(place(name), fixed_initializers=True)
    found = [(e.minimum, e.maximum, e.width) if e.proven else None for e in certificate.entries]
    assert sorted(found, key=str) == sorted(CLAIMS[name], key=str)


@pytest.mark.parametrize("name", CLAIMS)
def test_claims_equal_an_independent_bound_and_emulation_equals_qonnx(name: str) -> None:
    result = judge(place(name))
    assert result["differs"] == []
    assert result["unbounded"] == []
    assert result["equal"] == result["proven"] > 0
    assert result["emulate"] == "equal"


@pytest.mark.parametrize("name", CLAIMS)
def test_the_check_takes_what_finn_builds(name: str) -> None:
    assert (check_finn(place(name)) == []) == (name in BUILT)
