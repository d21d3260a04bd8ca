"""Importance by name."""

from __future__ import annotations

import pytest

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.sensitivity.structure import Structure, _importance
from brevitas_axe.registry import method

NAMES = [
    f"model.layers.{block}.{part}"
    for block in (0, 1, 10)
    for part in ("self_attn.q_proj", "mlp.shared_expert.up_proj", "mlp.experts.3.up_proj")
]


def test_the_published_order() -> None:
    found = dict(zip(NAMES, _importance(Structure(), NAMES), strict=True))
    order = sorted(NAMES, key=found.__getitem__, reverse=True)
    kinds = [name.partition(".")[2].split(".", 2)[2] for name in order]
    assert kinds == 3 * ["self_attn.q_proj"] + 3 * ["mlp.shared_expert.up_proj"] + 3 * [
        "mlp.experts.3.up_proj"
    ]
    blocks = [int(name.split(".")[2]) for name in order]
    assert blocks == [0, 1, 10] * 3
    assert len(set(found.values())) == len(NAMES)


def test_layers_without_a_block_count_as_those_of_the_first() -> None:
    first, other = _importance(Structure(), ["head", "layers.0.fc"])
    assert first == other


def test_patterns_are_options() -> None:
    scorer = method("sensitivity", "structure:attention=q_proj,routed=moe")
    assert [scorer.of(n) for n in ("q_proj", "attn.k", "moe.up")] == [3, 2, 1]
    with pytest.raises(InvalidOption, match=r"attention='\(' is no regular expression"):
        Structure(attention="(")
