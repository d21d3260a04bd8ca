"""What every scorer is given: a model, data, choices and a metric."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, cast

import torch
from torch import Tensor, nn

from brevitas_axe.errors import InvalidOption, InvalidPlan, MissingInputQuantizer
from brevitas_axe.formats import Format
from brevitas_axe.methods.sensitivity.metrics import Metric, find_metric, output_tensor
from brevitas_axe.methods.sensitivity.twin import (
    InputGrid,
    Substitute,
    input_grids,
    set_parameter,
    sharing_copy,
    substituted,
)
from brevitas_axe.model.apply.activations import check_arriving, input_sources, tied_layers
from brevitas_axe.model.apply.minifloats import weight_numbers
from brevitas_axe.model.apply.weights import (
    apply_precision,
    current_scale,
    is_power_of_two,
    is_shared_scale,
)
from brevitas_axe.model.fingerprint import Fingerprint
from brevitas_axe.model.layers import Layer, find_layers, roll_weight, unroll_weight
from brevitas_axe.model.minifloats import nearest_significant
from brevitas_axe.model.prepare import Batch, as_batches
from brevitas_axe.model.running import evaluating, float_twin
from brevitas_axe.model.trained_function import solved_and_followed, trained_function
from brevitas_axe.plan import Choices, LayerPrecision
from brevitas_axe.recipe import Function


@dataclass(frozen=True, eq=False)
class WeightGrid:
    """Start scale and integer range of a layer's weight quantizer at one width.

    Attributes:
        scale: float32 [groups, rows].
        low, high: range of the integers.
        shared: all rows keep one common scale.
        power_of_two: the scale is one.
        significant: bits that an integer may begin with, of a floating-point format on its finest
            grid; None for all integers.
    """

    scale: Tensor
    low: int
    high: int
    shared: bool
    power_of_two: bool
    significant: int | None = None


@dataclass(frozen=True, eq=False)
class Case:
    """Built by `make_case`; can be pickled.

    Attributes:
        twin: the model with every quantizer off; of one that was trained with them, the weights
            are those that they gave.
        batches: (args, kwargs) of forwards.
        items: the calibration items that batches came from, labels included.
        reference: output for each batch, of the twin or of the model that was trained with its
            quantizers.
        choices: to be scored, all ties of the model among their `same_input`.
        inputs: layer → input bits or format → grid; None where inputs have none.
        weights: layer → weight bits or format → grid.
        metric: how far an output is from what it should be.
        seed: of all randomness.
    """

    twin: nn.Module
    batches: list[Batch]
    items: list[Any]
    reference: list[Tensor]
    choices: Choices
    inputs: Mapping[str, Mapping[Format | None, InputGrid | None]]
    weights: Mapping[str, Mapping[Format | None, WeightGrid]]
    metric: Metric
    seed: int

    @property
    def names(self) -> list[str]:
        return list(self.choices.layers)

    def layers(self) -> dict[str, Layer]:
        """The layers to score."""
        return self._layers_of(self.twin)

    def layer(self, name: str) -> Layer:
        """One layer of the twin."""
        return cast(Layer, self.twin.get_submodule(name))

    def sharing_copy(self, frozen: bool = False) -> tuple[nn.Module, dict[str, Layer]]:
        """A copy of the twin that shares its parameters (frozen: untrained), and its layers."""
        twin = sharing_copy(self.twin, frozen)
        return twin, self._layers_of(twin)

    def differentiable(self, share: float = 1.0) -> tuple[nn.Module, dict[str, Layer]]:
        """As `sharing_copy`, but every layer gets its own weight parameter to differentiate by.

        It is `share` times the original weight.
        """
        twin, layers = self.sharing_copy()
        for layer in layers.values():
            weight = layer.weight.detach()
            set_parameter(layer, "weight", weight if share == 1 else weight * share)
        return twin, layers

    def _layers_of(self, twin: nn.Module) -> dict[str, Layer]:
        modules = dict(twin.named_modules())
        return {name: cast(Layer, modules[name]) for name in self.choices.layers}

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def loss(self, parts: Mapping[str, Substitute]) -> float:
        """Mean over the data of the metric with some layers quantized, in a private copy."""
        return self.metric.mean(self.outputs(parts), self.reference, self.items)

    def outputs(self, parts: Mapping[str, Substitute]) -> list[Tensor]:
        """Output for each batch with some layers quantized."""
        twin = sharing_copy(self.twin)
        with torch.no_grad(), substituted(twin, parts):
            return [output_tensor(twin(*args, **kwargs)) for args, kwargs in self.batches]

    @property
    def samples(self) -> int:
        """Samples of all batches together."""
        return sum(len(reference) for reference in self.reference)

    def mean(self, values: list[float]) -> float:
        """Mean over batches, each with the weight of its samples."""
        sizes = (len(reference) for reference in self.reference)
        return sum(v * n for v, n in zip(values, sizes, strict=True)) / self.samples

    def rounded(self, name: str, choice: LayerPrecision) -> tuple[Tensor, Tensor]:
        """(weights of a layer rounded to nearest, scale per weight), both in the weight's shape."""
        layer, grid = self.layer(name), self.weights[name][choice.weight]
        weight = unroll_weight(layer, layer.weight.detach())
        scale = grid.scale.to(weight).unsqueeze(-1).expand_as(weight)
        numbers = nearest_significant(weight / scale, grid.significant)
        value = numbers.clamp(grid.low, grid.high) * scale
        return roll_weight(layer, value), roll_weight(layer, scale)


def make_case(
    model: nn.Module,
    calibration: Iterable[Any],
    choices: Choices,
    metric: str | Metric = "kl",
    seed: int = 0,
    exclude: tuple[str, ...] = (),
    needs_inputs: bool = True,
    function: Function | None = None,
) -> Case:
    """Collects what scorers need; the model is not modified.

    Args:
        model: a calibrated Brevitas model.
        calibration: items as `brevitas_axe.model.prepare.as_batches` takes them; labels are kept.
        choices: to be scored; layers that read one activation are tied, if they are not yet.
        metric: "kl" (to the reference), "mse", "cross_entropy" or a `Metric`.
        seed: of all randomness.
        exclude: names of layers to leave out.
        needs_inputs: whether every layer must be called; without, those that are not have no grids
            of their inputs.
        function: which one the reference is, as the recipe's; None decides as `quantize` does.

    Raises:
        InvalidPlan: a layer of the choices does not exist or is never called, an input does not
            come with the chosen bits, or layers that read one activation have no bits in common.
        MissingInputQuantizer: an accumulator is chosen where the input is not quantized.
    """
    if isinstance(calibration, Tensor) or not isinstance(calibration, Iterable):
        as_batches(calibration)  # for its error messages
    items = list(calibration)
    batches = as_batches(items, model)
    args, kwargs = batches[0]
    function = function or trained_function(model, batches)
    model, followed = solved_and_followed(model, function, exclude)
    scratch = copy.deepcopy(model).eval()
    layers = find_layers(scratch, exclude)
    for name in choices.layers:
        if name not in layers:
            raise InvalidPlan(
                f"the choices name layer '{name}', which is not a quantized layer of the model; "
                f"these are: {', '.join(layers)}."
            )
    widths = {choice.input for options in choices.layers.values() for choice in options}
    if len(widths) > 1:  # otherwise tied layers cannot disagree
        choices = _completed(choices, input_sources(model, args, kwargs, exclude))
    by_width = {bits: input_grids(model, args, kwargs, bits, exclude) for bits in widths}
    inputs: dict[str, dict[Format | None, InputGrid | None]] = {}
    weights: dict[str, dict[Format | None, WeightGrid]] = {}
    for name, options in choices.layers.items():
        called = name in next(iter(by_width.values()))
        if not called and needs_inputs:
            raise InvalidPlan(
                f"layer '{name}' has choices, but no calibration batch runs through it; leave it "
                "out of the choices."
            )
        inputs[name] = {c.input: by_width[c.input].get(name) for c in options}
        for choice in options if called else ():
            _check(name, choice, inputs[name][choice.input])
        weights[name] = {
            bits: _weight_grid(name, layers[name], bits) for bits in {c.weight for c in options}
        }
    twin = float_twin(model)
    followed = twin if followed is None else followed
    with evaluating(followed), torch.no_grad():
        reference = [output_tensor(followed(*args, **kwargs)) for args, kwargs in batches]
    for output in reference:
        if output.dim() == 0:
            raise InvalidOption("the model returns a number; it must return one output per sample.")
    return Case(
        twin, batches, items, reference, choices, inputs, weights, find_metric(metric), seed
    )


def fingerprint(case: Case, scorer: object) -> str:
    """Hash of all that a trial's result depends on besides its key, which names the choices."""
    digest = Fingerprint(
        {
            "version": version("brevitas_axe"),
            "scorer": repr(scorer),
            "metric": case.metric.name,
            "seed": case.seed,
        }
    )
    digest.add(case.twin)
    digest.add(case.items)
    # A forward may depend on more than parameters: on constants, attributes and its code.
    digest.add(case.reference)
    for name in case.names:
        digest.add((name, type(case.layer(name)).__qualname__))
        for grids in (case.inputs[name], case.weights[name]):
            for bits in sorted(grids, key=str):
                digest.add((bits, *(() if grids[bits] is None else vars(grids[bits]).values())))
    return digest.hexdigest()


def _completed(choices: Choices, sources: Mapping[str, tuple[str, ...]]) -> Choices:
    """The choices with all ties of the model besides their own."""
    own = {name: (f"tie of {group[0]}",) for group in choices.same_input for name in group}
    sources = {name: sources.get(name, ()) + own.get(name, ()) for name in choices.layers}
    return Choices(choices.layers, tied_layers(sources))


def _check(name: str, choice: LayerPrecision, grid: InputGrid | None) -> None:
    if choice.accumulator is not None and grid is None:
        raise MissingInputQuantizer(
            f"the input of layer '{name}' is not quantized to integers, so no accumulator can be "
            "chosen for it; quantize it, or leave the layer out of the choices."
        )
    check_arriving(name, choice.input, None if grid is None else grid.input_range)


def _weight_grid(name: str, layer: Layer, bits: Format | None) -> WeightGrid:
    """From a copy of the layer that is given these bits, as `apply_plan` would."""
    layer = copy.deepcopy(layer)
    apply_precision(name, layer, LayerPrecision(weight=bits))
    low, high, significant = weight_numbers(layer)
    return WeightGrid(
        scale=current_scale(layer).float(),
        low=low,
        high=high,
        shared=is_shared_scale(layer),
        power_of_two=is_power_of_two(layer),
        significant=significant,
    )
