"""Plots take any names and any number of layers, and follow the page's colours."""

from __future__ import annotations

import pytest

from brevitas_axe.show import plots
from tests.show.samples import ARM, FLOAT, certificate, entry


@pytest.mark.parametrize("count", [0, 1, 40])
def test_layer_plots_take_any_number_of_layers(count: int) -> None:
    proof = certificate(*(entry(f"layer_{i}$b$") for i in range(count)))
    assert plots.svg(plots.layer_widths(proof)).startswith("<svg")
    assert plots.svg(plots.budget_use(proof)).startswith("<svg")


def test_text_and_grid_take_the_page_colours() -> None:
    markup = plots.svg(plots.accuracy_bars([FLOAT, ARM]))
    assert "var(--ink)" in markup
    assert "#101112" not in markup


def test_a_layer_far_over_budget_is_drawn_on_a_log_scale() -> None:
    figure = plots.budget_use(certificate(entry("a"), entry("b", maximum=10**7, width=25)))
    assert figure.axes[0].get_xscale() == "log"


def test_a_figure_is_a_png_too() -> None:
    assert plots.png(plots.accuracy_bars([FLOAT, ARM])).startswith(b"\x89PNG")


def test_a_policy_is_drawn_for_every_decision() -> None:
    values = {"conv$1$": ["W2A2", "W4A4"], "a + b": ["W4A4"]}
    course = [
        {"conv$1$": (0.5 - 0.0005 * i, 0.5 + 0.0005 * i), "a + b": (1.0,)} for i in range(900)
    ]
    figure = plots.policy(values, course)
    [axes] = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == list(values)
    first, second, only = (area.get_paths()[0].get_extents() for area in axes.collections)
    # The first row's values share its height, 0.8, at every step; the last is wide throughout.
    assert (first.y1, second.y0) == pytest.approx((0.4, -0.4))
    assert first.y0 == pytest.approx(0.0)
    assert only.height == pytest.approx(0.8)
    assert only.x1 == pytest.approx(896, abs=4)
    assert plots.svg(figure).startswith("<svg")


def test_bars_of_what_nothing_is_claimed_of_are_grey() -> None:
    proof = certificate(entry("a"), entry("head"), excluded=("head",))
    for draw in (plots.layer_widths, plots.budget_use):
        shown = plots.svg(draw(proof))
        assert shown.count(plots.KIND_COLOURS["ours"]) == 1
        assert shown.count(plots.KIND_COLOURS["reference"]) == 1


def test_one_series_has_its_values_at_the_bars() -> None:
    one = plots.svg(
        plots.groups_of_bars(["a", "b"], {"lut": [1234567.0, None]}, ["#123456"], "lut")
    )
    assert ">1.23457e+06<" in one
    assert one.count(">lut<") == 1
