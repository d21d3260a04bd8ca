"""The arms that every benchmark compares, and the independent check of what they return.

An arm is written "owner solver": `brevitas a2gptq` runs Brevitas's own code, `fast gptq` and
`best gptq` run ours at that quality, `none nearest` only rounds, `none float` does not quantize.
Each arm starts from the same calibrated model. The weights' scales are parameters, set from the
absolute maximum of each channel: with a scale that follows the weights Brevitas's guarantee fails.
"""

from __future__ import annotations

import ast
import hashlib
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field

import brevitas
import numpy as np
import torch
from brevitas.graph.calibrate import calibration_mode
from brevitas.graph.gpfq import gpfq_mode
from brevitas.graph.gptq import gptq_mode
from brevitas.quant import Int8WeightPerChannelFloat
from brevitas_examples.common.axe import a2gpfq_mode, a2gptq_mode
from records import REPOSITORY, recorded
from torch import Tensor, nn

FixedScaleWeight = Int8WeightPerChannelFloat.let(scaling_impl_type="parameter_from_stats")
BREVITAS_MODES = {
    "gpfq": gpfq_mode,
    "gptq": gptq_mode,
    "a2gpfq": a2gpfq_mode,
    "a2gptq": a2gptq_mode,
}


@dataclass(frozen=True)
class Setting:
    """One arm at one set of widths; accumulator_bits=None is an unlimited accumulator."""

    arm: str
    weight_bits: int | None = None
    input_bits: int | None = None
    accumulator_bits: int | None = None
    tile_size: int | None = None
    act_order: bool = False


@dataclass
class Experiment:
    """A trained model, its data, and functions to quantize and evaluate it.

    Attributes:
        name: of the benchmark; also its folder in the cache.
        metric: name of the number that `evaluate` returns.
        lower_is_better: whether smaller numbers are better.
        model: the trained float model.
        quantize: (weight bits, input bits) to a Brevitas model, not yet calibrated.
        batches: calibration inputs.
        evaluate: model to number.
        content: sizes and options that the numbers depend on.
    """

    name: str
    metric: str
    lower_is_better: bool
    model: nn.Module
    quantize: Callable[[int, int], nn.Module]
    batches: Sequence[Tensor]
    evaluate: Callable[[nn.Module], float]
    content: dict = field(default_factory=dict)
    _calibrated: dict[tuple[int, int], nn.Module] = field(default_factory=dict, repr=False)

    def calibrated(self, weight_bits: int, input_bits: int) -> nn.Module:
        """A quantized copy with its scales set; the calibration runs once per pair of widths."""
        widths = (weight_bits, input_bits)
        if widths not in self._calibrated:
            self._calibrated[widths] = calibrate(self.quantize(*widths), self.batches)
        return deepcopy(self._calibrated[widths])

    def solved(self, setting: Setting) -> tuple[nn.Module, float]:
        """The model with the weights that the arm chose, and the seconds it took."""
        if setting.arm == "none float":
            return self.model, 0.0
        model = self.calibrated(setting.weight_bits, setting.input_bits)
        start = time.perf_counter()
        if setting.arm != "none nearest":
            solve(model, setting, self.batches)
        return model, time.perf_counter() - start

    def measure(self, setting: Setting) -> dict:
        """One row of the table, from the cache if it is there."""
        result = recorded(self.name, self._key(setting), lambda: self._run(setting))
        print(f"{setting}: {self.metric} {result[self.metric]}", flush=True)
        return asdict(setting) | result

    def differing_integers(self, first: Setting, second: Setting) -> dict:
        """Solves two settings and counts the weights whose integers differ."""

        def compare() -> dict:
            a, b = (integer_weights(self.solved(s)[0]) for s in (first, second))
            return {
                "differing": sum(int(np.sum(a[name] != b[name])) for name in a),
                "integers": sum(q.size for q in a.values()),
            }

        key = self._key(first) | {"compared with": self._key(second)}
        return {"first": asdict(first), "second": asdict(second)} | recorded(
            self.name, key, compare
        )

    def best(self, rows: Iterable[dict]) -> dict:
        """The row with the best metric among those that keep their accumulator's width."""
        sign = 1 if self.lower_is_better else -1
        return min((r for r in rows if r["fits"]), key=lambda r: sign * r[self.metric])

    def _run(self, setting: Setting) -> dict:
        try:
            model, seconds = self.solved(setting)
        except (AssertionError, RuntimeError, ValueError) as error:
            if not setting.arm.startswith("brevitas"):
                raise
            return {self.metric: None, "bits_needed": None, "fits": False, "error": str(error)}
        limit = setting.accumulator_bits
        needed = None
        if setting.arm != "none float":
            needed = bits_needed(model, self.batches[0][:1], setting.tile_size)
        certified = None
        if setting.arm.startswith(("fast", "best")) and limit is not None:
            certified = certify(model, setting, self.batches[0][:1])
        return {
            self.metric: self.evaluate(model),
            "bits_needed": needed,
            "fits": limit is None or needed <= limit,
            "certified": certified,
            "seconds": round(seconds, 2),
        }

    def _key(self, setting: Setting) -> dict:
        ours = setting.arm.startswith(("fast", "best"))
        return asdict(setting) | {
            "model": model_fingerprint(self.model),
            "content": self.content,
            "torch": torch.__version__,
            "brevitas": brevitas.__version__,
            "solvers": solver_fingerprint() if ours else None,
        }


@torch.no_grad()
def calibrate(model: nn.Module, batches: Sequence[Tensor]) -> nn.Module:
    """Sets every input scale from the batches, and every weight scale from the weights."""
    with calibration_mode(model):
        for batch in batches:
            model(batch)
    model.eval()
    model(batches[0][:1])
    return model


def solve(model: nn.Module, setting: Setting, batches: Iterable[Tensor]) -> None:
    """Runs the arm's solver over the model in place."""
    owner, solver = setting.arm.split()
    if owner == "brevitas":
        limits = {
            "max_accumulator_bit_width": setting.accumulator_bits,
            "max_accumulator_tile_size": setting.tile_size,
        }
        options = limits if solver.startswith("a2") else {}
        mode = BREVITAS_MODES[solver](model, act_order=setting.act_order, **options)
    else:
        import brevitas_axe

        mode = getattr(brevitas_axe, f"axe_{solver}_mode")(
            model,
            accumulator_bit_width=setting.accumulator_bits,
            accumulator_tile_size=setting.tile_size,
            act_order=setting.act_order,
            quality=owner,
        )
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with mode as active:
            for _ in range(active.num_layers):
                for batch in batches:
                    active.model(batch)
                active.update()


def certify(model: nn.Module, setting: Setting, example: Tensor) -> bool:
    """Our own certificate, beside `bits_needed`, which shares no code with it.

    Layers and attention products that every arm leaves in float are out of it.
    """
    import brevitas_axe

    certificate = brevitas_axe.certify(
        model,
        accumulator_bit_width=setting.accumulator_bits,
        tile_size=setting.tile_size,
        args=(example,),
    )
    proofs = {entry.layer: entry for entry in certificate.entries}
    return all(proofs[name].fits for name in quantized_layers(model))


def quantized_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Layers whose weights Brevitas quantizes, by name."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
        and hasattr(layer, "weight_quant")
        and layer.weight_quant.is_quant_enabled
    }


@torch.no_grad()
def integer_weights(model: nn.Module) -> dict[str, np.ndarray]:
    """Integers [rows, inputs] of every quantized layer."""
    return {
        name: layer.quant_weight().int().flatten(1).numpy().astype(np.int64)
        for name, layer in quantized_layers(model).items()
    }


@torch.no_grad()
def bits_needed(model: nn.Module, example: Tensor, tile_size: int | None) -> int:
    """Width of the narrowest symmetric accumulator that no input can overflow, worst layer.

    Plain numpy on the stored integers, so that no arm is judged by its own arithmetic.
    """
    ranges, handles = {}, []
    for name, layer in quantized_layers(model).items():

        def keep(layer: nn.Module, args: tuple, name: str = name) -> None:
            inputs = layer.input_quant(args[0])
            assert not inputs.zero_point.any(), "the check below is for symmetric inputs"
            bits, signed = int(inputs.bit_width), bool(inputs.signed)
            ranges[name] = (-(2 ** (bits - 1)) * signed, 2 ** (bits - signed) - 1)

        handles.append(layer.register_forward_pre_hook(keep))
    model(example)
    for handle in handles:
        handle.remove()
    largest = 0
    for name, q in integer_weights(model).items():
        low, high = ranges[name]
        for start in range(0, q.shape[1], tile_size or q.shape[1]):
            tile = q[:, start : start + (tile_size or q.shape[1])]
            positive, negative = tile.clip(min=0).sum(1), -tile.clip(max=0).sum(1)
            sums = (high * positive - low * negative, high * negative - low * positive)
            largest = max(largest, *(int(s.max()) for s in sums))
    return largest.bit_length() + 1


def model_fingerprint(model: nn.Module) -> str:
    """Changes with any parameter or statistic of a model."""
    state = b"".join(t.numpy().tobytes() for t in model.state_dict().values())
    return hashlib.sha256(state).hexdigest()


# What decides the integers of a solution, relative to the package.
SOLVER_FILES = ("methods/solvers", "run/solve", "model/moments.py", "accumulator.py")


def solver_fingerprint(files: Iterable[str] = SOLVER_FILES) -> str:
    """Changes when the code of our solvers changes; comments and layout do not count.

    Args:
        files: of the package, with folders as a whole.
    """
    paths = [REPOSITORY / "brevitas_axe" / name for name in files]
    found = [f for path in paths for f in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]
    code = "".join(ast.dump(ast.parse(file.read_text())) for file in found)
    return hashlib.sha256(code.encode()).hexdigest()
