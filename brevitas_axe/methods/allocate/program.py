"""An allocation as a mixed-integer linear program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import coo_array, csc_array

from brevitas_axe.formats import Format
from brevitas_axe.methods.allocate.problem import Assignment, Problem, Quantity

# HiGHS works to absolute tolerances of 1e-6 and 1e-7: its numbers are scaled far above them.
SCALE = 1e4
# The first, small program has only the choices whose reduced cost is at most this share of the
# relaxation's bound.
FIRST_DISTANCE = 2e-3
Pair = tuple[int, int]
_relaxation: Any = linprog
_rows: Any = LinearConstraint  # scipy declares numbers where it takes arrays


@dataclass(frozen=True, eq=False)
class PairTable:
    """What two layers' choices add to a quantity beyond what each adds alone.

    Choices with equal rows (columns) act alike and form a class. Often there are few: what a
    layer costs depends on the input bits of the next one, not on its other widths.

    Attributes:
        rows, columns: int64 [choices], class of every choice of the first and second layer.
        values: name of quantity → [row classes, column classes].
        alone: name of quantity → the parts of its table that depend on the first, or on the second
            layer alone, and are counted there.
    """

    rows: np.ndarray
    columns: np.ndarray
    values: Mapping[str, np.ndarray]
    alone: Mapping[str, tuple[np.ndarray, np.ndarray]]

    @classmethod
    def of(cls, matrices: Mapping[str, np.ndarray]) -> PairTable:
        """From name of quantity → [choices of the first, choices of the second]."""
        alone = {n: (m[:, 0], m[0] - m[0, 0]) for n, m in matrices.items()}
        rest = {n: m - alone[n][0][:, None] - alone[n][1] for n, m in matrices.items()}
        _, first, rows = np.unique(
            np.hstack(list(rest.values())), axis=0, return_index=True, return_inverse=True
        )
        _, second, columns = np.unique(
            np.vstack(list(rest.values())), axis=1, return_index=True, return_inverse=True
        )
        values = {n: m[np.ix_(first, second)] for n, m in rest.items()}
        return cls(rows.ravel(), columns.ravel(), values, alone)


class Program:
    """Variables: one per layer and choice that can be optimal, one per pair of classes.

    Args:
        problem: what to allocate.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.limits = {n: b for n, b in problem.budgets.items() if np.isfinite(b)}
        quantities = {"": problem.harm, **{n: problem.costs[n] for n in self.limits}}
        self.tables = {
            pair: PairTable.of(_matrices(quantities, pair, shape))
            for pair, shape in _pairs(quantities, problem)
        }
        self.single = {n: _with_pairs(n, q, self.tables) for n, q in quantities.items()}
        self.kept = [self._kept(i) for i in range(len(problem.names))]
        sizes = [len(kept) for kept in self.kept]
        self.starts = np.concatenate([[0], np.cumsum(sizes)]).astype(int)

    def solve(self, gap: float, tightening: float) -> Assignment | None:
        """The best assignment, None where there is none.

        A choice whose reduced cost in the linear relaxation exceeds the distance between its bound
        and a known assignment cannot be in a better one. So a small program over the choices of
        little reduced cost is solved first, and what it finds decides which others could matter.

        Args:
            gap: relative gap at which to stop.
            tightening: share by which budgets are lowered.
        """
        limits, right = self._budgets(tightening)
        relaxed = _relaxation(
            self._objective,
            A_ub=limits if len(right) else None,
            b_ub=right if len(right) else None,
            A_eq=self._equations[0],
            b_eq=self._equations[1],
            bounds=(0, 1),
            method="highs-ds",
        )
        if relaxed.x is None:
            return None
        reduced = self._objective - self._equations[0].T @ relaxed.eqlin.marginals
        if len(right):
            reduced = reduced - limits.T @ relaxed.ineqlin.marginals
        reduced[self._binaries :] = 0.0
        reduced[relaxed.x > 0.5] = 0.0
        farthest = FIRST_DISTANCE * max(relaxed.fun, 1.0)
        while True:
            within = np.flatnonzero(np.abs(reduced) <= farthest)
            everything = len(within) == len(reduced)
            found = self._integral(within, limits, right, gap)
            if found is None:
                if everything:
                    return None
                farthest = 4 * farthest if farthest < np.abs(reduced).max() else np.inf
                continue
            distance = self._objective @ found - relaxed.fun
            if everything or distance <= farthest:
                return self._assignment(found)
            # A margin for the rounding errors of the linear program.
            farthest = distance * (1 + 1e-6) + 1e-3

    def _integral(
        self, within: np.ndarray, limits: csc_array, right: np.ndarray, gap: float
    ) -> np.ndarray | None:
        """The best values of all variables when only some may differ from zero."""
        equations, totals = self._equations
        result = milp(
            self._objective[within],
            integrality=(within < self._binaries).astype(int),
            bounds=Bounds(0, 1),
            constraints=[
                _rows(equations[:, within], totals, totals),
                *([_rows(limits[:, within], -np.inf, right)] if len(right) else []),
            ],
            options={"mip_rel_gap": gap},
        )
        if result.x is None:
            return None
        values = np.zeros(len(self._objective))
        values[within] = result.x
        return values

    def _assignment(self, values: np.ndarray) -> Assignment:
        return tuple(
            int(kept[np.argmax(values[start : start + len(kept)])])
            for kept, start in zip(self.kept, self.starts, strict=False)
        )

    @cached_property
    def _binaries(self) -> int:
        return int(self.starts[-1])

    @cached_property
    def _objective(self) -> np.ndarray:
        """Harm above each layer's least, scaled: only differences between assignments matter."""
        row = self._row("")
        return row * (SCALE / max(np.abs(row).max(), 1e-300))

    def _kept(self, i: int) -> np.ndarray:
        """Choices of a layer that no other one beats: less or equal harm and cost, same class."""
        options = self.problem.options[i]
        keys = [[0] * len(options)]
        if i in self._tied:
            widths = list(dict.fromkeys(choice.input for choice in options))
            keys.append([widths.index(choice.input) for choice in options])
        for (first, second), table in self.tables.items():
            keys += [table.rows] if first == i else [table.columns] if second == i else []
        key = np.array(keys)
        same = (key[:, :, None] == key[:, None, :]).all(0)
        values = np.array([self.single[n][i] for n in self.single])
        no_worse = (values[:, :, None] <= values[:, None, :]).all(0) & same
        # Of equal choices the first is kept.
        earlier = np.arange(len(options))[:, None] < np.arange(len(options))
        beaten = (no_worse & (~no_worse.T | earlier)).any(0)
        return np.flatnonzero(~beaten)

    @cached_property
    def _tied(self) -> set[int]:
        return {i for unit in self.problem.units if len(unit) > 1 for i in unit}

    @cached_property
    def _pair_starts(self) -> np.ndarray:
        sizes = [next(iter(table.values.values())).size for table in self.tables.values()]
        return np.concatenate([[0], np.cumsum(sizes)]).astype(int)

    def _row(self, name: str) -> np.ndarray:
        """Coefficients of one quantity for all variables."""
        singles = [self.single[name][i][kept] for i, kept in enumerate(self.kept)]
        if name == "":
            singles = [values - values.min() for values in singles]
        pairs = [table.values[name].ravel() for table in self.tables.values()]
        return np.concatenate([*singles, *pairs])

    def _budgets(self, tightening: float) -> tuple[csc_array, np.ndarray]:
        """Coefficients [budgets, variables] and right-hand sides, scaled."""
        count = self._binaries + int(self._pair_starts[-1])
        rows, right = np.zeros((len(self.limits), count)), np.zeros(len(self.limits))
        for k, (name, limit) in enumerate(self.limits.items()):
            row = self._row(name)
            scale = SCALE / max(abs(limit), np.abs(row).max(), 1e-300)
            rows[k], right[k] = row * scale, (limit - abs(limit) * tightening) * scale
        return csc_array(rows), right

    @cached_property
    def _equations(self) -> tuple[csc_array, np.ndarray]:
        """One choice per layer; ties; marginals of pairs: coefficients and right-hand sides."""
        rows: list[dict[int, float]] = []
        right: list[float] = []
        for i, kept in enumerate(self.kept):
            rows.append({self.starts[i] + k: 1.0 for k in range(len(kept))})
            right.append(1.0)
        for unit in self.problem.units:
            for i in unit[1:]:
                for bits in {c.input for j in (unit[0], i) for c in self.problem.options[j]}:
                    rows.append(
                        {**self._with_input(unit[0], bits, 1.0), **self._with_input(i, bits, -1.0)}
                    )
        for ((i, j), table), start in zip(self.tables.items(), self._pair_starts, strict=False):
            classes = next(iter(table.values.values())).shape
            index = self.starts[-1] + start + np.arange(classes[0] * classes[1]).reshape(classes)
            for layer, labels, variables in ((i, table.rows, index), (j, table.columns, index.T)):
                for label, line in enumerate(variables):
                    members = np.flatnonzero(labels[self.kept[layer]] == label)
                    taken = {self.starts[layer] + k: -1.0 for k in members}
                    rows.append({**taken, **dict.fromkeys(line, 1.0)})
        right += [0.0] * (len(rows) - len(right))
        places = [(r, at, value) for r, row in enumerate(rows) for at, value in row.items()]
        line, variable, value = (np.array(part) for part in zip(*places, strict=True))
        shape = (len(rows), self._binaries + int(self._pair_starts[-1]))
        return coo_array((value, (line, variable)), shape).tocsc(), np.array(right)

    def _with_input(self, i: int, bits: Format | None, value: float) -> dict[int, float]:
        options = self.problem.options[i]
        return {
            self.starts[i] + k: value
            for k, c in enumerate(self.kept[i])
            if options[c].input == bits
        }


def _pairs(
    quantities: Mapping[str, Quantity], problem: Problem
) -> Iterator[tuple[Pair, tuple[int, int]]]:
    for i, j in dict.fromkeys(pair for q in quantities.values() for pair in q.pairs):
        yield (i, j), (len(problem.options[i]), len(problem.options[j]))


def _matrices(
    quantities: Mapping[str, Quantity], pair: Pair, shape: tuple[int, int]
) -> dict[str, np.ndarray]:
    return {n: q.pairs.get(pair, np.zeros(shape)) for n, q in quantities.items()}


def _with_pairs(
    name: str, quantity: Quantity, tables: Mapping[Pair, PairTable]
) -> list[np.ndarray]:
    """What each layer's choices add alone, including the parts taken out of pairs."""
    single = [np.array(values, dtype=float) for values in quantity.single]
    for (i, j), table in tables.items():
        first, second = table.alone[name]
        single[i] = single[i] + first
        single[j] = single[j] + second
    return single
