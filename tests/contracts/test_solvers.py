"""What every registered solver promises, at every quality."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.solvers import Solver
from brevitas_axe.methods.solvers.problem import UNLIMITED
from brevitas_axe.registry import method, methods
from tests.methods.solvers.layers import assert_feasible, largest_sum, random_problem

SOLVERS: dict[str, Solver] = methods("solvers")
every_solver = pytest.mark.parametrize("name", SOLVERS)
qualities = pytest.mark.parametrize("quality", ["fast", "best"])


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_every_solution_fits_its_accumulator(data: st.DataObject) -> None:
    draw = data.draw
    groups, columns = draw(st.integers(1, 3)), draw(st.integers(1, 40))
    problem = random_problem(
        rows=draw(st.integers(1, 5)),
        columns=columns,
        groups=groups,
        signed=draw(st.booleans()),
        weight_bits=draw(st.integers(2, 8)),
        input_bits=draw(st.integers(2, 8)),
        mean=draw(st.sampled_from([0.0, 50.0])),
        dead=draw(st.integers(0, columns)),
        bias=draw(st.booleans()),
        seed=draw(st.integers(0, 99)),
        dtype=draw(st.sampled_from([torch.float32, torch.float64])),
        accumulator_bit_width=draw(st.one_of(st.none(), st.integers(2, 20))),
        tile_size=draw(st.one_of(st.none(), st.integers(1, 50))),
        shared_scale=draw(st.booleans()),
        power_of_two=draw(st.booleans()),
    )
    if problem.shared_scale:
        problem = replace(problem, scale=problem.scale.amax().expand_as(problem.scale).clone())
    if draw(st.booleans()):
        low = torch.randint(-40, 1, (groups, columns))
        problem = replace(problem, input_low=low, input_high=low + 40)
    solve = SOLVERS[draw(st.sampled_from(list(SOLVERS)))]
    solution = solve(
        problem, act_order=draw(st.booleans()), quality=draw(st.sampled_from(["fast", "best"]))
    )
    assert_feasible(problem, solution)
    if problem.shared_scale:
        assert solution.scale.unique().numel() == 1
    if problem.power_of_two:
        exponent = (solution.scale / problem.scale).log2()
        assert torch.equal(exponent, exponent.round())


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_every_tile_and_column_has_limits_of_its_own(data: st.DataObject) -> None:
    draw = data.draw
    columns = draw(st.integers(2, 40))
    starts = (0, *sorted(draw(st.sets(st.integers(1, columns - 1)))))
    width = st.one_of(st.just(UNLIMITED), st.integers(2, 20))
    widths = draw(st.lists(width, min_size=len(starts), max_size=len(starts)))
    bounds = st.lists(st.integers(0, 100), min_size=columns, max_size=columns)
    problem = random_problem(
        rows=draw(st.integers(1, 5)),
        columns=columns,
        groups=draw(st.integers(1, 2)),
        signed=draw(st.booleans()),
        bias=draw(st.booleans()),
        seed=draw(st.integers(0, 99)),
        tile_starts=starts,
        accumulator_bit_width=torch.tensor(widths),
        weight_low=-torch.tensor(draw(bounds)),
        weight_high=torch.tensor(draw(bounds)),
    )
    if draw(st.booleans()):
        factor = 2.0 ** torch.randint(-2, 3, (len(starts),))
        problem = replace(problem, scale=problem.scale.unsqueeze(-1) * factor)
    solve = SOLVERS[draw(st.sampled_from(sorted(SOLVERS)))]
    act_order = draw(st.booleans())
    fast, best = (solve(problem, act_order=act_order, quality=q) for q in ("fast", "best"))
    assert_feasible(problem, fast)
    assert_feasible(problem, best)
    if problem.quant_mean is None:
        before, after = fast.loss(problem), best.loss(problem)
        assert bool((after <= before + 1e-6 * before.abs().clamp_min(1)).all())


@every_solver
@qualities
@pytest.mark.parametrize("bits", [12, None])
def test_limits_that_are_all_the_same_are_one_limit(name: str, quality: str, bits) -> None:
    plain = random_problem(6, 24, tile_size=10, accumulator_bit_width=bits)
    spelled = replace(
        plain,
        tile_size=None,
        tile_starts=(0, 10, 20),
        accumulator_bit_width=torch.full((3,), bits or UNLIMITED),
        weight_low=torch.full((24,), -7),
        weight_high=torch.full((24,), 7),
    )
    one, two = (method("solvers", name)(problem, quality=quality) for problem in (plain, spelled))
    assert torch.equal(one.integers, two.integers)
    assert torch.equal(one.scale, two.scale)


@every_solver
@qualities
def test_a_column_keeps_to_its_own_range(name: str, quality: str) -> None:
    high = torch.tensor([7] * 12 + [1] * 12)
    problem = random_problem(6, 24, weight_low=-high, weight_high=high)
    used = method("solvers", name)(problem, quality=quality).integers.abs()
    assert used[..., :12].max() > 1
    assert used[..., 12:].max() == 1


@every_solver
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("bits", "tile"), [(None, None), (12, None), (10, 16), (13, 24)])
def test_best_never_loses_a_row(
    name: str, signed: bool, bits: int | None, tile: int | None
) -> None:
    problem = random_problem(
        8, 60, signed=signed, accumulator_bit_width=bits, tile_size=tile, seed=3
    )
    fast, best = (SOLVERS[name](problem, quality=quality) for quality in ("fast", "best"))
    assert_feasible(problem, best)
    loss, published = best.loss(problem), fast.loss(problem)
    assert bool((loss <= published + 1e-12).all())
    assert loss.sum() < published.sum()


@every_solver
def test_best_never_loses_a_row_with_a_bias(name: str) -> None:
    problem = random_problem(8, 40, mean=1.0, bias=True, accumulator_bit_width=12)
    fast, best = (SOLVERS[name](problem, quality=quality) for quality in ("fast", "best"))
    assert fast.bias_shift is None
    assert best.bias_shift.shape == (1, 8)
    assert bool((best.loss(problem) <= fast.loss(problem) + 1e-9).all())


@every_solver
@qualities
@pytest.mark.parametrize("options", [{"shared_scale": True}, {"power_of_two": True}])
def test_tied_and_power_of_two_scales(name: str, quality: str, options: dict) -> None:
    problem = random_problem(6, 30, groups=2, accumulator_bit_width=12, **options)
    problem = replace(problem, scale=torch.full_like(problem.scale, 0.25))
    solution = SOLVERS[name](problem, quality=quality)
    assert_feasible(problem, solution)
    assert solution.loss(problem).sum() <= SOLVERS[name](problem).loss(problem).sum() + 1e-9


@every_solver
@qualities
def test_one_scale_per_tile(name: str, quality: str) -> None:
    plain = random_problem(4, 20, tile_size=8, accumulator_bit_width=12)
    parts = plain.weight.split(8, dim=-1)
    scale = torch.stack([part.abs().amax(-1) / 7 for part in parts], -1)
    problem = replace(plain, scale=scale)
    solution = SOLVERS[name](problem, quality=quality)
    assert_feasible(problem, solution)
    assert solution.scale.shape == (1, 4, 3)
    same = replace(plain, scale=plain.scale.unsqueeze(-1).expand(1, 4, 3).clone())
    assert torch.equal(SOLVERS[name](same).integers, SOLVERS[name](plain).integers), (
        "equal scales in every tile are one scale per row"
    )


@every_solver
@qualities
def test_dead_inputs_get_zero(name: str, quality: str) -> None:
    problem = random_problem(5, 24, dead=7, accumulator_bit_width=14)
    solution = SOLVERS[name](problem, quality=quality)
    assert bool((solution.integers[..., :7] == 0).all())
    assert bool((solution.integers != 0).any())


@every_solver
@qualities
def test_depthwise_groups_equal_separate_layers(name: str, quality: str) -> None:
    problem = random_problem(1, 9, groups=40, accumulator_bit_width=10)
    solution = SOLVERS[name](problem, quality=quality)
    for g in (0, 17, 39):
        alone = replace(
            problem,
            **{
                field: getattr(problem, field)[g : g + 1]
                for field in ("weight", "hessian", "cross", "scale")
            },
        )
        expected = SOLVERS[name](alone, quality=quality)
        assert torch.equal(solution.integers[g : g + 1], expected.integers)


@every_solver
@qualities
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_strongly_correlated_inputs(name: str, quality: str, dtype: torch.dtype) -> None:
    # Brevitas: float32 loses every digit of the inverse, and rows end as zeros.
    problem = random_problem(4, 1024, mean=100.0, weight_bits=8, dtype=dtype)
    solution = SOLVERS[name](problem, quality=quality)
    assert bool((solution.integers != 0).any(-1).all())
    rounded = (problem.weight / problem.scale.unsqueeze(-1)).round().int()
    nearest = replace(solution, integers=rounded, scale=problem.scale)
    assert solution.loss(problem).sum() <= nearest.loss(problem).sum()


@every_solver
@qualities
def test_a_budget_that_allows_nothing_gives_zeros(name: str, quality: str) -> None:
    problem = random_problem(3, 12, accumulator_bit_width=2)
    solution = SOLVERS[name](problem, quality=quality)
    assert not solution.integers.any()
    assert_feasible(problem, solution)


@every_solver
def test_wide_integers_are_exact(name: str) -> None:
    # Sums near 2^61: beyond float64, let alone float32.
    problem = random_problem(3, 40, dtype=torch.float64)
    problem = replace(
        problem,
        scale=problem.weight.abs().amax(-1) / 2**28,
        weight_low=-(2**28),
        weight_high=2**28,
        input_low=-(2**31),
        input_high=2**31 - 1,
        accumulator_bit_width=61,
    )
    solution = SOLVERS[name](problem)
    assert_feasible(problem, solution)
    assert largest_sum(problem, solution.integers) > 2**59


@every_solver
def test_inputs_are_left_alone_and_results_repeat(name: str) -> None:
    problem = random_problem(5, 33, dead=2, accumulator_bit_width=13)
    names = ("weight", "hessian", "cross", "scale")
    before = {field: getattr(problem, field).clone() for field in names}
    first = SOLVERS[name](problem, quality="best")
    assert torch.equal(first.integers, SOLVERS[name](problem, quality="best").integers)
    for field, tensor in before.items():
        assert torch.equal(getattr(problem, field), tensor)


@every_solver
def test_equal_inputs_need_no_cross_moments(name: str) -> None:
    problem = random_problem(5, 33, accumulator_bit_width=14, dtype=torch.float64)
    without = replace(problem, cross=None)
    explicit = replace(problem, cross=problem.hessian)
    assert torch.equal(SOLVERS[name](without).integers, SOLVERS[name](explicit).integers)


@every_solver
def test_unknown_quality(name: str) -> None:
    with pytest.raises(InvalidOption, match="slow"):
        SOLVERS[name](random_problem(), quality="slow")


def test_all_are_there() -> None:
    assert {"gpfq", "gptq", "learned_rounding", "qronos"} <= set(SOLVERS)


@every_solver
def test_the_float_inputs_count_where_they_are_said_to(name: str) -> None:
    problem = random_problem(5, 33, accumulator_bit_width=14, dtype=torch.float64)
    other = replace(problem, cross=problem.cross * 0.9)
    same = torch.equal(SOLVERS[name](problem).integers, SOLVERS[name](other).integers)
    assert same != SOLVERS[name].uses_float_inputs


@every_solver
@qualities
@pytest.mark.parametrize("limit", [None, 12])
def test_weights_of_one_bit_are_never_zero(name: str, quality, limit: int | None) -> None:
    ends = {"weight_low": torch.tensor([-1] * 8 + [-3] * 8 + [-1] * 8)}
    ends["weight_high"] = -ends["weight_low"]
    problem = random_problem(
        columns=24, dead=2, bias=True, tile_size=8, accumulator_bit_width=limit, **ends
    )
    problem = replace(problem, binary=torch.tensor([True, False, True]), scale=problem.scale * 5)
    solution = SOLVERS[name](problem, quality=quality)
    ones = solution.integers[..., problem.binary_columns]
    assert (ones.abs() == 1).all()
    assert len(ones.unique()) == 2
    assert len(solution.integers[..., ~problem.binary_columns].unique()) > 2
    assert_feasible(problem, solution)
