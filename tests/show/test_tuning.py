"""The page of a tuning: the line of trials that none beats, and what is written of each."""

from __future__ import annotations

import math
from types import SimpleNamespace

from brevitas_axe.run.tune import Trial, TuneResult
from brevitas_axe.show.tuning import front, trade_off, write_tuning


def trial(value: float, cost: float, **more) -> Trial:
    costs = {} if math.isnan(cost) else {"bops": cost}
    return Trial({"solver": "<gptq>", "share": None}, value, costs, "W4A4", 1.5, **more)


PLAIN, BEST = trial(0.7, 100.0), trial(0.8, 90.0)
TRIALS = (
    PLAIN,
    BEST,
    trial(0.6, 40.0),
    trial(0.5, 50.0),
    trial(0.9, 500.0, fits=False),
    trial(math.nan, math.nan, refused="P & W do not go together."),
)


def found(trials=TRIALS) -> TuneResult:
    return TuneResult(SimpleNamespace(), BEST, PLAIN, trials, 0.85, True)  # type: ignore[arg-type]


def test_the_front_has_what_nothing_cheaper_is_as_good_as() -> None:
    fitting = [t for t in TRIALS if t.fits and t.costs]
    assert [(t.value, t.costs["bops"]) for t in front(fitting, "bops")] == [(0.6, 40), (0.8, 90)]
    same = [trial(0.5, 10.0), trial(0.6, 10.0), trial(0.6, 20.0)]
    assert front(same, "bops") == [same[1]]
    assert front([], "bops") == []


def test_the_drawing_names_what_it_shows() -> None:
    [axes] = trade_off(found(), "bops", "bit operations").axes
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    marks = ["over the budget", "trials", "none is better and cheaper", "plain widths", "chosen"]
    assert names == [*marks, "float"]
    assert axes.get_xlabel() == "bops, bit operations"
    [chosen] = [line for line in axes.lines if line.get_marker() == "*"]
    assert (*chosen.get_xdata(), *chosen.get_ydata()) == (90.0, 0.8)


def test_the_page_has_every_trial_and_escapes_what_it_says(tmp_path) -> None:
    write_tuning(tmp_path / "trials.html", found(), "bops")
    page = (tmp_path / "trials.html").read_text()
    assert page.count("<tr") == len(TRIALS) + 1
    assert "<th>solver" not in page  # all trials have the same
    assert "In all trials: solver &lt;gptq&gt;." in page
    assert "P &amp; W do not go together." in page
    assert page.count("<td>chosen<") == 1
    assert page.count("<td>over the budget<") == 1
    without = tuple(t for t in TRIALS if not t.costs)
    write_tuning(tmp_path / "none.html", found(without), "bops")  # a cost that none could tell
    assert "<svg" not in (tmp_path / "none.html").read_text()
