"""One set of weights under many plans: every quantizer of a model can change its width at once."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from brevitas_axe.errors import InvalidPlan
from brevitas_axe.model.apply.activations import activation_quantizers
from brevitas_axe.model.layers import Layer, Proxy, find_layers
from brevitas_axe.model.proxies.switch import make_switches, set_width, settle
from brevitas_axe.plan import Choices, LayerPrecision, Plan


class Switches:
    """The quantizers of a live model, made able to take every choice, in place.

    Args:
        model: calibrated, with our weight quantizers in all layers of the choices.
        choices: with weight and input bits.
        sources: layer → names of the quantizers that decide its input bits, see `input_sources`.

    Raises:
        InvalidPlan: the input bits of a layer cannot be set.
    """

    def __init__(
        self, model: nn.Module, choices: Choices, sources: Mapping[str, tuple[str, ...]]
    ) -> None:
        choices.check_integers("switches choose among")
        layers = find_layers(model)
        self._layers: dict[str, Layer] = {name: layers[name] for name in choices.layers}
        quantizers = activation_quantizers(model)
        self._inputs: dict[str, list[Proxy]] = {}
        widths: dict[str, set[int]] = {}
        for name, options in choices.layers.items():
            if not sources.get(name):
                raise InvalidPlan(
                    f"layer '{name}' has no static quantizer in front of it whose bits could be "
                    "chosen; exclude it by name."
                )
            self._inputs[name] = [p for found in sources[name] for p in quantizers[found]]
            for found in sources[name]:
                widths.setdefault(found, set()).update(
                    c.input_bits for c in options if c.input_bits
                )
        make_switches(
            ([layer.weight_quant], [c.weight_bits for c in choices.layers[name] if c.weight_bits])
            for name, layer in self._layers.items()
        )
        make_switches((quantizers[name], each) for name, each in widths.items())
        self._switched = {p: None for name in widths for p in quantizers[name]}
        self._now: dict[str, LayerPrecision] = {}

    def set(self, plan: Plan) -> None:
        """Gives every layer its widths, tile and accumulator; the next forward keeps the budget."""
        for name, precision in plan.layers.items():
            before = self._now.get(name)
            if precision == before:
                continue
            self._now[name] = precision
            proxy = self._layers[name].weight_quant
            assert precision.weight_bits is not None
            assert precision.input_bits is not None
            set_width(proxy, precision.weight_bits)
            proxy.accumulator_bit_width = precision.accumulator
            proxy.accumulator_tile_size = precision.tile
            for each in self._inputs[name]:
                set_width(each, precision.input_bits)
            if before is None or before.input != precision.input:
                proxy.set_input_range(None)

    def settle(self) -> None:
        """Leaves an ordinary model with the widths of the last plan."""
        settle(layer.weight_quant for layer in self._layers.values())
        settle(self._switched)
