"""A transformer, block after block: quantize, solve under the accumulator budget, prove."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from brevitas_axe.errors import InvalidOption, NotEnoughMemory
from brevitas_axe.methods.solvers.problem import Quality
from brevitas_axe.model.offload import bring_in, check_offload, send_out
from brevitas_axe.model.prepare import as_batches, has_quantizers
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
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.proof.certificate import Certificate, certify
from brevitas_axe.registry import method
from brevitas_axe.run.block_layers import BlockLayers
from brevitas_axe.run.quantize import QuantizeResult, check_runs, check_widths, ran_out_of_memory
from brevitas_axe.run.solve import axe_mode
from brevitas_axe.run.solve.mode import check_quality
from brevitas_axe.run.solve.state import SavedLayers


@dataclass(frozen=True, repr=False)
class BlocksResult(QuantizeResult):
    """What `quantize_blocks` returns: `layers` says block, P_I and P_O of every layer as well.

    Attributes:
        floats: layers and products that stay in float, and out of the certificate's verdict.
    """

    floats: tuple[str, ...] = ()


def quantize_blocks(
    model: nn.Module,
    calibration: Iterable[Any],
    *,
    accumulator_bit_width: int | None = None,
    tile_size: int | None = None,
    weight_bit_width: int = 4,
    input_bit_width: int = 8,
    activations: str = "static",
    symmetric: bool = True,
    smooth: float | None = None,
    rotate: bool = False,
    tile_scales: bool = False,
    algorithm: str = "qronos",
    quality: Quality = "best",
    act_order: bool | None = None,
    exclude: Sequence[str] = (),
    stack: str | None = None,
    state: str | Path | None = None,
    offload: str | Path | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> BlocksResult:
    """Quantizes the linear layers of a transformer's blocks so that no accumulator can overflow.

    One block after the other, so that only one block's calibration activations are alive. The
    integers are those of the whole model solved at once. Embeddings, norms, attention products and
    the head stay in float.

    Args:
        model: a float model with one stack of blocks (Llama, GPT-2, OPT, BERT, ViT and their
            kin) that hands hidden states from block to block as they are. Changed in place, for a
            copy would double the memory; as it was where an option is refused.
        calibration: batches, see `brevitas_axe.model.prepare.as_batches`.
        accumulator_bit_width: P of every (inner) accumulator; None leaves them unconstrained.
        tile_size: inputs per inner accumulator, None for whole dot products.
        weight_bit_width: bits of the weights, which have one scale per output.
        input_bit_width: bits of the layers' inputs.
        activations: "static" calibrates one scale per tensor; "dynamic" finds it at run time,
            "per_token" for every token.
        symmetric: signed inputs without a zero point; else unsigned ones with.
        smooth: strength of SmoothQuant (arXiv 2211.10438), 0.5 as published; None for none.
        rotate: rotate every layer's inputs by a Hadamard matrix, where Brevitas has one.
        tile_scales: one weight scale per output and tile, instead of per output. The results of
            the inner accumulators are then scaled before they are added, so there is no outer
            integer accumulator to prove.
        algorithm: "gpfq", "gptq" or "qronos".
        quality: "fast" (as published) or "best".
        act_order: column order, see `brevitas_axe.run.solve.axe_mode`.
        exclude: names of layers in the blocks to leave in float; all layers of a block leave the
            whole block.
        stack: module name of the stack, where the model has several.
        state: folder for progress; a killed run continues from it to the same integers.
        offload: folder to which solved blocks move, by accelerate; load the model with its
            `device_map` to keep the others on the disk until their turn. The model still runs.
            What an earlier run left in the folder is replaced.
        workers: solve a layer's rows in so many tasks at a time, through the joblib backend that
            `joblib.parallel_config` chose (processes, Dask, Ray); None for threads of torch.
        progress: show a progress bar with the time left.

    Raises:
        InvalidOption, UnsupportedLayer: no stack of blocks, or one of an unknown kind.
        AccumulatorTooNarrow, NonFiniteValues, InvalidState, NotEnoughMemory: each names the layer
            or the way out.
    """
    if not isinstance(model, nn.Module):
        raise InvalidOption(f"quantize_blocks takes a torch.nn.Module, not {type(model).__name__}.")
    if has_quantizers(model):
        raise InvalidOption("the model has Brevitas layers already; use brevitas_axe.quantize.")
    exclude = (exclude,) if isinstance(exclude, str) else tuple(exclude)
    if tile_scales and tile_size is None:
        raise InvalidOption("tile_scales needs the size of the tiles: tile_size=64, say.")
    # Each refuses what it could not use, while the model is as it was.
    LayerPrecision(weight_bit_width, input_bit_width, accumulator_bit_width, tile_size)
    method("solvers", algorithm)
    check_quality(quality)
    if state is not None:
        SavedLayers(state)
    if offload is not None:
        check_offload(Path(offload))
    transforms = [method("transforms", "rotate")] if rotate else []
    if smooth is not None:
        transforms.append(method("transforms", f"smooth:strength={smooth}"))
    layers_of = BlockLayers(
        weight_bit_width,
        input_bit_width,
        method("inputs", activations),
        symmetric,
        tuple(transforms),
        exclude,
        tile_size if tile_scales else None,
    )
    batches = as_batches(calibration)
    blocks = find_blocks(model, stack)
    layers = [n for n in left_in_float(model) if any(n.startswith(f"{b}.") for b in blocks)]
    unknown = set(exclude) - set(layers)
    if unknown:
        raise InvalidOption(
            f"the excluded layer '{sorted(unknown)[0]}' is not in a block; they hold: "
            f"{', '.join(layers)}."
        )
    solved = [name for name in layers if name not in exclude]
    if not solved:
        raise InvalidOption("every layer of the blocks is excluded; exclude fewer of them.")
    done: list[tuple[Certificate, Plan, list[dict]]] = []
    bar = tqdm(total=len(solved), desc="layers", disable=not progress)
    with torch.no_grad(), _evaluating(model), bar, _without_remarks():
        with _memory_advice("the float model"):
            check_runs(model, batches[0])
            hidden, calls = record_calls(model, blocks, batches)
        walk = _Walk(hidden, list(hidden))
        for index, (name, block) in enumerate(blocks.items()):
            solver = {
                "accumulator_bit_width": accumulator_bit_width,
                "accumulator_tile_size": tile_size,
                "solver": algorithm,
                "quality": quality,
                "act_order": act_order,
                "workers": workers,
                "state": None if state is None else Path(state) / f"block-{index:04d}",
            }
            with _memory_advice(f"block '{name}'"):
                bring_in(block)
                alone = Alone(name, block)
                if any(layer.startswith(f"{name}.") for layer in solved):
                    done.append(walk.through(alone, calls[index], layers_of, solver, bar))
                else:
                    done.append(walk.past(alone, calls[index]))
                calls[index] = []
                if offload is not None:
                    send_out(block, Path(offload) / f"block-{index:04d}")
    certificate = _joined([part for part, _, _ in done], type(model).__name__)
    log = [{"block": i, **entry} for i, (_, _, log) in enumerate(done) for entry in log]
    plan = Plan({name: width for _, part, _ in done for name, width in part.layers.items()})
    floats = dict.fromkeys((*left_in_float(model), *certificate.excluded))
    return BlocksResult(model, plan, certificate, log, tuple(floats))


@dataclass
class _Walk:
    """Hidden states in front of the next block, one tensor per batch.

    Attributes:
        quantized: behind the quantized blocks.
        real: behind the same blocks in float.
    """

    quantized: list[Tensor]
    real: list[Tensor]

    def through(
        self, alone: Alone, calls: Sequence[Call], layers: BlockLayers, solver: dict, bar: tqdm
    ) -> tuple[Certificate, Plan, list[dict]]:
        """Quantizes, solves and proves one block, and moves on behind it."""
        pairs = self._pairs(calls)
        with ExitStack() as untouched:
            untouched.enter_context(restored_on_error(alone))
            outputs = layers.apply(alone, pairs)
            with axe_mode(alone, **solver) as axe:
                for pair in pairs:
                    axe.model(*pair)
                check_widths(axe)
                more = True
                while more:
                    more = axe.update()
                    untouched.close()  # a solved layer: no option was refused
                    bar.set_postfix_str(axe.log[-1]["name"] if axe.log else "")
                    bar.update()
                self.quantized = list(axe.outputs())
        widths = {"weight": layers.weight_bit_width, "input": layers.input_bit_width}
        plan = Plan({name: replace(p, **widths) for name, p in axe.plan.layers.items()})
        certificate = _proof(alone, pairs[0], plan)
        proofs = {entry.name: entry for entry in certificate.entries}
        self.real = outputs
        return certificate, plan, [{**e, **_widths(proofs, plan, e["name"])} for e in axe.log]

    def past(self, alone: Alone, calls: Sequence[Call]) -> tuple[Certificate, Plan, list[dict]]:
        """Moves on behind a block that stays in float."""
        pairs = self._pairs(calls)
        self.quantized = [alone(quantized, quantized) for quantized, _ in pairs]
        self.real = [alone(real, real) for _, real in pairs]
        return _proof(alone, pairs[0], Plan()), Plan(), []

    def _pairs(self, calls: Sequence[Call]) -> list[tuple[Call, Call]]:
        """What reaches the next block, quantized and float, batch by batch."""
        streams = zip(calls, self.quantized, self.real, strict=True)
        return [(with_hidden(call, q), with_hidden(call, r)) for call, q, r in streams]


def _proof(alone: Alone, pair: tuple[Call, Call], plan: Plan) -> Certificate:
    """The certificate of one block, without what stays in float."""
    # A proof needs no data, only that every layer is reached.
    certificate = certify(alone, plan=plan, args=tuple(map(first_sample, pair)))
    names = (entry.name for entry in certificate.entries)
    return replace(certificate, excluded=tuple(name for name in names if name not in plan.layers))


def _widths(proofs: dict, plan: Plan, name: str) -> dict[str, int | None]:
    """P_I and P_O of one layer: asked for, and proven enough."""
    entry = proofs[name]
    return {
        "accumulator": plan[name].accumulator,
        "tile": entry.tile_size,
        "inner_bits": entry.width,
        "outer_bits": entry.outer_width,
        "outer_bound": entry.outer_bound,
    }


def _joined(parts: Sequence[Certificate], subject: str) -> Certificate:
    """One certificate for all blocks."""
    return replace(
        parts[0],
        entries=tuple(entry for part in parts for entry in part.entries),
        excluded=tuple(name for part in parts for name in part.excluded),
        subject=subject,
    )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, whose end brings the mode before back."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def _without_remarks() -> Iterator[None]:
    """Silences what Brevitas says of outputs with zero points or scales per token.

    It concerns quantized outputs, which no layer of a block has.
    """
    with warnings.catch_warnings():
        for message in ("Could not compute output scale", "Computing zero point of output"):
            warnings.filterwarnings("ignore", message, UserWarning)
        yield


@contextmanager
def _memory_advice(where: str) -> Iterator[None]:
    """Says what to do where memory runs out."""
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
