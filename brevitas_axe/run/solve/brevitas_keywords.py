"""Keywords of Brevitas's own modes, as our modes understand them.

Brevitas's `gpfq_mode`, `gptq_mode`, and `a2gpfq_mode` and `a2gptq_mode` of its examples have
options that change nothing here, that have another name here, or that ask for what our modes do not
do. The first two kinds are accepted, so that a script runs unchanged; the last is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.solvers.problem import Quality
from brevitas_axe.plan import LayerPrecision, Plan

if TYPE_CHECKING:
    from typing_extensions import TypedDict

    class BrevitasKeywords(TypedDict, total=False):
        """Keywords of Brevitas's modes, for type checkers."""

        max_accumulator_bit_width: int | None
        max_accumulator_tile_size: int | None
        group_of_parallel_layers: Sequence[Sequence[str]] | None
        inplace: bool
        create_weight_orig: bool
        use_quant_activations: bool
        return_forward_output: bool
        num_blocks: int
        p: float
        algorithm_impl: Any
        gpfq_class: Any
        gptq_class: Any
        device: Any
        dtype: Any
        a2q_layer_filter_fnc: Callable[..., bool]


# Brevitas's name → ours.
_RENAMED = {
    "max_accumulator_bit_width": "accumulator_bit_width",
    "max_accumulator_tile_size": "accumulator_tile_size",
}

# Name → (the value that describes what our modes do anyway, why others are refused and the way
# out).
_FIXED = {
    "inplace": (True, "the model itself is solved; pass copy.deepcopy(model) to keep yours"),
    "create_weight_orig": (
        False,
        "float weights are not kept; keep copy.deepcopy(model), and give False or leave it out",
    ),
    "use_quant_activations": (
        True,
        "a budget is valid for quantized inputs only, so they stay quantized; leave it out",
    ),
    "return_forward_output": (
        False,
        "forwards stop at the layer to be solved; call the model itself after the mode",
    ),
}

_A_SOLVER = "algorithms are named: give solver=NAME, one of `brevitas-axe methods`"
_MOMENTS = "statistics are summed in float64 on the device of each layer; move the model instead"
# Name → why it has no meaning here, and the way out.
_REFUSED = {
    "num_blocks": "blocks of columns have one size, which changes nothing but speed; leave it out",
    "p": "every input position is used; leave it out, and give less data if that is slow",
    "algorithm_impl": _A_SOLVER,
    "gpfq_class": _A_SOLVER,
    "gptq_class": _A_SOLVER,
    "device": _MOMENTS,
    "dtype": _MOMENTS,
    "a2q_layer_filter_fnc": "layers are chosen by name: give a plan, or exclude=(name, ...)",
}


@dataclass(frozen=True)
class AllWidths:
    """One accumulator for all layers, and the layers that can be solved at the same time.

    Attributes:
        accumulator_bit_width: ours, or Brevitas's under its own name.
        accumulator_tile_size: ours, or Brevitas's under its own name.
        parallel: groups of layers that can be solved at the same time, as the caller states.
    """

    accumulator_bit_width: int | None
    accumulator_tile_size: int | None
    parallel: tuple[tuple[str, ...], ...] = ()

    def plan(self, layers: Iterable[str]) -> Plan:
        """The same width and tile for every layer."""
        width, tile = self.accumulator_bit_width, self.accumulator_tile_size
        return Plan.uniform(layers, LayerPrecision(accumulator=width, tile=tile))


def translated(mode: str, ours: AllWidths, given: Mapping[str, Any]) -> AllWidths:
    """Our options, completed by those that were given by Brevitas's names.

    Args:
        mode: name of the mode, for messages.
        ours: what was given by our names.
        given: all other keywords.

    Raises:
        InvalidOption: a keyword that asks for what our modes do not do, or that repeats what was
            given by our name.
        TypeError: neither these modes nor Brevitas's have such a keyword.
    """
    widths = {name: getattr(ours, name) for name in _RENAMED.values()}
    for name, value in given.items():
        if name in _RENAMED:
            if None not in (value, widths[_RENAMED[name]]):
                raise InvalidOption(f"{name} is {_RENAMED[name]} here; give one of the two.")
            widths[_RENAMED[name]] = value if value is not None else widths[_RENAMED[name]]
        elif name in _FIXED:
            if value is not _FIXED[name][0]:
                raise InvalidOption(f"{mode} takes no {name}={value!r}: {_FIXED[name][1]}.")
        elif name in _REFUSED:
            raise InvalidOption(f"{mode} takes no {name}: {_REFUSED[name]}.")
        elif name != "group_of_parallel_layers":
            raise TypeError(f"{mode}() got an unexpected keyword argument '{name}'")
    groups = given.get("group_of_parallel_layers") or ()
    if isinstance(groups, str) or any(isinstance(group, str) for group in groups):
        raise InvalidOption(
            "group_of_parallel_layers is a list of lists of layer names, such as "
            "[['query', 'key', 'value']]."
        )
    return AllWidths(**widths, parallel=tuple(tuple(group) for group in groups))


def own_solver(mode: str, own: str | None, given: Any) -> Any:
    """The solver of a mode.

    Args:
        mode: its name, for messages.
        own: the solver that the mode is named after, or None.
        given: what the caller named, None for nothing.

    Raises:
        InvalidOption: the caller named another solver than the mode does.
    """
    if own is not None and given is not None and str(given).partition(":")[0] != own:
        raise InvalidOption(
            f"{mode} solves by {own}, not by {given}; use axe_mode(..., solver={given!r})."
        )
    return given or own or "gptq"


def check_quality(quality: str) -> None:
    """Raises InvalidOption where it is neither "fast" nor "best"."""
    if quality not in get_args(Quality):
        raise InvalidOption(f"quality '{quality}' is unknown; choose 'fast' or 'best'.")


def check_parallel(
    groups: Sequence[Sequence[str]],
    layers: Mapping[str, Any],
    readers: Mapping[str, Sequence[str]],
) -> None:
    """Raises InvalidOption for layers that cannot be solved at the same time, or are not there.

    Args:
        groups: names of layers that read one tensor, as the caller states.
        layers: all layers to be solved, by name.
        readers: layer name → the layers that read its input, see `brevitas_axe.model.running.Flow`.
    """
    for group in groups:
        for name in group:
            if name not in layers:
                raise InvalidOption(
                    f"group_of_parallel_layers names '{name}', which is no layer to be solved; "
                    f"they are: {', '.join(layers)}."
                )
            if name not in readers.get(group[0], group[:1]):
                raise InvalidOption(
                    f"group_of_parallel_layers has '{group[0]}' with '{name}', which reads another "
                    "tensor and may have to wait for it; leave the group out, for layers with the "
                    "same input are found by themselves."
                )
