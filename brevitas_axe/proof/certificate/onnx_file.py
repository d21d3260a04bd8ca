"""The overflow certificate of a QONNX file, from the file alone."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import onnx

from brevitas_axe.plan import Plan
from brevitas_axe.proof.certificate.certificate import (
    Certificate,
    Targets,
    excluded_names,
    tool_version,
)
from brevitas_axe.proof.certificate.dot_products import find
from brevitas_axe.proof.certificate.proof import prove
from brevitas_axe.proof.certificate.sums import joins_of, sums
from brevitas_axe.proof.graph.flow import analyse
from brevitas_axe.proof.graph.modelfile import ModelFile, analysing, read, shown


def certify_file(
    path_or_model: str | os.PathLike | onnx.ModelProto | object,
    accumulator_bit_width: int | None = None,
    tile_size: int | None = None,
    plan: Plan | None = None,
    exclude: Sequence[str] = (),
    honour_narrow: bool = False,
    input_types: Mapping[str, str] | None = None,
    fixed_initializers: bool = False,
) -> Certificate:
    """Proves, from a QONNX file alone, how wide every accumulator must be.

    Args:
        path_or_model: path of the file, a ModelProto, or a qonnx ModelWrapper.
        accumulator_bit_width: P that every dot product must fit; None only measures.
        tile_size: inputs per inner accumulator; None means whole rows.
        plan: widths and tiles by layer; where it has None, the two arguments above count.
        exclude: layers, nodes or weights that are left out of the verdict.
        honour_narrow: count a narrow input quantizer without its unused integer; only where the
            hardware does so too. FINN does not.
        input_types: graph input → qonnx integer type, such as {"x": "UINT8"}, of a floating-point
            input whose values the caller knows to be such integers; the certificate says so.
        fixed_initializers: assume that no caller replaces an initializer that is a graph input
            too, as the weights of Brevitas's own export are; FINN and `emulate` never do. The
            certificate says so.

    Raises:
        InvalidModelFile: the file is missing, corrupted, unsafe or broken.
        InvalidPlan: the plan names a layer that the file does not have.
        InvalidOption: exclude or input_types name nothing in the file.
        AccumulatorTooNarrow, InvalidTile: a width or tile size out of range.
    """
    targets = Targets(accumulator_bit_width, tile_size, plan)
    file = read(path_or_model)
    with analysing(file):
        facts = analyse(file, honour_narrow, input_types, fixed_initializers)
        found = tuple(find(file, facts))
        joined, joins = sums(tuple(joins_of(file, facts)), found)
    entries = tuple(prove(dot_product, targets) for dot_product in found)
    targets.check_aliases([entry.aliases for entry in entries])
    return Certificate(
        entries=entries,
        excluded=excluded_names(entries, exclude),
        subject=file.subject,
        sha256=file.sha256,
        external=file.external,
        sums=joined,
        tool_version=tool_version(),
        assumptions=(*joins, *_assumptions(file, input_types or {}, fixed_initializers)),
    )


def _assumptions(
    file: ModelFile, input_types: Mapping[str, str], fixed_initializers: bool
) -> tuple[str, ...]:
    """The caller's declarations about the whole file, one sentence each."""
    said = [
        f"graph input '{shown(name)}' holds {kind} integers, as the caller declares"
        for name, kind in input_types.items()
    ]
    inputs = {value.name for value in file.graph.input}
    shared = sum(tensor.name in inputs for tensor in file.graph.initializer)
    if fixed_initializers and shared:
        said.append(f"nobody replaces the {shared} initializers that are graph inputs too")
    return tuple(said)
