"""A whole model at once: prepare, calibrate, solve under the accumulator budget, prove."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import count

import torch
from torch import nn

from brevitas_axe.errors import InvalidOption, UnsupportedLayer
from brevitas_axe.formats import Format
from brevitas_axe.methods.inputs.protocol import input_quantizer
from brevitas_axe.model.apply.activations import code_bits, set_input_bits
from brevitas_axe.model.apply.minifloats import weight_format
from brevitas_axe.model.attention_products import certified
from brevitas_axe.model.constant_rows import ConstantRows
from brevitas_axe.model.experts import experts_to_linears
from brevitas_axe.model.layers import Layer, find_layers, unroll_weight
from brevitas_axe.model.own_quantizers import completed
from brevitas_axe.model.prepare import Batch, has_quantizers, to_brevitas
from brevitas_axe.model.running import check_all_called, check_runs, copied
from brevitas_axe.model.trained_function import solved_and_followed, trained_function
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.recipe import Recipe
from brevitas_axe.run.block_layers import (
    check_weight_bits,
    fit_formats,
    fit_to_widths,
    transformed,
    weight_quantizer,
)
from brevitas_axe.run.checks import check_disk, check_memory, check_widths, without_remarks
from brevitas_axe.run.logs import solved_layers
from brevitas_axe.run.request import Request, layer_widths
from brevitas_axe.run.result import QuantizeResult
from brevitas_axe.run.solve import axe_mode
from brevitas_axe.run.solve.reconstruct import after_the_solve
from brevitas_axe.run.splitting import split_model
from brevitas_axe.run.widths import INPUT_BITS, REFERENCE, WEIGHT_BITS, best_widths

# Recipe fields that do not apply to a model with quantizers of its own.
_OF_FLOAT_MODELS = ("transforms", "split", "inputs", "symmetric", "weights", "power_of_two")


@without_remarks()
def quantize_whole(model: nn.Module, batches: Sequence[Batch], request: Request) -> QuantizeResult:
    """Quantizes a copy of a model, as `brevitas_axe.quantize` says."""
    if request.run.offload is not None:
        raise InvalidOption(
            "offload moves solved blocks, but this model is solved as a whole; leave it out."
        )
    for field in ("attention", "outside"):
        if getattr(request.recipe, field) != getattr(Recipe, field):
            raise InvalidOption(
                f"the recipe's '{field}' is for transformers that are solved block by block, and "
                f"this model is solved as a whole; set {field} to float."
            )
    request.check_learning()
    plain = not has_quantizers(model)
    if plain and request.recipe.function == "quantized":
        raise InvalidOption(
            "the model has no quantizers to follow; leave the recipe's function out."
        )
    if request.recipe.distill:
        raise InvalidOption(
            "the recipe's distill trains block after block, and this model is solved as a whole; "
            "leave it out, and fine-tune the result."
        )
    request = request.settled(plain)
    if plain:  # its quantizers are made with these widths
        request = replace(request, told=LayerPrecision())
    if not plain:
        _check_own_quantizers(request.recipe)
    quantized = copy.deepcopy(model).eval()
    if plain:
        experts_to_linears(quantized, request.exclude)
    _check_type(quantized)
    check_runs(quantized, batches[0])
    check_disk(quantized, request.run)
    reference = None
    if not plain:
        quantized = completed(quantized, batches, request.exclude)
        function = request.recipe.function or trained_function(quantized, batches)
        quantized, reference = solved_and_followed(quantized, function, request.exclude)
        request = replace(request, recipe=replace(request.recipe, function=function))
    assumptions: tuple[str, ...] = ()
    if request.recipe.widths is not None:
        # Another width than that of the model's own input, to tell which layers read it.
        request = replace(request, widths=replace(request.widths, input=REFERENCE.input))
    if plain:
        quantized, request = split_model(quantized, batches, request)
        quantized, assumptions = _with_quantizers(quantized, batches, request)
    if request.recipe.widths is None:
        return _solved(quantized, batches, request, assumptions, reference)
    # Ranges of all widths, which follow the bits of every plan.
    fit_to_widths(request.recipe, quantized, batches, map(LayerPrecision, WEIGHT_BITS, INPUT_BITS))
    layers = find_layers(quantized, request.exclude, tile_scales=True)

    def solve(planned: Request) -> QuantizeResult:
        return _solved(copied(quantized), batches, planned, assumptions, reference, fitted=True)

    exclude = (*request.exclude, *request.recipe.excluded(layers))
    usual = request.widths.input_bits if plain else None
    return best_widths(quantized, batches, request, solve, exclude, usual, reference)


def _solved(
    quantized: nn.Module,
    batches: Sequence[Batch],
    request: Request,
    assumptions: tuple[str, ...],
    reference: nn.Module | None = None,
    fitted: bool = False,
) -> QuantizeResult:
    """A calibrated model solved in place, and proven.

    Args:
        quantized: has quantizers.
        batches: of calibration.
        request: has the widths; with nothing left open but ranges that are fitted already.
        assumptions: of the rewrites that made it.
        reference: the model to follow; None for the model without its quantizers.
        fitted: its ranges follow its bits.
    """
    recipe, run = request.recipe, request.run
    layers = find_layers(quantized, request.exclude, tile_scales=True)
    exclude = (*request.exclude, *recipe.excluded(layers))
    plan = _plan(layers, request)
    _follow_inputs(quantized, plan, batches, exclude, request, fitted)
    check_all_called(quantized, find_layers(quantized, exclude, tile_scales=True), batches)
    uniform = request.widths if plan is None else LayerPrecision()
    [solver] = recipe.methods("solver")
    learn = after_the_solve(quantized, solver, reference)
    with (
        torch.no_grad(),
        axe_mode(
            quantized,
            accumulator_bit_width=uniform.accumulator,
            plan=plan,
            accumulator_tile_size=uniform.tile,
            solver=recipe.solver,
            act_order=recipe.act_order,
            quality=recipe.quality,
            exclude=exclude,
            state=run.state,
            workers=run.workers,
            reference=reference,
            progress=run.progress,
        ) as axe,
    ):
        for args, kwargs in batches:
            axe.model(*args, **kwargs)
        check_widths(axe)
        check_memory(axe.layers)
        for _ in solved_layers(axe, run.log, count()):
            pass
    learned = learn(batches, axe.layers)
    final = _final_plan(axe)
    certificate = certified(quantized, final, exclude, batches[0]).assuming(assumptions)
    result = QuantizeResult(quantized, final, certificate, axe.log, recipe, assumptions)
    return replace(result, exclude=exclude, example=batches[0], learned=tuple(learned))


def _check_type(model: nn.Module) -> None:
    """Refuses numbers too coarse for scales: the integers in them could not be told apart."""
    for name, parameter in model.named_parameters():
        if parameter.dtype == torch.bfloat16:
            raise UnsupportedLayer(
                f"parameter '{name}' is in bfloat16, in which integers times a scale are not "
                "exact; convert model and batches first, by model.float() and batch.float()."
            )


def _check_own_quantizers(recipe: Recipe) -> None:
    """Raises InvalidOption where a recipe sets what a Brevitas model decides itself."""
    usual = Recipe()
    for field in fields(Recipe):
        if field.name in _OF_FLOAT_MODELS and getattr(recipe, field.name) != getattr(
            usual, field.name
        ):
            raise InvalidOption(
                f"the model has quantizers of its own, so the recipe's '{field.name}' cannot be "
                "followed; give the float model, or leave it out."
            )


def _with_quantizers(
    model: nn.Module, batches: Sequence[Batch], request: Request
) -> tuple[nn.Module, tuple[str, ...]]:
    """A float model with transforms and calibrated quantizers, and what the transforms assume."""
    recipe, widths = request.recipe, request.widths
    if recipe.weights == "tile":
        raise InvalidOption(
            "scales per tile are for the linear layers of a stack of blocks, and this model has "
            "none; set the recipe's weights to channel or tensor."
        )
    check_weight_bits([widths])
    assumptions: tuple[str, ...] = ()
    if recipe.transforms:
        with torch.no_grad():
            assumptions = transformed(recipe, model, batches, widths, request.exclude)
    [inputs] = recipe.methods("inputs")
    usual = Recipe()
    per_layer = (recipe.inputs, recipe.symmetric) != (usual.inputs, usual.symmetric)
    # One quantizer in front of a split would see the channels of all branches; and in front of a
    # layer that leaves tokens out, these.
    leaves_out = any(isinstance(module, ConstantRows) for module in model.modules())
    per_layer = per_layer or recipe.split is not None or leaves_out
    quantized = to_brevitas(
        model,
        batches,
        weight_bit_width=widths.weight_bits or 4,
        input_bit_width=widths.input_bits or 8,
        weight_quant=weight_quantizer(recipe),
        input_quant=input_quantizer(inputs, recipe.symmetric) if per_layer else None,
        progress=request.run.progress,
    )
    return quantized, assumptions


def _plan(layers: dict[str, Layer], request: Request) -> Plan | None:
    """Widths by layer; None where all layers have the same."""
    told = request.told
    if request.plan is not None:
        return _filled(request.plan, told)
    uniform = {"weight": request.widths.weight, "input": request.widths.input}
    formats = {key: value for key, value in uniform.items() if isinstance(value, str)}
    said = request.recipe.rules or told.weight or told.input or request.of_branches
    if not said and not formats:
        return None
    columns = {name: unroll_weight(m, m.weight).shape[2] for name, m in layers.items()}
    # Bits that nothing sets stay what they are.
    bits: dict[str, Format | None] = {"weight": told.weight, "input": told.input}
    widths = replace(request.widths, **{**bits, **formats})  # type: ignore[arg-type]
    return layer_widths(layers, columns, request.recipe, widths, request.of_branches)


def _filled(plan: Plan, told: LayerPrecision) -> Plan:
    """A plan with bits where it leaves them open."""
    return Plan(
        {
            name: replace(p, weight=p.weight or told.weight, input=p.input or told.input)
            for name, p in plan.layers.items()
        }
    )


def _follow_inputs(
    model: nn.Module,
    plan: Plan | None,
    batches: Sequence[Batch],
    exclude: tuple[str, ...],
    request: Request,
    fitted: bool,
) -> None:
    """Fits ranges by the recipe's method, and sets planned input bits."""
    widths = [request.widths] if plan is None else [*plan.layers.values()]
    planned = [] if plan is None else [p for p in widths if p.input is not None]
    if not fitted:
        fit_to_widths(request.recipe, model, batches, widths if planned else [request.widths])
    if plan is not None and planned:
        set_input_bits(model, plan, *batches[0], exclude)
        if any(isinstance(p.input, str) for p in planned):
            fit_formats(request.recipe, model, batches)


def _final_plan(axe: axe_mode) -> Plan:
    """The plan with the bits, or the formats, that the quantizers really have."""
    final: dict[str, LayerPrecision] = {}
    for name, precision in axe.plan.layers.items():
        proxy = axe.layers[name].weight_quant
        weights = weight_format(axe.layers[name])
        if weights is None:
            weights = int(proxy.tensor_quant.msb_clamp_bit_width_impl())
        input_range = proxy.input_range
        inputs: Format | None = code_bits(axe.layers[name])
        if isinstance(precision.input, str):
            inputs = precision.input
        elif inputs is None and input_range is not None:
            inputs = input_range.bit_width
        final[name] = replace(precision, weight=weights, input=inputs)
    return Plan(final)
