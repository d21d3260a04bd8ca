"""Compares what a certificate claims of a random graph with what its dot products add up."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper

from benchmarks.random_graphs.builder import OPSETS, Builder, Product
from benchmarks.random_graphs.execution import Context, Run, by_qonnx
from benchmarks.random_graphs.products import any_product, hidden
from benchmarks.random_graphs.quantizers import any_quantizer, start
from benchmarks.random_graphs.steps import any_step
from benchmarks.random_graphs.sums import extremes, one_step

_SHAPES = (
    (3,),
    (6,),
    (2, 3),
    (3, 4),
    (1, 6),
    (2, 3, 3),
    (4, 2, 2),
    (1, 4, 4),
    (3, 3, 2),
    (2, 2, 2, 2),
)


@dataclass
class Claim:
    """What is claimed of one dot product: the numbers of its entry.

    Attributes:
        minimum: smallest sum of any tile; maximum: largest.
        width: bits of that accumulator.
        tile: inputs per tile, None for none.
        outer_width: bits of the sum of the tiles.
        width_with_bias: bits of the row and its bias.
    """

    minimum: int
    maximum: int
    width: int
    tile: int | None = None
    outer_width: int | None = None
    width_with_bias: int | None = None


@dataclass
class Outcome:
    """What one graph showed.

    Attributes:
        counts: claims, and how many of them were met with equality, by name.
        problems: claims that were exceeded, one sentence each.
    """

    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def build(seed: int) -> tuple[Builder, onnx.ModelProto]:
    """A random graph; the same one for the same seed."""
    draw = np.random.default_rng([20000, seed])
    b = Builder(draw, int(draw.choice(OPSETS)), bool(draw.random() < 0.35))
    if b.plain:
        b.opset = max(b.opset, 10)  # quantizers of ONNX since then
    start(b, b.pick(*_SHAPES))
    for _ in range(b.number(0, 5)):
        any_step(b)
    if b.draw.random() < 0.05:
        hidden(b)
    any_product(b)
    if b.shape and int(np.prod(b.shape)) <= 64 and b.draw.random() < 0.3:
        any_quantizer(b)
        for _ in range(b.number(0, 2)):
            any_step(b)
        any_product(b)
    return b, b.model()


class Judge:
    """One graph, executed on inputs that drive its dot products to their ends."""

    def __init__(self, b: Builder, model: onnx.ModelProto) -> None:
        self._b, self._model, self._run = b, model, Run(model)
        kinds = {i.name: i.type.tensor_type.elem_type for i in b.inputs}
        self._kinds = {n: helper.tensor_dtype_to_np_dtype(k) for n, k in kinds.items()}
        self._size = {n: int(np.prod(b.shapes[n])) for n in b.shapes}
        self.contexts: list[Context] = []

    def execute(self) -> None:
        """Runs random corners, one element at a time, and then the worst of every product."""
        total = sum(self._size.values())
        draw = self._b.draw
        lows = np.zeros((total + 1, total), bool)
        lows[np.arange(total) + 1, np.arange(total)] = True
        probe = self._at(lows)
        self.contexts.append(probe)
        self.contexts.append(self._at(draw.random((4, total)) < draw.random((4, 1))))
        chosen = [c for made in self._b.products for c in self._worst(made, probe)]
        if chosen:
            self.contexts.append(self._at(np.stack(chosen)))
        mixed = {
            n: (draw.uniform(-4, 4, (3, *self._b.shapes[n]))).astype(k)
            for n, k in self._kinds.items()
        }
        if all(low < -4 for low, _ in self._b.corners.values()):
            self.contexts.append(self._run(mixed))

    def _at(self, high: np.ndarray) -> Context:
        """Every tensor for inputs at their corners; high is [batch, elements]."""
        feeds, start = {}, 0
        for name, size in self._size.items():
            low, top = self._b.corners[name]
            values = np.where(high[:, start : start + size], top, low)
            feeds[name] = values.reshape(-1, *self._b.shapes[name]).astype(self._kinds[name])
            start += size
        return self._run(feeds)

    def _worst(self, made: Product, probe: Context) -> list[np.ndarray]:
        """Corners that should drive some output to its largest, and some to its smallest sum."""
        integers = self._integers(made, probe)
        if integers is None:
            return []
        below, above, _ = extremes(made, *integers)
        batch = len(next(iter(probe[n] for n in self._size)))
        corners = []
        for sums, sign in ((above, 1), (below, -1)):
            if made.attributes.get("transA") or sums.shape[0] != batch:
                sums = np.moveaxis(sums, -2, 0) if sums.shape[-2] == batch else sums
            if sums.shape[0] != batch:
                return []
            flat = sign * sums.reshape(batch, -1)
            change = flat[1:] - flat[:1]
            best = (flat[0] + np.maximum(change, 0).sum(0)).argmax()
            corners.append(change[:, best] > 0)
        return corners

    def _integers(self, made: Product, context: Context) -> tuple[np.ndarray, np.ndarray] | None:
        """Both operands in whole steps; None where they are not."""
        found = []
        for name, step in ((made.left, made.left_step), (made.right, made.right_step)):
            if step is None:
                return None
            ratio = np.asarray(context[name], np.float64) / step
            nearest = np.rint(ratio)
            if not np.all(np.abs(ratio - nearest) <= 1e-2 + 1e-5 * np.abs(nearest)):
                return None
            found.append(nearest.astype(np.int64))
        return found[0], found[1]

    def compare(self, made: Product, claim: Claim) -> Outcome:
        """The claim of one product against all that was executed."""
        outcome, lowest, highest = Outcome(Counter(claims=1)), 0, 0
        steps = (made.left_step, made.right_step)
        wide = sums_of_rows = 0
        for context in self.contexts:
            integers = self._integers(made, context)
            if integers is None:
                outcome.problems.append("a claim about what is no whole number of steps")
                return outcome
            below, above, total = extremes(made, *integers, claim.tile)
            lowest = min(lowest, int(below.min(initial=0)))
            highest = max(highest, int(above.max(initial=0)))
            sums_of_rows = max(sums_of_rows, int(np.abs(total).max(initial=0)))
            if any(s is not None and s.size > 1 for s in steps):
                shapes = context[made.left].shape, context[made.right].shape
                spread = [np.broadcast_to(s, n) for s, n in zip(steps, shapes, strict=True)]
                if not one_step(made, *spread):
                    outcome.problems.append("a claim about products of several steps")
                    return outcome
                continue
            if made.bias is not None and made.op != "Gemm":
                wide = max(wide, _with_bias(made, total))
        for exceeded, text in (
            (lowest < claim.minimum, f"sum {lowest} below {claim.minimum}"),
            (highest > claim.maximum, f"sum {highest} above {claim.maximum}"),
            (max(-lowest, highest) >= 2 ** (claim.width - 1), f"{claim.width} bits overflow"),
            (_beyond(sums_of_rows, claim.outer_width), f"outer {claim.outer_width} bits overflow"),
            (_beyond(wide, claim.width_with_bias), f"{claim.width_with_bias} bits with bias"),
        ):
            if exceeded:
                outcome.problems.append(text)
        outcome.counts["ends met"] = (lowest == claim.minimum) + (highest == claim.maximum)
        outcome.counts["tight"] = int(lowest == claim.minimum or highest == claim.maximum)
        outcome.counts["tight at both ends"] = int(
            lowest == claim.minimum and highest == claim.maximum
        )
        return outcome

    def agrees_with_qonnx(self) -> str:
        """A difference between this execution and qonnx's execute_onnx, or ''."""
        context = self.contexts[1]
        feeds = {name: context[name] for name in self._size}
        theirs = by_qonnx(self._model, context, feeds)
        for name, mine in context.items():
            if name in theirs and not np.allclose(mine, theirs[name], 1e-5, 1e-6, equal_nan=True):
                return f"tensor {name} differs from execute_onnx"
        return ""


def _beyond(sums: int, width: int | None) -> bool:
    return width is not None and sums >= 2 ** (width - 1)


def _with_bias(made: Product, total: np.ndarray) -> int:
    """Largest magnitude of a whole row and its bias."""
    assert made.bias is not None
    assert made.left_step is not None
    assert made.right_step is not None
    step = float(made.left_step.reshape(-1)[0] * made.right_step.reshape(-1)[0])
    units = np.asarray(made.bias, np.float32).astype(np.float64) / step
    units = np.trunc(np.abs(units) + 1 - 1e-6) * np.sign(units)
    shaped = units.reshape(-1, *[1] * (total.ndim - 2)) if "Conv" in made.op else units
    if made.channels_last:
        shaped = units.reshape(-1, *[1] * (total.ndim - 2))
    return int(np.abs(total + np.trunc(shaped)).max(initial=0))
