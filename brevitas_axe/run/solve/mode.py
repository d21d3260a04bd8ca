"""Brevitas-style context managers: forward over the calibration data, `update()`, layer by layer.

    with torch.no_grad(), axe_gptq_mode(model, accumulator_bit_width=16) as axe:
        for _ in range(axe.num_layers):
            for x in calibration:
                axe.model(x)
            axe.update()

Only the first round of forwards starts at the model's input: later rounds continue each batch from
the layer where it stopped (walk.py), and may be left out altogether.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from tqdm.auto import tqdm

from brevitas_axe.errors import (
    EmptyCalibration,
    InvalidOption,
    NonFiniteValues,
    UnquantizedLayer,
    UnsupportedLayer,
)
from brevitas_axe.methods.solvers.compilation import compile_kernels, kernels_are_ready
from brevitas_axe.methods.solvers.problem import LayerProblem, LayerSolution, Quality
from brevitas_axe.methods.solvers.tasks import solve_layer, solve_layers
from brevitas_axe.model.apply.weights import apply_precision, untie, write_solution
from brevitas_axe.model.fingerprint import Fingerprint
from brevitas_axe.model.layers import Layer, find_layers, find_unquantized
from brevitas_axe.model.moments import Moments
from brevitas_axe.model.routing import Calibrated
from brevitas_axe.model.running import Flow, float_twin, flow, observe_inputs
from brevitas_axe.plan import Plan
from brevitas_axe.registry import method
from brevitas_axe.run.solve.branches import Branches, branches_of
from brevitas_axe.run.solve.brevitas_keywords import (
    AllWidths,
    check_parallel,
    check_quality,
    own_solver,
    translated,
)
from brevitas_axe.run.solve.joint import solve_jointly
from brevitas_axe.run.solve.layer_inputs import (
    check_quantized,
    collect,
    collect_all,
    layer_problem,
    set_input_ranges,
)
from brevitas_axe.run.solve.log import describe
from brevitas_axe.run.solve.memory import release_freed_memory
from brevitas_axe.run.solve.state import SavedLayers
from brevitas_axe.run.solve.tiles import fitted_tile
from brevitas_axe.run.solve.unreached import calling_unreached
from brevitas_axe.run.solve.walk import SuspendedForward, abandon_all, add_hooks

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from brevitas_axe.run.solve.brevitas_keywords import BrevitasKeywords

# Compiling kernels is reported if it takes longer than this, in seconds; reading them from the
# cache takes less.
_NOTICEABLE = 2.0


class axe_mode:
    """Solves every quantized layer of a model under an accumulator budget, in place.

    Args:
        model: a Brevitas model with calibrated activation quantizers, the one positional argument.
            Weight quantizers are replaced by accumulator-aware ones with the same bits and
            granularity.
        accumulator_bit_width: P for every layer; None leaves accumulators unconstrained.
        plan: per-layer widths instead of one P; layers it does not name are left alone.
        accumulator_tile_size: inputs per inner accumulator, None for whole dot products.
        solver: a registered solver; left out, the one that the class is named after, and "gptq" for
            `axe_mode` itself.
        act_order: order columns by their input's second moment. Default: False for "fast", as
            published, and True for "best".
        quality: "fast" is the published algorithm, with Brevitas's integers; "best" searches
            scales, thresholds, targets and single integers under the same budget.
        exclude: names of layers to leave alone.
        state: folder for progress; a killed run continues from it to the same integers.
        workers: number of tasks at a time, of rows of a layer and of layers with the same input,
            through the active joblib backend (tasks.py); None solves them here.
        progress: show a progress bar.
        reference: a model with layers of the same names, whose inputs and outputs are followed;
            None for the model without its quantizers.
        brevitas: keywords of Brevitas's own modes, accepted where they mean something here
            (brevitas_keywords.py).

    Attributes:
        num_layers: number of `update()` calls to make.
        log: one entry per solved layer.
        experts: set it where data decides which layers run.

    Raises:
        InvalidPlan, InvalidOption, UnsupportedLayer, MissingInputQuantizer, NonFiniteValues,
        EmptyCalibration, InvalidState: each names the layer and the way out.
    """

    own_solver: ClassVar[str | None] = None

    def __init__(
        self,
        model: nn.Module,
        *misplaced: object,
        accumulator_bit_width: int | None = None,
        plan: Plan | None = None,
        accumulator_tile_size: int | None = None,
        solver: str | None = None,
        act_order: bool | None = None,
        quality: Quality = "best",
        exclude: tuple[str, ...] = (),
        state: str | Path | None = None,
        workers: int | None = None,
        progress: bool = False,
        reference: nn.Module | None = None,
        **brevitas: Unpack[BrevitasKeywords],
    ) -> None:
        name = type(self).__name__
        if misplaced:
            raise InvalidOption(
                f"{name} takes the model by position and everything else by keyword, such as "
                f"accumulator_bit_width=16; give {misplaced[0]!r} its keyword."
            )
        ours = AllWidths(accumulator_bit_width, accumulator_tile_size)
        widths = translated(name, ours, brevitas)
        solver = own_solver(name, self.own_solver, solver)
        self._solver = method("solvers", solver)
        check_quality(quality)
        exclude = (exclude,) if isinstance(exclude, str) else tuple(exclude)
        layers = find_layers(model, exclude, tile_scales=True)
        wanted = widths.plan(layers) if plan is None else plan
        if plan is not None:
            if (widths.accumulator_bit_width, widths.accumulator_tile_size) != (None, None):
                raise InvalidOption(
                    "give either a plan or one accumulator width and tile, not both."
                )
            plan.check_names(layers)
        self.root = model
        self.layers = {name: layers[name] for name in wanted.layers}
        if not self.layers:
            plain = find_unquantized(model, exclude)
            raise UnquantizedLayer(
                "there is no quantized layer to solve"
                + (f": layer '{plain[0]}' has no integer weights" if plain else "")
                + "; give a model with quantized linear or convolutional layers, or exclude less."
            )
        self.plan = Plan(
            {n: fitted_tile(n, layers[n], wanted[n], plan is None) for n in wanted.layers}
        )
        self._branches = branches_of(model, self.layers)
        self._parallel = widths.parallel
        self.quality: Quality = quality
        self._workers = workers
        self.act_order = quality == "best" if act_order is None else act_order
        self.needs_float = quality != "fast" or self._solver.uses_float_inputs
        self.log: list[dict] = []
        self.experts = Calibrated()
        self._saved = None if state is None else SavedLayers(state)
        self._fingerprint = Fingerprint(
            {
                "plan": self.plan.to_json(),
                "solver": str(solver),
                "quality": quality,
                "act_order": self.act_order,
                "exclude": list(exclude),
            }
        )
        self._progress, self._reference = progress, reference
        self._entered = False

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def __enter__(self) -> axe_mode:
        for name, layer in self.layers.items():
            if not torch.isfinite(layer.weight).all():
                raise NonFiniteValues(
                    f"the weights of layer '{name}' contain NaN or infinity; repair the checkpoint."
                )
        if self._progress and not kernels_are_ready():
            seconds = compile_kernels()
            if seconds > _NOTICEABLE:
                tqdm.write(f"solver kernels compiled in {seconds:.1f} s, and cached for next time")
        untie(self.root, self.layers)
        self._training = {module: module.training for module in self.root.modules()}
        self.root.eval()
        self._batches: list[tuple[tuple, dict]] = []
        self._forwards: list[tuple[SuspendedForward, SuspendedForward | None]] = []
        self._handles: list = []
        self._calling = ExitStack()
        self._done: set[str] = set()
        self._solved: dict[str, tuple[LayerSolution, dict]] = {}  # solved, not written yet
        self._round, self._position = 0, 0
        self._float_model: nn.Module | None = None
        self._bar = tqdm(total=self.num_layers, desc="layers", disable=not self._progress)
        self._entered = True
        return self

    def __exit__(self, kind, value, traceback) -> None:
        abandon_all(forward for pair in self._forwards for forward in pair)
        self._calling.close()
        for handle in self._handles:
            handle.remove()
        for module, training in self._training.items():
            module.training = training
        for layer in self.layers.values():
            layer.weight_quant.train(layer.training)  # it may have been replaced
        self._bar.close()
        self._forwards, self._batches, self._float_model = [], [], None
        self._entered = False
        if kind is None:
            missing = [name for name in self.layers if name not in self._done]
            if missing and not self._done:
                raise EmptyCalibration(
                    "no layer was solved: run axe.model(batch) over the calibration data, then "
                    "axe.update(), once per layer."
                )
            if missing:
                raise UnsupportedLayer(
                    f"layers left unsolved: {', '.join(missing)}; call update() num_layers times, "
                    "and exclude layers that no calibration batch runs through."
                )

    def model(self, *args, **kwargs) -> None:
        """One calibration batch: records it in the first round, advances it in later ones."""
        if not self._entered:
            raise InvalidOption(
                "use the mode as a context manager: with axe_gptq_mode(...) as axe."
            )
        if self._round == 0:
            if not self._batches:
                self._prepare(args, kwargs)
            if self._saved is not None:
                self._fingerprint.add((args, kwargs))
            self._batches.append((args, kwargs))
            real = None
            if self._float_model is not None:
                real = SuspendedForward(self._float_model, args, kwargs)
            self._forwards.append((SuspendedForward(self.root, args, kwargs), real))
        elif self._position >= len(self._forwards):
            raise InvalidOption(
                f"this round brings more batches than the first had ({len(self._forwards)}); "
                "calibrate with the same batches in every round."
            )
        self._advance(self._position)
        self._position += 1

    def update(self) -> bool:
        """Solves the layer where the forwards have stopped. False when none is left."""
        if not self._batches:
            raise EmptyCalibration(
                "update() came before any calibration batch; call axe.model(batch) first."
            )
        if self._round and 0 < self._position < len(self._forwards):
            raise InvalidOption(
                f"this round brought {self._position} batches, but the first had "
                f"{len(self._forwards)}; feed all of them again, or none."
            )
        if self._round == 0 and self._saved is not None:
            self._run = self._fingerprint.hexdigest()
        for position in range(self._position if self._round else 0, len(self._forwards)):
            self._advance(position)
        release_freed_memory()
        self._round, self._position = self._round + 1, 0
        stops = {quant.layer for quant, _ in self._forwards if quant.layer}
        # Where data decides which layers run, the first layer is the one that none has passed.
        name = next((layer for layer in self.layers if layer in stops), None)
        if not name:  # quantization may leave experts without tokens
            missing = [layer for layer in self.layers if layer not in self._done]
            calling = calling_unreached(self.root, self.experts, missing)
            self.experts = self._calling.enter_context(calling)
            name = next(filter(self.experts.is_shared, missing), "")
        if not name:
            return False
        start = time.perf_counter()
        entry = self._solve(name)
        self.log.append({"name": name, "seconds": time.perf_counter() - start, **entry})
        release_freed_memory()
        self._done.add(name)
        self._bar.set_postfix_str(name)
        self._bar.update()
        return len(self._done) < self.num_layers

    def outputs(self) -> Iterator[Any]:
        """What the solved model returns, batch by batch; the forwards go on from its last layer."""
        for quant, _ in self._forwards:
            quant.advance(lambda name: False)
            yield quant.output

    def _prepare(self, args: tuple, kwargs: dict) -> None:
        """Observes the inputs in one forward, then installs quantizers and hooks."""
        calls = observe_inputs(self.root, self.layers, args, kwargs)
        check_quantized(calls, self.plan)
        for name, layer in self.layers.items():
            apply_precision(name, layer, self.plan[name], calls.get(name, ()))
        if any(precision.input is not None for precision in self.plan.layers.values()):
            calls = observe_inputs(self.root, self.layers, args, kwargs)
        set_input_ranges(self.layers, calls)
        self._calls = {name: len(ranges) for name, ranges in calls.items()}
        self._flow = Flow({}, {})
        if self._workers is not None or self._parallel:
            self._flow = flow(self.root, self.layers, (args, kwargs))
        check_parallel(self._parallel, self.layers, self._flow.same)
        if self._saved is not None:
            followed = [] if self._reference is None else [self._reference]
            self._fingerprint.add([self.root, *followed])
        groups = {group.name: group.whole for group in self._branches.values()}
        self._handles = add_hooks(self.layers, groups)
        if self.needs_float:
            if self._reference is None:
                # The copied hooks are those of the original: same names, same effect.
                self._float_model = float_twin(self.root)
            else:
                self._float_model = self._reference
                others = {name: self._reference.get_submodule(name) for name in self.layers}
                self._handles += add_hooks(others)
            twins = dict(self._float_model.named_modules())
            assert all(twins[name]._forward_pre_hooks for name in self.layers)

    def _advance(self, position: int) -> None:
        for forward in self._forwards[position]:
            if forward is not None and (forward.layer is None or forward.layer in self._done):
                forward.advance(lambda name: name not in self._done)

    def _solve(self, name: str) -> dict:
        group = self._branches.get(name)
        names = (name,) if group is None else tuple(group.layers)
        index = len(self._done)
        if name not in self._solved and not self._restored(index, names):
            if group is None:
                self._solve_together(name)
            else:
                moments = self._moments(group.name or name, group, name)
                self._solved |= solve_jointly(
                    group, self.plan, moments, self.quality, self._solutions
                )
                # In reverse, so that a state with the first one has all of them.
                for offset, each in reversed([*enumerate(names)]):
                    self._save(index + offset, each)
        solution, entry = self._solved[name]
        if group is None and not entry.get("resumed"):
            self._save(index, name)
        del self._solved[name]
        self._write(name, solution)
        return {"resumed": False, **entry}

    def _restored(self, index: int, names: Sequence[str]) -> bool:
        """Loads these layers from the state; False unless all of them are there."""
        layers = {name: self.layers[name] for name in names}
        found = None if self._saved is None else self._saved.load_all(index, layers, self._run)
        self._solved |= found or {}
        return found is not None

    def _save(self, index: int, name: str) -> None:
        if self._saved is not None:
            self._saved.save(index, name, self._run, *self._solved[name])

    def _solve_together(self, name: str) -> None:
        """Solves a layer, and with workers those that read the same input, in tasks of one pool."""
        names = (name,)
        if self._workers is not None and all(quant.layer == name for quant, _ in self._forwards):
            names = tuple(n for n in self._flow.same_input(name) if n not in self._done)
        problems, samples = [], []
        for each in names:
            moments = self._moments(each, self.layers[each], name)
            statistics = moments.finish(shrink=self.quality == "best")
            samples.append(moments.samples)
            del moments  # float64: a quarter of the memory of a wide layer's solve
            if self.layers[each].bias is None or self.quality == "fast":
                statistics["quant_mean"] = statistics["float_mean"] = None
            elif statistics["cross"] is None:
                statistics["float_mean"] = statistics["quant_mean"]
            problems.append(layer_problem(each, self.layers[each], self.plan[each], statistics))
        solutions = self._solutions(problems)
        for each, count, problem, solution in zip(names, samples, problems, solutions, strict=True):
            self._solved[each] = solution, {"samples": count, **describe(problem, solution)}

    def _solutions(self, problems: Sequence[LayerProblem]) -> list[LayerSolution]:
        options = {"act_order": self.act_order, "quality": self.quality}
        if self._workers is None:
            return [solve_layer(problem, self._solver, **options) for problem in problems]
        return solve_layers(problems, self._solver, self._workers, **options)

    def _moments(self, name: str, layer: Layer | Branches, at: str) -> Moments:
        """Second moments of a layer's inputs.

        They come from the forwards that are suspended in front of the layer, or in front of one
        that reads the same tensor, `at`.
        """
        first = at if isinstance(layer, Branches) else name
        cross = self.needs_float and not self.experts.is_unpaired(name)
        if self._calls.get(first, 1) == 1 and not self.experts.is_shared(name):
            return collect(name, layer, self._forwards, cross, at)
        models = [self.root, self._float_model] if cross and self._float_model else [self.root]
        return collect_all(name, layer, models, self._batches, cross, first)

    def _write(self, name: str, solution: LayerSolution) -> None:
        layer = self.layers[name]
        device = layer.weight.device  # solutions of a resumed run are on the CPU
        integers, scale = solution.integers.to(device), solution.scale.to(device)
        write_solution(name, layer, integers, scale, solution.bias_shift)
