"""The quickstart's parts, and once the whole of it on a shortened training."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch

from brevitas_axe.applications import quickstart as qs
from brevitas_axe.plan import Plan
from brevitas_axe.proof.certificate import certify_file


def test_splits_share_no_image_and_repeat() -> None:
    splits = qs.digits(0)
    assert sum(len(split.labels) for split in splits) == 1797
    order = torch.cat([split.images.flatten(1) for split in splits])
    again = torch.cat([split.images.flatten(1) for split in qs.digits(0)])
    assert torch.equal(order, again)


def test_training_repeats_and_leaves_the_global_seed_alone() -> None:
    split = qs.digits(0)[0]
    torch.manual_seed(5)
    first = qs.train(split, seed=1, epochs=1)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    second = qs.train(split, seed=1, epochs=1)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_widths_that_always_fit_are_the_largest() -> None:
    with qs.one_thread():
        bench = qs.Bench(14, seed=0, epochs=1)
    widths = bench.widths_that_always_fit()
    assert widths
    for weight, input in widths:
        assert bench.type_bound(weight, input) <= 14
        assert bench.type_bound(weight + 1, input) > 14 or weight == 8
        assert bench.type_bound(weight, input + 1) > 14 or input == 8


@pytest.mark.slow
def test_whole_run_leaves_a_proven_model_and_a_full_table(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(qs, "WEIGHT_BITS", (4,))
    monkeypatch.setattr(qs, "INPUT_BITS", (4,))
    monkeypatch.setattr(qs, "Bench", partial(qs.Bench, epochs=6))
    assert qs.quickstart(tmp_path, accumulator_bit_width=10)
    assert "report.html" in capsys.readouterr().out
    summary = json.loads((tmp_path / "summary.json").read_text())
    arms = summary["arms"]
    assert len(arms) == 8
    assert all(arm["accuracy"] is not None for arm in arms)
    last = arms[-1]
    assert last["kind"] == "ours"
    assert last["overflow_free"]
    assert last["proven_width"] <= 10
    assert all(row["lut"] <= row["unlimited_lut"] for row in summary["resources"])
    plan = Plan.load(tmp_path / "plan.json")
    assert certify_file(tmp_path / "model.onnx", plan=plan).ok
    # The file that is handed over gives torch's answers on accumulators that wrap.
    test = qs.digits(0)[2]
    assert qs.emulated(tmp_path / "model.onnx", test, 10) == last["accuracy"]
