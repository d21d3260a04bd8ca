"""A folder → the result, proven again."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import nn

from brevitas_axe.errors import AxeError, InvalidOption, InvalidState
from brevitas_axe.model.structure.rebuild import rebuild
from brevitas_axe.plan import Plan
from brevitas_axe.proof.certificate import Certificate
from brevitas_axe.recipe import Recipe
from brevitas_axe.run.saving import huggingface
from brevitas_axe.run.saving.folder import found, read_json, read_manifest
from brevitas_axe.run.saving.save import (
    CERTIFICATE,
    KEPT,
    KINDS,
    PLAN,
    RECIPE,
    RESULT,
    STRUCTURE,
    TENSORS,
    Result,
    differing,
    digests,
    proven,
)

Architecture = nn.Module | Callable[[], nn.Module] | str
_TUPLES = ("assumptions", "tried", "exclude", "floats")


def load(folder: str | Path, model: Architecture | None = None) -> Result:
    """Reads what `save` wrote: the same integers, proven again before they are given.

    Nothing in the folder is run: classes and functions are named there, and are those of torch,
    Brevitas and this package. Modules of your own classes come from the model that you give.

    Args:
        folder: that `save` wrote, or a command's output folder with such a folder inside.
        model: the model that was quantized, float or with quantizers, whatever its weights; or a
            function that builds it, or its name "package.module:function". Needed where classes of
            your own are left in the quantized model, which a traced one has not. Models of
            transformers are built from the folder's config.json. A module is copied.

    Returns:
        A result of the kind that was saved. Tensors are on the CPU.

    Raises:
        InvalidState: a file is missing or corrupted, the folder is another's, or its certificate
            does not come out again.
        InvalidOption: the model is needed, or is another one.
    """
    place = found(folder)
    kind = read_manifest(place)["kind"]
    if kind not in KINDS:
        raise InvalidState(f"{place} holds a '{kind}', which this version does not know.")
    content = read_json(place, RESULT)
    structure = read_json(place, STRUCTURE)
    try:
        tensors = safetensors.torch.load_file(place / TENSORS)
    except (OSError, safetensors.SafetensorError) as error:
        raise InvalidState(f"{place / TENSORS} cannot be read: {error}.") from None
    yours = _built(model) if model is not None else huggingface.built(place, content)
    network, args, kwargs = rebuild(structure, tensors, yours)
    try:
        result = _result(KINDS[kind], place, content, network, (args, kwargs))
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidState(f"{place / RESULT} is corrupted ({error!r}); save again.") from None
    _check(result, place, content)
    return result


def _built(model: Architecture) -> nn.Module:
    """The user's own model, which may be changed."""
    if isinstance(model, nn.Module):
        return copy.deepcopy(model)
    if isinstance(model, str):
        module, _, name = model.partition(":")
        try:
            model = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise InvalidOption(
                f"'{model}' is not of the form package.module:function: {error}."
            ) from None
    built: Any = model() if callable(model) else model
    if not isinstance(built, nn.Module):
        raise InvalidOption(
            "load takes a torch.nn.Module, or a function that returns one, not "
            f"{type(built).__name__}."
        )
    return built


def _result(kind: type, place: Path, content: dict, network: nn.Module, example: Any) -> Result:
    """The result of that kind, with the certificate that was saved."""
    recipe = Recipe.load(place / RECIPE) if (place / RECIPE).is_file() else None
    parts = {name: content[name] for name in KEPT if name in content}
    parts |= {name: tuple(parts[name]) for name in _TUPLES if name in parts}
    given = {
        **parts,
        "model": network,
        "plan": Plan.load(place / PLAN),
        "recipe": recipe,
        "certificate": Certificate.load(place / CERTIFICATE),
        "example": example,
    }
    return kind(**{f.name: given[f.name] for f in fields(kind) if f.name in given})


def _check(result: Result, place: Path, content: dict) -> None:
    """The model has the integers and the proof that it had when it was saved."""
    if digests(result) != content["integers"]:
        raise InvalidState(
            f"the model of {place} does not have the integers that were saved; load it with the "
            "versions that its manifest.json names."
        )
    assert result.example is not None
    exclude = tuple(content["certified_without"])
    try:
        other = differing(result.certificate, proven(result, exclude, result.example))
    except AxeError as error:
        raise InvalidState(f"the model of {place} cannot be proven again: {error}") from error
    if other is not None:
        raise InvalidState(
            f"the proof of layer '{other}' in {place} does not come out again; load it with the "
            "versions that its manifest.json names."
        )
