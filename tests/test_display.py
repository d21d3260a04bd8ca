"""What a terminal and a notebook show: few lines, and nothing that a hostile name can break."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from brevitas_axe.display import MOST_ROWS, html_table, one_line, span
from brevitas_axe.export.finn.finding import Finding, Findings
from brevitas_axe.export.hls4ml.project import Accumulator, Hls4mlProject
from brevitas_axe.methods.allocate import Allocation
from brevitas_axe.methods.cost.breakdowns import Breakdown, LayerCost
from brevitas_axe.methods.cost.finn_nodes import Estimate
from brevitas_axe.methods.cost.protocol import SERIAL
from brevitas_axe.methods.cost.resources import ResourceRow, ResourceTable
from brevitas_axe.methods.search.protocol import Space
from brevitas_axe.methods.sensitivity.scores import Scores
from brevitas_axe.plan import Choices, LayerPrecision, Plan
from brevitas_axe.proof.certificate import Certificate, DotProduct
from brevitas_axe.proof.emulator import EmulationResult
from brevitas_axe.recipe import Recipe
from brevitas_axe.run.finetune import FinetuneResult
from brevitas_axe.run.result import BlocksResult, QuantizeResult
from brevitas_axe.run.search_widths import WidthSearchResult
from brevitas_axe.run.tune import TuneResult
from brevitas_axe.run.tune.goal import Trial

HOSTILE = "<script>alert('1')</script>&amp;\"\n\x1b[31m"


class Tables(HTMLParser):
    """Tags and cells of a page; it must hold tables and paragraphs alone, properly nested."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list) -> None:
        assert tag in {"table", "caption", "thead", "tbody", "tr", "th", "td", "p"}
        assert all(key == "style" for key, _ in attrs)
        self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "td":
            self.cells[-1] += data


def examples(name: str, count: int = 1) -> dict[str, Any]:
    """Every object that shows itself, with layers of this name."""
    names = [f"{name}{index or ''}" for index in range(count)]
    plan = Plan({n: LayerPrecision(weight=3 + i % 2, accumulator=12) for i, n in enumerate(names)})
    entries = tuple(
        DotProduct(n, "MatMul", inputs=8, width=12 + i % 2, target=12, proven=True)
        for i, n in enumerate(names)
    )
    certificate = Certificate(entries, subject=name)
    model, log = nn.Sequential(*(nn.Linear(2, 2) for _ in range(count))), [{"name": name}]
    result = QuantizeResult(model, plan, certificate, log, Recipe())
    tuned = FinetuneResult(model, [{"epoch": 0, name: 0.123456}], certificate, 0, plan)
    return {
        "plan": plan,
        "certificate": certificate,
        "result": result,
        "blocks": BlocksResult(model, plan, certificate, log, Recipe(), floats=(name,)),
        "finetuned": tuned,
        "allocation": Allocation(plan, 0.123456, {name: 7.0}),
        **of_runs(name, names, result, tuned),
        **of_layers(names, certificate),
    }


def of_runs(
    name: str, names: list[str], result: QuantizeResult, tuned: FinetuneResult
) -> dict[str, Any]:
    """What tuning, searching and checking give."""
    trial = Trial({name: 1}, 0.9, {name: 123456.0}, "W3A8")
    failed = Trial({name: 2}, refused=name, fits=False)
    space = Space({n: ((LayerPrecision(weight=3, input=8),),) for n in names})
    asked = ((dict.fromkeys(names, 0), 0.5),)
    found = WidthSearchResult(tuned, 123456.0, 2e5, space, asked, None, 0)  # type: ignore[arg-type]
    findings = [Finding(n, "rule", "tie", f"'{n}' is a tie", "round it") for n in names]
    return {
        "tuned": TuneResult(result, trial, failed, (trial, failed), 0.95, True),
        "searched": found,
        "findings": Findings(findings),
    }


def of_layers(names: list[str], certificate: Certificate) -> dict[str, Any]:
    """What costs, scores, runs and files tell layer by layer."""
    four = LayerPrecision(weight=4, input=8)
    costs = tuple(LayerCost(n, four, 12, 1234.0, 16, 5678.0) for n in names)
    estimates = Estimate(lut=1234, cycles=9000), Estimate(lut=5678)
    resources = tuple(ResourceRow(n, SERIAL, 12, 16, *estimates) for n in names)
    choices = Choices({n: (four, LayerPrecision(weight=2, input=8)) for n in names})
    harm = {n: np.array([0.0, 1.5 + i]) for i, n in enumerate(names)}
    overflows = {"outputs": {"y": np.zeros((1, 3))}, "overflow_counts": dict.fromkeys(names, 2)}
    types = tuple(Accumulator(n, n, "fixed<12,12>", 12, True) for n in names)
    return {
        "breakdown": Breakdown("LUT", costs),
        "resources": ResourceTable(resources),
        "scores": Scores(choices, harm),
        "emulated": EmulationResult(**overflows, float_nodes={f"{names[0]}+": "reason"}),
        "project": Hls4mlProject(Path("folder"), {}, types, certificate),
    }


KINDS = list(examples("fc"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_repr_is_a_few_lines_however_large_the_model(kind) -> None:
    text = repr(examples("fc", 500)[kind])
    assert len(text.splitlines()) <= 3
    assert len(text) < 500
    assert text.startswith(type(examples("fc")[kind]).__name__)


@pytest.mark.parametrize("kind", KINDS)
def test_no_name_can_break_out_of_a_table(kind) -> None:
    shown = Tables(examples(HOSTILE)[kind]._repr_html_())
    if kind != "finetuned":
        assert any(HOSTILE in cell for cell in shown.cells)


@pytest.mark.parametrize("kind", KINDS)
def test_no_name_can_steer_the_terminal(kind) -> None:
    text = repr(examples(HOSTILE)[kind])
    assert "\x1b" not in text
    assert len(text.splitlines()) <= 3


def test_reprs_say_what_matters() -> None:
    shown = examples("fc", 2)
    assert repr(shown["plan"]) == "Plan(2 layers: weight 3 to 4, accumulator 12)"
    assert repr(shown["certificate"]) == (
        "Certificate(fc: NOT proven, 2 dot products, widest accumulator 13 bits, 1 of them fail, "
        "first DotProduct(fc1: overflows: needs 13 bits, target 12))"
    )
    one = examples("fc")
    assert repr(one["certificate"]) == (
        "Certificate(fc: proven, 1 dot product, widest accumulator 12 bits)"
    )
    assert repr(one["blocks"]) == (
        f"BlocksResult of Sequential\n  {one['plan']!r}\n  {one['certificate']!r}"
    )
    assert repr(one["allocation"]) == f"Allocation(harm 0.1235, fc 7, {one['plan']!r})"
    assert repr(Plan()) == "Plan(0 layers)"
    assert repr(shown["breakdown"]) == ("Breakdown(2 layers: 2,468, 11,356 without budget, in LUT)")
    assert repr(shown["resources"]) == "ResourceTable(2 layers: 2,468 LUT, 11,356 without budget)"
    assert repr(shown["scores"]) == "Scores(4 choices of 2 layers, worst 'fc1')"
    assert repr(shown["emulated"]) == (
        "EmulationResult(4 overflows in 2 dot products, 1 in floating point, y [1, 3])"
    )
    assert repr(shown["findings"]) == "Findings(2 tie, first 'fc' is a tie; round it.)"
    assert repr(Findings()) == "Findings(none)"


def test_tables_of_runs_name_what_was_chosen_and_what_was_not() -> None:
    shown = examples("fc", 2)
    cells = Tables(shown["tuned"]._repr_html_()).cells
    assert cells[:7] == ["1", "W3A8", "0.9", "1.235e+05", "0", "0", "chosen"]
    assert cells[13] == "fc"  # the reason of the trial that has no model
    cells = Tables(shown["searched"]._repr_html_()).cells
    assert cells[:3] == ["fc", "W3ANone P12", "W3A8"]
    assert "sum" in Tables(shown["resources"]._repr_html_()).cells


def test_long_tables_are_counted_and_not_shown() -> None:
    shown = html_table("many", ["number"], [[i] for i in range(MOST_ROWS + 5)])
    assert len(Tables(shown).cells) == MOST_ROWS
    assert "and 5 more" in shown


def test_widths_in_words() -> None:
    assert [span(v) for v in ([4, 4], [3, 8], [None], [3, None], [])] == [
        "4",
        "3 to 8",
        "any",
        "3 or any",
        "any",
    ]


def test_a_line_stays_one() -> None:
    assert one_line("a\nb\x1b[0m é") == "a\\nb\\x1b[0m é"


def test_formats_follow_the_numbers() -> None:
    assert span([8, "e4m3", 3, None, "e2m1"]) == "3 to 8 or e2m1 or e4m3 or any"
    assert span(["e4m3"]) == "e4m3"
