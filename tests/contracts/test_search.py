"""What every registered searcher promises, on spaces small enough to list."""

from __future__ import annotations

import itertools
from math import nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brevitas_axe.errors import InvalidOption, NonFiniteValues
from brevitas_axe.methods.search.protocol import Record, Space
from brevitas_axe.registry import methods

SEARCHERS = methods("search")
every = pytest.mark.parametrize("name", SEARCHERS)
once = pytest.mark.parametrize("name", [n for n, s in SEARCHERS.items() if not s.repeats])
repeating = pytest.mark.parametrize("name", [n for n, s in SEARCHERS.items() if s.repeats])
SPACE = Space({"bits": (2, 4, 8), "inputs": ("static", "dynamic"), "share": (0.1, 0.5, None)})


class Recorder:
    """An objective that counts its questions; larger is better."""

    def __init__(self, values=None) -> None:
        self.asked: list[dict] = []
        self._values = values

    def __call__(self, configuration) -> float:
        self.asked.append(dict(configuration))
        if self._values is not None:
            return self._values[SPACE.positions(configuration)]
        return -abs(configuration["bits"] - 4) + (configuration["inputs"] == "dynamic")


def everything() -> list[dict]:
    rows = itertools.product(*SPACE.decisions.values())
    return [dict(zip(SPACE.decisions, values, strict=True)) for values in rows]


def test_all_are_there() -> None:
    assert {"genetic", "grid", "random", "reinforce", "surrogate", "tpe"} <= set(SEARCHERS)


@once
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_a_budget_of_the_whole_space_finds_its_optimum(name, data) -> None:
    numbers = st.floats(-1e6, 1e6, allow_nan=False)
    drawn = data.draw(st.lists(numbers, min_size=SPACE.size, max_size=SPACE.size))
    values = {SPACE.numbered(i): value for i, value in enumerate(drawn)}
    objective = Recorder(values)
    found = SEARCHERS[name](SPACE, objective, SPACE.size + 5)
    assert values[SPACE.positions(found)] == max(drawn)
    assert len(objective.asked) == SPACE.size


@every
@pytest.mark.parametrize("budget", [1, 5, 12])
def test_the_same_seed_gives_the_same_questions_and_answer(name, budget) -> None:
    first, again = Recorder(), Recorder()
    found = SEARCHERS[name](SPACE, first, budget, seed=3)
    assert SEARCHERS[name](SPACE, again, budget, seed=3) == found
    assert first.asked == again.asked
    assert len(first.asked) == budget
    if not SEARCHERS[name].repeats:
        assert found in first.asked
        assert first(found) == max(map(first, list(first.asked)))


@repeating
@pytest.mark.parametrize("done", [1, 20, 39])
def test_a_search_that_repeats_continues_where_it_stopped(name, done) -> None:
    whole, rest = Recorder(), Recorder()
    found = SEARCHERS[name](SPACE, whole, 40, seed=2)
    before = [(asked, Recorder()(asked)) for asked in whole.asked[:done]]
    assert SEARCHERS[name](SPACE, rest, 40 - done, before=before, seed=2) == found
    assert rest.asked == whole.asked[done:]


@repeating
def test_the_course_of_a_search_has_a_distribution_for_every_step(name) -> None:
    objective = Recorder()
    SEARCHERS[name](SPACE, objective, 30, seed=2)
    asked = [(each, Recorder()(each)) for each in objective.asked]
    course = list(SEARCHERS[name].course(SPACE, asked, seed=2))
    assert len(course) == 30
    for (each, _), step in zip(asked, course, strict=True):
        for decision, values in SPACE.decisions.items():
            assert len(step[decision]) == len(values)
            assert sum(step[decision]) == pytest.approx(1)
            assert step[decision][values.index(each[decision])] > 0
    assert course[0] != course[-1]


@repeating
def test_steps_of_another_search_and_values_without_meaning_are_refused(name) -> None:
    objective = Recorder()
    SEARCHERS[name](SPACE, objective, 8, seed=2)
    before = [(asked, 0.0) for asked in objective.asked]
    with pytest.raises(InvalidOption, match="another search"):
        SEARCHERS[name](SPACE, Recorder(), 4, before=before[::-1], seed=2)
    with pytest.raises(NonFiniteValues, match="is nan"):
        SEARCHERS[name](SPACE, lambda _: nan, 4)


@once
def test_what_is_known_is_not_asked(name) -> None:
    before = [(c, Recorder()(c)) for c in everything()[::2]]
    objective = Recorder()
    SEARCHERS[name](SPACE, objective, 100, before=before)
    assert all(configuration not in objective.asked for configuration, _ in before)
    assert len(objective.asked) == SPACE.size - len(before)
    best = {"bits": 8, "inputs": "static", "share": 0.1}
    assert SEARCHERS[name](SPACE, Recorder(), 3, before=[(best, 99.0)]) == best
    assert SEARCHERS[name](SPACE, Recorder(), 0, before=[(best, 0.0)]) == best


@once
def test_results_of_other_cases_are_no_answers(name) -> None:
    others = [Record({"layers": 3.0}, c, 1e9) for c in everything()[:5]]
    others.append(Record({}, {"bits": 3, "share": "odd"}, nan))
    space = Space(SPACE.decisions, {"layers": 4.0}, others)
    objective = Recorder()
    found = SEARCHERS[name](space, objective, 100)
    assert len(objective.asked) == SPACE.size
    assert objective(found) == max(map(objective, everything()))


@once
def test_of_equal_ones_the_first_wins(name) -> None:
    objective = Recorder(dict.fromkeys(map(SPACE.numbered, range(SPACE.size)), 1.0))
    assert SEARCHERS[name](SPACE, objective, 7, seed=1) == objective.asked[0]


@once
def test_not_a_number_is_worse_than_every_number(name) -> None:
    values = {SPACE.numbered(i): nan for i in range(SPACE.size)}
    values[SPACE.numbered(4)] = -1e9
    found = SEARCHERS[name](SPACE, Recorder(values), SPACE.size)
    assert SPACE.positions(found) == SPACE.numbered(4)


@once
def test_a_space_too_large_to_list(name) -> None:
    space = Space({f"layer{i}": tuple(range(2, 9)) for i in range(60)})
    asked: list[dict] = []

    def objective(configuration) -> float:
        asked.append(dict(configuration))
        return -sum(configuration.values())

    assert SEARCHERS[name](space, objective, 12) in asked
    assert len({tuple(c.values()) for c in asked}) == 12


@every
def test_bad_questions_are_named(name) -> None:
    with pytest.raises(InvalidOption, match="at least one question"):
        SEARCHERS[name](SPACE, Recorder(), 0)
    wrong = {"bits": 3, "inputs": "static", "share": 0.1}
    with pytest.raises(InvalidOption, match="decision 'bits' cannot be 3"):
        SEARCHERS[name](SPACE, Recorder(), 4, before=[(wrong, 1.0)])
    with pytest.raises(InvalidOption, match="but one was given for bits"):
        SEARCHERS[name](SPACE, Recorder(), 4, before=[({"bits": 4}, 1.0)])


def test_bad_spaces_are_named() -> None:
    with pytest.raises(InvalidOption, match="at least one decision"):
        Space({})
    with pytest.raises(InvalidOption, match="'bits' has no value"):
        Space({"bits": ()})
    with pytest.raises(InvalidOption, match="'bits' offers a value twice"):
        Space({"bits": (4, 4)})
