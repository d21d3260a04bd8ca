"""A transformer, block after block: quantize, solve under the accumulator budget, prove."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from brevitas_axe.errors import InvalidOption, NotEnoughMemory
from brevitas_axe.methods.inputs.protocol import input_quantizer
from brevitas_axe.model.attention_calls import named_products
from brevitas_axe.model.attention_products import products_plan, with_products
from brevitas_axe.model.experts import experts_to_linears, fused_experts
from brevitas_axe.model.layers import find_layers, is_inside
from brevitas_axe.model.offload import bring_in, send_out
from brevitas_axe.model.plain import check_open, check_plainly_written
from brevitas_axe.model.prepare import Batch, as_batches, has_quantizers, one_sample, to_brevitas
from brevitas_axe.model.routing import calibrating_experts, called, reaching_experts, routers_within
from brevitas_axe.model.running import check_runs, evaluating, ran_out_of_memory
from brevitas_axe.model.stack import (
    Alone,
    Call,
    find_blocks,
    first_sample,
    left_in_float,
    record_calls,
    restored_on_error,
    with_hidden,
)
from brevitas_axe.model.transformer_layers import check_solved_in_blocks
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.proof.certificate import Certificate, certify
from brevitas_axe.recipe import Recipe, Run
from brevitas_axe.run.block_attention import float_products
from brevitas_axe.run.block_distillation import check_held_out, distil
from brevitas_axe.run.block_layers import (
    BlockLayers,
    check_weight_bits,
    fit_to_widths,
    solving,
    transformed,
    weight_quantizer,
)
from brevitas_axe.run.block_plan import block_plan, products_outside
from brevitas_axe.run.checks import check_disk, check_widths, without_remarks
from brevitas_axe.run.logs import solved_layers
from brevitas_axe.run.outside import layers_outside, solve_outside
from brevitas_axe.run.request import Keywords, Request, requested
from brevitas_axe.run.result import BlocksResult, QuantizeResult
from brevitas_axe.run.saving.huggingface import refuse_save_pretrained
from brevitas_axe.run.solve.reconstruct import after_the_solve, check_of_blocks
from brevitas_axe.run.splitting import split_model
from brevitas_axe.run.widths import INPUT_BITS, WEIGHT_BITS, best_widths

if TYPE_CHECKING:
    from typing_extensions import Unpack


def quantize_blocks(
    model: nn.Module,
    calibration: Iterable[Any],
    plan: Plan | LayerPrecision | None = None,
    recipe: Recipe | str | Path | None = None,
    *,
    exclude: Iterable[str] = (),
    stack: str | None = None,
    run: Run = Run(),
    **keywords: Unpack[Keywords],
) -> BlocksResult:
    """Quantizes the linear layers of a transformer's blocks so that no accumulator can overflow.

    One block after the other, so that only one block's calibration activations are alive. The
    integers are those of the whole model solved at once. Embeddings, norms, the head and,
    unless the recipe quantizes them, attention products stay in float.

    Args:
        model: a float model with one stack of blocks (Llama, GPT-2, OPT, BERT, ViT and
            similar ones) that passes hidden states unchanged from block to block. Changed in place,
            since a copy would double the memory; unchanged where an option is refused. Only a
            recipe's split makes a copy, and widths="auto" solves several before the model itself.
        calibration: batches, see `brevitas_axe.model.prepare.as_batches`.
        plan: widths by layer name, or one precision for all layers of the blocks. Layers that a
            plan does not name stay in float; bits that it does not give are those of the keywords.
        recipe: how it is done; a `Recipe`, a preset ("fpga", "transformer", "fast") or a YAML file.
        exclude: names of layers in the blocks to leave in float; all layers of a block leave the
            whole block.
        stack: module name of the stack, where the model has several.
        run: where progress is kept, to which folder solved blocks move (what an earlier run left
            there is replaced, and the model still runs), and how many tasks run at a time.
        keywords: the short way to all of these, such as `accumulator_bit_width=16`; see
            `brevitas_axe.run.request.Keywords`. They change the recipe and the run given.

    Raises:
        InvalidOption, UnsupportedLayer: no stack of blocks, or one of an unknown kind.
        AccumulatorTooNarrow, NonFiniteValues, InvalidState, NotEnoughMemory, NotEnoughDisk: each
            names the layer or the way out.
    """
    if not isinstance(model, nn.Module):
        raise InvalidOption(f"quantize_blocks takes a torch.nn.Module, not {type(model).__name__}.")
    check_open(model)
    if has_quantizers(model):
        raise InvalidOption("the model has Brevitas layers already; use brevitas_axe.quantize.")
    check_plainly_written(model)
    check_solved_in_blocks(model)
    request = requested(plan, recipe, exclude, run, keywords)
    request.check_formats()
    batches = as_batches(calibration, model)
    restore = experts_to_linears(model, request.exclude)
    try:
        return _with_widths(model, batches, request, stack)
    except BaseException:
        if not has_quantizers(model):
            restore()
        raise


def _with_widths(
    model: nn.Module, batches: Sequence[Batch], request: Request, stack: str | None
) -> BlocksResult:
    """Solves the blocks in place, by widths that are given or chosen first."""
    if request.recipe.widths is None:
        return solve_blocks(model, batches, request, stack)
    on_copies = replace(request, run=replace(request.run, offload=None))
    chosen = best_block_widths(model, batches, on_copies, stack)
    recipe = replace(request.recipe, widths=None, budget={})
    planned = replace(request, plan=chosen.plan, recipe=recipe, validate=None)
    result = solve_blocks(model, batches, planned, stack)
    return replace(result, tried=chosen.tried, plans=chosen.plans, shares=chosen.shares)


def solve_blocks(
    model: nn.Module, batches: Sequence[Batch], request: Request, stack: str | None = None
) -> BlocksResult:
    """Solves the blocks of a float model in place, as `quantize_blocks` says."""
    request.check_formats()
    planned = request.plan.layers.values() if request.plan is not None else ()
    check_weight_bits([request.widths, *planned])
    check_held_out(request.recipe.distill, batches)
    check_of_blocks(*request.recipe.methods("solver"))
    request = request.settled(plain=True)
    check_disk(model, request.run)
    blocks = find_blocks(model, stack)
    kept = (*routers_within(model, blocks), *fused_experts(model))
    if request.recipe.split is not None:
        outside = [n for n in left_in_float(model) if not is_inside(n, tuple(blocks))]
        outside += [name for name in left_in_float(model) if name in kept]
        model, request = split_model(model, batches, request, tuple(outside))
        blocks = find_blocks(model, stack)
    around = layers_outside(model, blocks, request.recipe)
    plan = block_plan(model, blocks, request, kept, around)
    fit = request.recipe.ranges != Recipe.CALIBRATED
    tile = request.widths.tile if request.plan is None else None
    layers = BlockLayers(request.recipe, plan, tile, fit, named_products(request.plan))
    bar = tqdm(total=len(plan.layers), desc="layers", disable=not request.run.progress)
    with torch.no_grad(), evaluating(model), bar, without_remarks():
        with _memory_advice("the float model"):
            check_runs(model, batches[0])
            outside = products_outside(model, blocks, batches[0])
            hidden, calls = record_calls(model, blocks, batches)
        walk = _Walk(hidden, list(hidden), layers, request, bar, count())
        done: list[_Solved] = []
        for index, (name, block) in enumerate(blocks.items()):
            with _memory_advice(f"block '{name}'"):
                bring_in(block)
                alone = Alone(name, block)
                if plan.within(name).layers:
                    done.append(walk.through(alone, calls[index], index))
                else:
                    done.append(walk.past(alone, calls[index]))
                calls[index] = []
                if request.run.offload is not None:
                    send_out(block, Path(request.run.offload) / f"block-{index:04d}")
        done += walk.around(model, batches, around)
    assumptions = tuple(dict.fromkeys(a for solved in done for a in solved.assumptions))
    certificate = _joined([solved.certificate for solved in done], type(model).__name__)
    certificate = certificate.assuming(assumptions)
    return BlocksResult(
        refuse_save_pretrained(model),
        Plan({name: p for solved in done for name, p in solved.plan.layers.items()}),
        certificate,
        [entry for solved in done for entry in solved.log],
        request.recipe,
        assumptions,
        example=batches[0],
        learned=tuple(entry for solved in done for entry in solved.learned),
        floats=tuple(dict.fromkeys((*left_in_float(model), *certificate.excluded, *outside))),
    )


@without_remarks()
def best_block_widths(
    model: nn.Module, batches: Sequence[Batch], request: Request, stack: str | None = None
) -> QuantizeResult:
    """Solves the blocks of copies of a float model by several plans, and gives the best.

    Harm is estimated with static inputs, whatever the recipe's, for a scale of the run time has no
    integers to look at; what is compared in the end are solved models.

    Args:
        model: not modified.
        batches: of calibration.
        request: asks for widths to be chosen.
        stack: see `quantize`.
    """
    request = request.settled(plain=True)
    recipe = request.recipe
    blocks = tuple(find_blocks(model, stack))
    around = layers_outside(model, dict.fromkeys(blocks, model), recipe)
    outside = [n for n in left_in_float(model) if not is_inside(n, (*blocks, *around))]
    scored = copy.deepcopy(model).eval()
    exclude = (*request.exclude, *outside, *routers_within(model, blocks))
    attention = {}
    with torch.no_grad():
        transformed(recipe, scored, batches, request.widths, exclude)
        if recipe.attention == "quantized":
            attention = float_products(scored, one_sample(batches[0]), blocks, exclude)
    [static] = Recipe().methods("inputs")
    inputs = input_quantizer(static, recipe.symmetric)
    weights = weight_quantizer(recipe)
    with reaching_experts(scored, batches):
        scored = to_brevitas(scored, batches, weight_quant=weights, input_quant=inputs)
    fit_to_widths(recipe, scored, batches, map(LayerPrecision, WEIGHT_BITS, INPUT_BITS))
    exclude = (*exclude, *recipe.excluded(find_layers(scored, exclude)))

    def solve(planned: Request) -> BlocksResult:
        return solve_blocks(copy.deepcopy(model), batches, planned, stack)

    return best_widths(scored, batches, request, solve, exclude, attention=attention)


class _Solved(NamedTuple):
    """The results of one finished block."""

    certificate: Certificate
    plan: Plan
    log: list[dict]
    assumptions: tuple[str, ...]
    learned: tuple[dict, ...] = ()


@dataclass
class _Walk:
    """Hidden states in front of the next block, one tensor per batch.

    Attributes:
        quantized: outputs of the quantized blocks so far.
        real: outputs of the same blocks in float.
        layers: how the layers of the blocks are quantized.
        request: what the caller asked for.
        bar, numbers: progress bar, one step per layer, and the numbers of the layers.
    """

    quantized: list[Tensor]
    real: list[Tensor]
    layers: BlockLayers
    request: Request
    bar: tqdm
    numbers: Iterator[int]

    def through(self, alone: Alone, calls: Sequence[Call], index: int) -> _Solved:
        """Quantizes, solves and proves one block; the hidden states become its outputs."""
        pairs = self._pairs(calls)
        with calibrating_experts(
            alone,
            lambda: [alone(*pair) for pair in pairs],
            lambda: [alone(quantized, quantized) for quantized, _ in pairs],
        ) as experts:
            with ExitStack() as untouched:
                untouched.enter_context(restored_on_error(alone))
                outputs, plan, assumptions = self.layers.apply(alone, pairs)
                [solver] = self.request.recipe.methods("solver")
                learn = after_the_solve(alone, solver)
                with solving(alone, plan, self.request, f"block-{index:04d}") as axe:
                    axe.experts = experts
                    for pair in pairs:
                        axe.model(*pair)
                    check_widths(axe)
                    for entry in solved_layers(axe, self.request.run.log, self.numbers):
                        untouched.close()  # a solved layer: no option was refused
                        self.bar.set_postfix_str(entry["name"])
                        self.bar.update()
                    self.quantized = list(axe.outputs())
            learned = learn([(pair, {}) for pair in pairs], axe.layers)[:-1]  # not of the whole
            if self.request.recipe.distill:
                steps = self.request.recipe.distill
                learned.append(distil(alone, pairs, outputs, axe.layers, steps))
            if learned:
                self.quantized = [alone(*pair) for pair in pairs]
        with called(alone, experts.experts):
            certificate = _proof(alone, pairs[0], plan)
        self.real = outputs
        plan = self._with_named_products(plan, alone)
        log = [{"block": index, **e, **axe.experts.facts_of(e["name"])} for e in axe.log]
        log = _with_proofs(log, certificate, plan)
        return _Solved(certificate, plan, log, assumptions, tuple(learned))

    def _with_named_products(self, plan: Plan, alone: Alone) -> Plan:
        """A plan of a block's layers with those attention products that the request names."""
        named = self.layers.products.layers
        mine = {n: p for n, p in products_plan(alone).layers.items() if n in named}
        return Plan({**plan.layers, **mine})

    def past(self, alone: Alone, calls: Sequence[Call]) -> _Solved:
        """Runs a block that stays in float; the hidden states become its outputs."""
        pairs = self._pairs(calls)
        self.quantized = [alone(quantized, quantized) for quantized, _ in pairs]
        self.real = [alone(real, real) for _, real in pairs]
        return _Solved(_proof(alone, pairs[0], Plan()), Plan(), [], ())

    def around(
        self, model: nn.Module, batches: Sequence[Batch], names: Sequence[str]
    ) -> list[_Solved]:
        """Quantizes, solves and proves the layers outside the blocks, of the whole model."""
        plan = Plan({n: p for n, p in self.layers.plan.layers.items() if n in names})
        if not plan.layers:
            return []
        log = []
        for entry in solve_outside(model, batches, self.request, plan, self.numbers):
            self.bar.set_postfix_str(entry["name"])
            self.bar.update()
            log.append(entry)
        args, kwargs = batches[0]
        whole = certify(model, plan=plan, args=args, kwargs=kwargs)
        mine = tuple(entry for entry in whole.entries if entry.name in plan.layers)
        certificate = replace(whole, entries=mine, excluded=(), sums=())
        return [_Solved(certificate, plan, _with_proofs(log, certificate, plan), ())]

    def _pairs(self, calls: Sequence[Call]) -> list[tuple[Call, Call]]:
        """Inputs of the next block, quantized and float, batch by batch."""
        streams = zip(calls, self.quantized, self.real, strict=True)
        return [(with_hidden(call, q), with_hidden(call, r)) for call, q, r in streams]


def _proof(alone: Alone, pair: tuple[Call, Call], plan: Plan) -> Certificate:
    """The certificate of one block, without the layers that stay in float."""
    proven = with_products(plan, alone)
    # A proof needs no data, only a forward through every layer.
    try:
        certificate = certify(alone, plan=proven, args=tuple(map(first_sample, pair)))
    except InvalidOption:  # a tensor has rows that are not samples: one for every head and sample
        certificate = certify(alone, plan=proven, args=pair)
    names = (entry.name for entry in certificate.entries)
    return replace(certificate, excluded=tuple(name for name in names if name not in proven.layers))


def _with_proofs(log: list[dict], certificate: Certificate, plan: Plan) -> list[dict]:
    """Log entries with P_I as requested and P_O as proven."""
    proofs = {entry.name: entry for entry in certificate.entries}
    return [
        {
            **entry,
            "accumulator": plan[entry["name"]].accumulator,
            "tile": proofs[entry["name"]].tile_size,
            "inner_bits": proofs[entry["name"]].width,
            "outer_bits": proofs[entry["name"]].outer_width,
            "outer_bound": proofs[entry["name"]].outer_bound,
        }
        for entry in log
    ]


def _joined(parts: Sequence[Certificate], subject: str) -> Certificate:
    """One certificate for all blocks."""
    return replace(
        parts[0],
        entries=tuple(entry for part in parts for entry in part.entries),
        excluded=tuple(name for part in parts for name in part.excluded),
        subject=subject,
        sums=tuple(entry for part in parts for entry in part.sums),
        assumptions=tuple(dict.fromkeys(said for part in parts for said in part.assumptions)),
    )


@contextmanager
def _memory_advice(where: str) -> Iterator[None]:
    """Turns a lack of memory into an error that says what to do."""
    try:
        yield
    except (MemoryError, RuntimeError, NotEnoughMemory) as error:
        if not ran_out_of_memory(error):
            raise
        raise NotEnoughMemory(
            f"memory ran out in {where}; calibrate with fewer or shorter sequences, in smaller "
            "batches, load the model with a device_map that leaves the blocks on the disk, pass "
            "offload=... so that solved blocks go there too, and state=... so that they are kept."
        ) from error
