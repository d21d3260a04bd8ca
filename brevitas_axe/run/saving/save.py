"""A result → a folder."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import safetensors.torch

from brevitas_axe.errors import InvalidOption
from brevitas_axe.files import json_text
from brevitas_axe.model.attention_calls import is_product
from brevitas_axe.model.attention_products import certified
from brevitas_axe.model.devices import input_device, moved
from brevitas_axe.model.fingerprint import Fingerprint
from brevitas_axe.model.layers import find_layers, integer_weight
from brevitas_axe.model.offload import in_memory
from brevitas_axe.model.prepare import Batch, one_sample
from brevitas_axe.model.running import evaluating, observe_inputs
from brevitas_axe.model.structure.describe import describe
from brevitas_axe.proof.certificate import Certificate
from brevitas_axe.run.checks import without_remarks
from brevitas_axe.run.finetune.run import FinetuneResult
from brevitas_axe.run.result import BlocksResult, QuantizeResult
from brevitas_axe.run.saving import huggingface
from brevitas_axe.run.saving.folder import check_place, written

Result = QuantizeResult | FinetuneResult
KINDS: dict[str, type] = {k.__name__: k for k in (QuantizeResult, BlocksResult, FinetuneResult)}
STRUCTURE, TENSORS, RESULT = "structure.json", "model.tensors", "result.json"
PLAN, RECIPE, CERTIFICATE = "plan.json", "recipe.yaml", "certificate.json"
# What of a result is kept in result.json as it is.
KEPT = ("layers", "assumptions", "tried", "exclude", "floats", "history", "best_epoch")


def save(result: Result, folder: str | Path) -> Path:
    """Writes a result so that `load` gives the same integers in another process, and proves them.

    The folder has the model (structure.json, and model.tensors in the format of safetensors), the
    plan, the recipe, the certificate, and a manifest with a SHA-256 digest of each file. It appears
    whole or not at all; what `save` wrote there before is replaced. One sample of the calibration
    data goes along, because a proof runs the model.

    Args:
        result: of `quantize`, `quantize_blocks` or `finetune`.
        folder: new or empty, or one that `save` wrote.

    Returns:
        The folder.

    Raises:
        InvalidOption: not a result, a folder with other files, or a part of the model that cannot
            be written, by its name.
    """
    if type(result) not in KINDS.values():
        raise InvalidOption(
            f"save takes what quantize, quantize_blocks or finetune returned, not "
            f"{type(result).__name__}."
        )
    place = check_place(folder)
    result = replace(result, model=in_memory(result.model))
    exclude = left_out(result)
    example = _smallest(result, exclude)
    structure, tensors = describe(result.model, *example)
    kept = {name: getattr(result, name) for name in KEPT if hasattr(result, name)}
    content: dict[str, Any] = {
        **kept,
        "certified_without": exclude,
        "integers": digests(replace(result, example=example)),
        **huggingface.facts(result.model),
    }
    with written(place, type(result).__name__) as temporary:
        (temporary / STRUCTURE).write_text(json_text(structure))
        (temporary / RESULT).write_text(json_text(content))
        safetensors.torch.save_file(tensors, temporary / TENSORS, {"format": "pt"})
        result.plan.save(temporary / PLAN)
        result.certificate.save(temporary / CERTIFICATE)
        if result.recipe is not None:
            result.recipe.save(temporary / RECIPE)
        huggingface.write_config(result.model, temporary)
    return place


def left_out(result: Result) -> tuple[str, ...]:
    """Names that stay out of the certificate's verdict: excluded, or left in float."""
    return tuple(dict.fromkeys((*result.exclude, *getattr(result, "floats", ()))))


@without_remarks()
def digests(result: Result) -> dict[str, str]:
    """One number for the integers of each planned layer."""
    layers = find_layers(result.model, tile_scales=True)
    args, kwargs = moved(_example(result), input_device(result.model))
    observe_inputs(result.model, layers, args, kwargs)  # some quantizers follow their input
    found = {}
    with evaluating(result.model):
        for name in (n for n in result.plan.layers if not is_product(n)):
            fingerprint = Fingerprint({})
            fingerprint.add(_integers(name, layers[name]))
            found[name] = fingerprint.hexdigest()
    return found


def _integers(name: str, layer: Any) -> Any:
    if getattr(layer.weight_quant, "scale_tile", None) is not None:
        return layer.quant_weight().value.detach()  # its scale has another shape
    return integer_weight(name, layer)[0]


@without_remarks()
def proven(result: Result, exclude: tuple[str, ...], example: Batch) -> Certificate:
    """The certificate of a result's model as it is now."""
    call = moved(example, input_device(result.model))
    return certified(result.model, result.plan, exclude, call)


def differing(one: Certificate, other: Certificate) -> str | None:
    """Name of the first dot product that two certificates tell otherwise; None where none is.

    Only what counts is compared: what is excluded may be listed by one of them alone.
    """
    mine = {entry.name: asdict(replace(entry, assumptions=())) for entry in one.judged}
    others = {entry.name: asdict(replace(entry, assumptions=())) for entry in other.judged}
    return next((n for n in (*mine, *others) if mine.get(n) != others.get(n)), None)


def _smallest(result: Result, exclude: tuple[str, ...]) -> Batch:
    """One sample, where it proves what the whole example does."""
    example = _example(result)
    for candidate in (one_sample(example), example):
        if differing(result.certificate, proven(result, exclude, candidate)) is None:
            return candidate
    raise InvalidOption(
        "the model is no longer what the result's certificate says; give save a result whose model "
        "was not changed since."
    )


def _example(result: Result) -> Batch:
    if result.example is None:
        raise InvalidOption("the result has no example input with which load could prove it.")
    return result.example
