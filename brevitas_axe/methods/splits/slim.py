"""Linear layers as branches of groups of inputs with fewer, as many, and more bits (SliM-LLM).

Huang et al., "SliM-LLM: Salience-Driven Mixed-Precision Quantization for Large Language Models",
arXiv 2405.14917. Two parts. Bits: of all groups of inputs the p least salient ones get a bit less,
the p most salient ones a bit more, so that the mean stays what it was; p is the number at which
the layer's outputs, as a softmax over its features, diverge least from the float ones. Scales: per
row and group, the range of the weights times a factor, at which the weights' error is least,
salient weights counted separately.

The salience of a weight is w^2 / U_jj^2, with U the upper Cholesky factor of the inverse of the
inputs' second moments (the authors' code; the paper prints the diagonal of that inverse).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import inf

import torch
from torch import Tensor

from brevitas_axe.accumulator import accumulator_limit
from brevitas_axe.methods.solvers.factor import damped_factor
from brevitas_axe.methods.solvers.problem import LayerProblem
from brevitas_axe.methods.splits.protocol import Branch
from brevitas_axe.plan import LayerPrecision
from brevitas_axe.registry import Facts, check_ranges

# Bits where a plan gives none.
_OPEN_BITS, _OPEN_INPUT_BITS = 4, 8
# Share of the mean diagonal that is added to the second moments.
DAMPING = 0.01
# Probabilities count as this at least.
_LEAST_PROBABILITY = 1e-6
# Factors of a group's range that are tried: as published, and down to what few symmetric levels
# need.
PUBLISHED_RANGE, OUR_RANGE, FACTORS = (0.9, 1.1), (0.4, 1.1), 101
# Exponent of the error by which they are compared.
NORM = 2.4
# A weight is salient where its salience exceeds the mean by so many standard deviations.
OUTLIER = 2.0
# Weights of the salient weights' error that are tried.
PUBLISHED_SHARES, OUR_SHARES = (1.0,), (0.0, 1.0, 2.0, 4.0)

# (weights [rows, size], bits) to the same, rounded.
Rounding = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class Slim:
    """Splits linear layers by the salience of groups of inputs; the mean of bits stays the same.

    A last group with fewer inputs keeps the planned bits. A layer stays whole where it has fewer
    than two groups. Groups of one bit have the weights -1 and 1; where their accumulator does not
    hold that many of them, no group gets fewer than two bits.

    Attributes:
        group: inputs of a group, in layers whose plan has no tiles; with tiles, these are the
            groups, since an accumulator adds numbers of one scale only.
        published: as in the authors' code: at least one group, and fewer than half of them less
            one, get fewer bits; they are chosen with asymmetric grids; factors of ranges lie
            between 0.9 and 1.1, and all weights count alike. Without, no group and half of them
            are among the candidates, grids are those of the layer, and the weight of the salient
            weights is searched, row by row.
    """

    group: int = 128
    published: bool = False
    facts = Facts(
        kind="MPW",
        granularity="group of inputs",
        signal="divergence of the layer's outputs; salience",
        export="qonnx",
        source="arXiv 2405.14917",
    )

    def __post_init__(self) -> None:
        check_ranges(self, group=(1, inf))

    def __call__(
        self, problem: LayerProblem, precision: LayerPrecision, sample: Tensor
    ) -> tuple[Branch, ...]:
        """Branches `low`, `mid` and `high`; see `brevitas_axe.methods.splits.Split`."""
        bits = precision.weight_bits or _OPEN_BITS
        size = precision.tile or self.group
        weight = problem.weight[0]
        salience = salience_of(weight.double(), problem.hessian[0].double())
        shift = torch.zeros(-(-problem.columns // size), dtype=torch.int64)
        if bits > (1 if _fits_one_bit(precision, size) else 2):
            rounding = rounded_asymmetric if self.published else rounded_symmetric
            counts, losses = divergences(
                weight, salience, sample, bits, size, rounding, self.published
            )
            if counts:
                best = min(range(len(counts)), key=losses.__getitem__)
                shift = shifted(salience, size, counts[best])
        scale = None
        if precision.tile is not None:
            scale = self._scales(problem, salience, bits + shift, size)
        group_of = torch.arange(problem.columns) // size
        branches = []
        for name, step in (("low", -1), ("mid", 0), ("high", 1)):
            columns = torch.nonzero(shift[group_of] == step).flatten()
            if len(columns):
                own = None if scale is None else scale[:, shift == step]
                widths = replace(precision, weight=bits + step)
                branches.append(Branch(name, columns, weight[:, columns], widths, scale=own))
        return tuple(branches)

    def _scales(self, problem: LayerProblem, salience: Tensor, bits: Tensor, size: int) -> Tensor:
        """[rows, groups] scales with the least error of the outputs, row by row."""
        shares = PUBLISHED_SHARES if self.published else OUR_SHARES
        factors = factors_of(*(PUBLISHED_RANGE if self.published else OUR_RANGE))
        salient = salient_weights(salience)
        weight, hessian = problem.weight[0].double(), problem.hessian[0].double()
        found = [plain_scales(weight, bits, size)]
        found += calibrated_scales(weight, salient, bits, size, factors, shares)
        most = largest_integers(bits).repeat_interleave(size)[: problem.columns]
        best, least = found[0], None
        for scale in found:
            each = scale.repeat_interleave(size, 1)[:, : problem.columns]
            error = on_grid(weight, each, most) - weight
            loss = (error * (error @ hessian)).sum(-1)
            if least is None:
                least = loss
                continue
            best = torch.where((loss < least).unsqueeze(-1), scale, best)
            least = torch.minimum(least, loss)
        return best.to(problem.weight.dtype)


def _fits_one_bit(precision: LayerPrecision, size: int) -> bool:
    """Whether an accumulator holds weights of one bit at any inputs, with a zero point or not."""
    if precision.accumulator is None:
        return True
    largest = 2 ** (precision.input_bits or _OPEN_INPUT_BITS) - 1
    return size * largest <= accumulator_limit(precision.accumulator)


def salience_of(weight: Tensor, hessian: Tensor) -> Tensor:
    """w^2 / U_jj^2 of every weight.

    Args:
        weight: float64 [rows, K].
        hessian: float64 [K, K], second moments of the inputs. Multiplying it by a number multiplies
            all saliences.
    """
    hessian = hessian.clone()
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    diagonal[dead] = 1
    # H = M M^T with M upper triangular, so that U = M^-1 and 1 / U_jj = M_jj.
    factor, _ = damped_factor(hessian.flip(0, 1).unsqueeze(0), DAMPING * diagonal.mean().view(1))
    return (weight * ~dead * factor[0].diagonal().flip(0)).square()


def group_sums(values: Tensor, size: int) -> Tensor:
    """[rows, K] to [groups], the sum of each group of columns."""
    return torch.stack([part.sum() for part in values.split(size, -1)])


def shifted(salience: Tensor, size: int, count: int) -> Tensor:
    """int64 [groups]: -1 for the least salient groups, 1 for the most salient, 0 for the others.

    Args:
        salience: [rows, K].
        size: columns of a group; a last one with fewer gets 0.
        count: of the groups that get -1, and of those that get 1.
    """
    full = salience.shape[1] // size
    order = group_sums(salience, size)[:full].argsort(stable=True)
    shift = torch.zeros(-(-salience.shape[1] // size), dtype=torch.int64)
    shift[order[:count]] = -1
    shift[order[full - count :]] = 1
    return shift


def divergences(
    weight: Tensor,
    salience: Tensor,
    sample: Tensor,
    bits: int,
    size: int,
    rounding: Rounding,
    published: bool = False,
) -> tuple[list[int], list[float]]:
    """Numbers of groups that may get a bit less, and the divergence of the outputs at each.

    Args:
        weight, salience: [rows, K].
        sample: [n, K] inputs.
        bits: of the other groups.
        size: columns of a group.
        rounding: to so many bits.
        published: leaves out the first and the last number.
    """
    half = weight.shape[1] // size // 2
    counts = [*range(1, half)] if published else [*range(half + 1)]
    real = _log_probabilities(sample @ weight.mT)
    outputs = _outputs(weight, salience, sample, bits, size, rounding, half)
    losses = [_divergence(given, real) for given in outputs]
    return counts, [losses[count] for count in counts]


def _outputs(
    weight: Tensor,
    salience: Tensor,
    sample: Tensor,
    bits: int,
    size: int,
    rounding: Rounding,
    most: int,
) -> Iterator[Tensor]:
    """Outputs [n, rows] with 0, 1, ... `most` groups that have a bit less, and as many one more."""
    parts, inputs = weight.split(size, -1), sample.split(size, -1)
    now = [rounding(part, bits) for part in parts]
    total = sum((x @ part.mT for x, part in zip(inputs, now, strict=True)), sample.new_zeros(1))
    yield total
    before = shifted(salience, size, 0)
    for count in range(1, most + 1):
        after = shifted(salience, size, count)
        for index in torch.nonzero(after != before).flatten().tolist():
            new = rounding(parts[index], bits + int(after[index]))
            total = total + inputs[index] @ (new - now[index]).mT
            now[index] = new
        before = after
        yield total


def _log_probabilities(outputs: Tensor) -> Tensor:
    return outputs.float().softmax(-1).clamp_min(_LEAST_PROBABILITY).log()


def _divergence(outputs: Tensor, real: Tensor) -> float:
    """Kullback-Leibler divergence of quantized from float outputs, mean over the inputs."""
    given = _log_probabilities(outputs)
    return float((given.exp() * (given - real)).sum(-1).mean())


def rounded_asymmetric(weight: Tensor, bits: int) -> Tensor:
    """Rounded on a grid from each row's least to its greatest weight, as the authors' code does."""
    if bits == 1:
        mean = weight.mean(1, keepdim=True)
        return mean + (weight - mean).sign() * weight.abs().mean(1, keepdim=True)
    low, high = weight.amin(1).clamp_max(0), weight.amax(1).clamp_min(0)
    empty = low == high
    scale = (torch.where(empty, 1.0, high - low) / (2**bits - 1)).unsqueeze(1)
    zero = (-torch.where(empty, 0.0, low).unsqueeze(1) / scale).round()
    return scale * (((weight / scale).round() + zero).clamp(0, 2**bits - 1) - zero)


def rounded_symmetric(weight: Tensor, bits: int) -> Tensor:
    """Rounded on a symmetric grid with the least error of each row, as far as factors go."""
    size = weight.shape[1]
    width, none = torch.tensor([bits]), torch.zeros_like(weight, dtype=torch.bool)
    [scale] = calibrated_scales(weight, none, width, size, factors_of(*OUR_RANGE), (1.0,))
    return on_grid(weight, scale, largest_integers(width))


def largest_integers(bits: Tensor) -> Tensor:
    """The largest integer of so many bits, as `on_grid` takes it: 0 for -1 and 1 of one bit."""
    return 2 ** (bits - 1) - 1


def on_grid(weight: Tensor, scale: Tensor, most: Tensor) -> Tensor:
    """Weights rounded to multiples of a scale, by integers of at most such a magnitude.

    Where that is 0, weights have one bit and are the scale with their sign.
    """
    rounded = (weight / scale).round_().clamp_(-most, most)
    if bool((most == 0).any()):
        rounded = torch.where(most == 0, torch.where(weight < 0, -1.0, 1.0).to(rounded), rounded)
    return rounded.mul_(scale)


def salient_weights(salience: Tensor) -> Tensor:
    """Bool [rows, K]: salience far above the mean of the layer."""
    spread = salience.std()
    return salience - salience.mean() > OUTLIER * spread


def factors_of(least: float, greatest: float) -> Tensor:
    """Factors of a range, 1 before all others."""
    return torch.cat([torch.ones(1), torch.linspace(least, greatest, FACTORS)]).double()


def plain_scales(weight: Tensor, bits: Tensor, size: int) -> Tensor:
    """[rows, groups] scales at which the largest weight of each group is the largest integer.

    Those of one bit, which has no largest weight to fit, are the root mean squares.
    """
    parts = weight.split(size, -1)
    largest = torch.stack([part.abs().amax(1) for part in parts], 1)
    usual = torch.stack([part.square().mean(1).sqrt() for part in parts], 1)
    most = largest_integers(bits).to(largest)
    scale = torch.where(most == 0, usual, largest / most.clamp_min(1))
    return torch.where(largest > 0, scale, 1.0)


def calibrated_scales(
    weight: Tensor,
    salient: Tensor,
    bits: Tensor,
    size: int,
    factors: Tensor,
    shares: tuple[float, ...],
) -> list[Tensor]:
    """Scales [rows, groups] at which the weights' error is least, one tensor for every share.

    The error is the sum of |w - s q|^2.4 over the weights, times the share where they are salient.

    Args:
        weight: [rows, K].
        salient: bool [rows, K].
        bits: int64 [groups].
        size: columns of a group.
        factors: of the plain scale, to try; the first one wins ties.
        shares: what salient weights count.
    """
    plain = plain_scales(weight, bits, size)
    found = [plain.clone() for _ in shares]
    for index, (part, marked) in enumerate(
        zip(weight.split(size, -1), salient.split(size, -1), strict=True)
    ):
        most = largest_integers(bits[index])
        least = [torch.full_like(plain[:, 0], inf) for _ in shares]
        for factor in factors.tolist():
            scale = factor * plain[:, index : index + 1]
            error = (on_grid(part, scale, most) - part).abs_().pow_(NORM)
            apart = (error * marked).sum(-1)
            rest = error.sum(-1) - apart
            for share, best, chosen in zip(shares, least, found, strict=True):
                loss = rest + share * apart
                better = loss < best
                best[better] = loss[better]
                chosen[better, index] = scale[better, 0]
    return found


slim = Slim()
