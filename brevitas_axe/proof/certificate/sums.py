"""Proofs and assumptions about an Add that joins results of dot products.

Where all of them have the same step, weight scale × input scale, their integers are added, and the
worst sum is the sum of their worst sums. Elsewhere each result is scaled before it is added, which
is no integer arithmetic: the certificate lists it as an assumption.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from brevitas_axe.accumulator import required_bit_width, worst_case_sums
from brevitas_axe.proof.certificate.certificate import DotProduct
from brevitas_axe.proof.certificate.proof import Found, Integers, width_with_bias
from brevitas_axe.proof.graph.flow import local_functions
from brevitas_axe.proof.graph.grid import Fact, is_constant
from brevitas_axe.proof.graph.modelfile import ModelFile, Node

# Results that one entry adds; a chain of doublings would name 2^n of them.
_MAX_TERMS = 64
# Operators whose results have one row per output on the same axis, if their weights agree in it.
_LAYOUTS = (
    {"MatMul", "Gemm", "QuantLinear"},
    {"Conv", "QuantConv1d", "QuantConv2d", "QuantConv3d"},
)


@dataclass(frozen=True)
class Join:
    """An Add, and the dot products whose results it adds.

    Attributes:
        name: of the Add, unique in the certificate.
        terms: names of the dot products, each as often as it is added.
        shifted: those to which a bias is added, once for each bias.
        negative: the last of the terms, if they are subtracted.
        op: that joins them.
    """

    name: str
    terms: tuple[str, ...]
    shifted: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
    op: str = "Add"


def joins_of(file: ModelFile, facts: Mapping[str, Fact]) -> Iterator[Join]:
    """Every Add of a graph whose summands are results of dot products, or of such Adds."""
    results: dict[str, Join] = {}
    functions = local_functions(file)
    for node in file.nodes:
        if node.domain or not node.outputs or (node.domain, node.op) in functions:
            continue
        output = node.outputs[0]
        if node.op in ("MatMul", "Gemm", "Conv") and len(node.inputs) > 1:
            own = (node.name,) if len(node.inputs) > 2 and node.inputs[2] else ()
            results[output] = Join(node.name, (node.name,), own)
        elif node.op in ("Sum", "Sub") and len(node.inputs) > 1:
            parts = [results.get(tensor) for tensor in node.inputs]
            yield from _joined(node, [part for part in parts if part], len(parts), results)
        elif node.op == "Add" and len(node.inputs) == 2:
            left, right = (results.get(tensor) for tensor in node.inputs)
            if left and right and len(left.terms) + len(right.terms) <= _MAX_TERMS:
                shifted = (*left.shifted, *right.shifted)
                results[output] = Join(node.name, (*left.terms, *right.terms), shifted)
                yield results[output]
            for given, other in ((left, node.inputs[1]), (right, node.inputs[0])):
                if given and is_constant(facts[other]):
                    results[output] = replace(given, shifted=(*given.shifted, *given.terms))


def _joined(
    node: Node, parts: Sequence[Join], count: int, results: dict[str, Join]
) -> Iterator[Join]:
    """What a Sum or Sub of results adds; as a term of later sums only where all are results."""
    terms = tuple(term for part in parts for term in part.terms)
    if len(parts) < 2 or len(terms) > _MAX_TERMS:
        return
    shifted = tuple(name for part in parts for name in part.shifted)
    if len(parts) < count:  # something else is added too, once to all
        shifted += terms
    negative = parts[1].terms if node.op == "Sub" else ()
    join = Join(node.name, terms, shifted, negative, node.op)
    if len(parts) == count and not negative:
        results[node.outputs[0]] = join
    yield join


def sums(
    joins: Sequence[Join], found: Sequence[Found]
) -> tuple[tuple[DotProduct, ...], tuple[str, ...]]:
    """(one entry per Add of equal steps, one sentence per other Add).

    Left out is an Add with a dot product that has no integers: the entry of that one says why.

    Args:
        joins: the Adds.
        found: all dot products.
    """
    known = {product.name: product for product in found}
    entries, assumptions = [], []
    for join in joins:
        terms = [known[name] for name in join.terms if name in known]
        integers = [term.integers for term in terms if term.integers is not None]
        if len(integers) < len(join.terms):
            continue
        entry = _entry(join, terms, integers)
        if entry is not None:
            entries.append(entry)
            continue
        names = [f"'{term.layer or term.name}'" for term in terms]
        listed = f"{', '.join(names[:-1])} and {names[-1]}"
        assumptions.append(f"the results of {listed} are scaled before they are added")
    return tuple(entries), tuple(dict.fromkeys(assumptions))


def _entry(join: Join, terms: Sequence[Found], integers: Sequence[Integers]) -> DotProduct | None:
    """The sum of results, None where their steps are not known to be equal."""
    rows, dims = len(integers[0].weights), len(terms[0].shape or ())
    sides = {part.rows_last for part in integers}
    layouts = any({term.op for term in terms} <= layout for layout in _LAYOUTS)
    aligned = (
        layouts
        and len(sides) == 1
        and all(
            len(part.weights) == rows and len(term.shape or ()) == dims
            for term, part in zip(terms, integers, strict=True)
        )
    )
    # A matrix product with more than two dimensions has rows on two axes.
    if not aligned or (dims > 2 and terms[0].op in _LAYOUTS[0]):
        return None
    steps = [np.broadcast_to(part.step, rows) for part in integers]
    # NaN marks a step that varies: it is unequal to itself.
    equal = all(np.array_equal(step, steps[0]) for step in steps)
    if not equal or np.isnan(steps[0]).any() or any(p.scale_span is not None for p in integers):
        return None
    minimum, maximum = np.zeros(rows, object), np.zeros(rows, object)
    for index, part in enumerate(integers):
        low, high = worst_case_sums(part.weights, part.low, part.high)
        if index >= len(integers) - len(join.negative):
            low, high = -high, -low
        # Python integers: sums of int64 could wrap.
        minimum, maximum = minimum + low[:, 0].astype(object), maximum + high[:, 0].astype(object)
    carried, notes = _with_bias(join, terms, integers, minimum, maximum)
    low, high = int(min(minimum)), int(max(maximum))
    return DotProduct(
        name=join.name,
        op=join.op,
        inputs=len(terms),
        minimum=low,
        maximum=high,
        width=required_bit_width(low, high),
        width_with_bias=carried,
        proven=True,
        assumptions=tuple(
            dict.fromkeys((*(n for term in terms for n in term.assumptions), *notes))
        ),
    )


def _with_bias(
    join: Join,
    terms: Sequence[Found],
    integers: Sequence[Integers],
    minimum: np.ndarray,
    maximum: np.ndarray,
) -> tuple[int | None, tuple[str, ...]]:
    """Bits of the sum with its bias; None unless exactly one of the results has one.

    With two biases that are no integers, each could be rounded up.
    """
    biases = {t.name: p.bias for t, p in zip(terms, integers, strict=True) if p.bias is not None}
    if (
        join.negative
        or len(biases) != 1
        or not set(join.shifted) <= set(biases)
        or len(join.shifted) > 1
    ):
        return None, ()
    (name,) = biases
    if join.terms.count(name) > 1:
        return None, ()
    return width_with_bias(minimum, maximum, biases[name])
