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
