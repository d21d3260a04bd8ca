"""Tokens that are the same in every sample, as MixDQ's first one (arXiv 2405.17873).

The start of every prompt is the same token, and often one with by far the largest numbers: in the
text of a text-to-image model 828 against 10 to 15 elsewhere. Its results are computed in float
once, and the range of the other tokens no longer has to contain it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor, nn

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.transforms.protocol import CONSTANT_TOKEN
from brevitas_axe.methods.transforms.rounding_error import input_step, reader_error, rounded
from brevitas_axe.methods.transforms.sites import reader_weight
from brevitas_axe.model.constant_rows import ConstantRows
from brevitas_axe.model.layers import Layer
from brevitas_axe.model.prepare import Batch
from brevitas_axe.model.running import evaluating, first_input, hooked
from brevitas_axe.plan import LayerPrecision
from brevitas_axe.registry import Facts, check_ranges

# Vectors on which a layer is judged, over all batches.
_SAMPLE = 2**11


@dataclass(frozen=True)
class ConstantToken:
    """Linear layers leave out tokens that never change, and give their float results.

    A token is one position of the last dimension but one. It counts as constant in a layer where
    its vector is the same in all samples of calibration, up to `tolerance` of its norm; what the
    transform returns says so, and the certificate prints it. A layer is changed where the error of
    the *other* tokens falls by the share `gain`, because the range no longer contains the constant
    one. The fixed results are float numbers outside of every accumulator.

    A model that generates with cached keys calls its layers with the last token alone, which is not
    the first of calibration: use it without the cache.

    Attributes:
        tolerance: largest deviation between samples, relative to the norm of the token.
        gain: least share by which the error of the other tokens must fall.
        exclude: names of layers to leave alone.

    Raises:
        InvalidOption: a share outside [0, 1], or a negative tolerance; calibration with one sample,
            in which nothing varies.
    """

    tolerance: float = 1e-6
    gain: float = 0.1
    exclude: tuple[str, ...] = ()
    stage = CONSTANT_TOKEN
    facts = Facts(
        kind="–",
        granularity="token",
        signal="deviation between samples; output error",
        export="qonnx",
        source="arXiv 2405.17873",
    )

    def __post_init__(self) -> None:
        check_ranges(self, tolerance=(0, 1), gain=(0, 1))

    @torch.no_grad()
    def __call__(
        self, module: nn.Module, calls: Sequence[Batch], widths: LayerPrecision
    ) -> tuple[str, ...]:
        layers = {
            name: cast(Layer, part)
            for name, part in module.named_modules()
            if name and name not in self.exclude and type(part) is nn.Linear
        }
        changed: dict[tuple[int, ...], list[str]] = {}
        for name, seen in _tokens(module, layers, calls).items():
            places = seen.constant(self.tolerance)
            if places and self._gains(seen, places, layers[name], widths):
                rows = _results(layers[name], seen.first[list(places)])
                module.set_submodule(name, ConstantRows(layers[name], places, rows))
                changed.setdefault(places, []).append(name)
        return tuple(_assumption(places, names) for places, names in changed.items())

    def _gains(
        self, seen: _Seen, places: tuple[int, ...], layer: Layer, widths: LayerPrecision
    ) -> bool:
        bits = widths.input_bits
        if bits is None:
            return False
        whole = torch.cat(seen.samples).double()
        kept = [token for token in range(whole.shape[1]) if token not in places]
        others, weight = whole[:, kept].flatten(0, 1), reader_weight(layer)
        before, after = (
            reader_error(
                others,
                rounded(others, input_step(x, bits), bits),
                weight,
                widths.weight_bits,
            )
            for x in (whole.flatten(0, 1), others)
        )
        return after < before * (1 - self.gain)


@dataclass
class _Seen:
    """The inputs of one layer.

    Attributes:
        first: [tokens, C], the first sample.
        deviation: [tokens], largest distance of another sample from it.
        count: samples.
        samples: parts of them, each [samples, tokens, C] with the same tokens.
    """

    first: Tensor
    deviation: Tensor
    count: int = 0
    samples: list[Tensor] = field(default_factory=list)

    def constant(self, tolerance: float) -> tuple[int, ...]:
        """Tokens that never change; () where all do not, for then nothing is known."""
        same = self.deviation <= tolerance * self.first.norm(dim=-1)
        places = tuple(same.nonzero().flatten().tolist())
        return () if len(places) == len(same) else places


def _tokens(
    module: nn.Module, layers: Mapping[str, Layer], calls: Sequence[Batch]
) -> dict[str, _Seen]:
    """Layer → its tokens, as many as every call has; layers that get single vectors are left out.

    Raises:
        InvalidOption: there is only one sample.
    """
    found: dict[str, _Seen] = {}
    single: set[str] = set()
    most = max(_SAMPLE // len(calls), 1)

    def note(name: str, _: Layer, args: tuple, kwargs: dict) -> None:
        x = first_input(args, kwargs).detach()
        if x.dim() < 3 or x.numel() == 0:
            single.add(name)
            return
        x = x.flatten(0, -3)
        seen = found.setdefault(name, _Seen(x[0].clone(), x.new_zeros(x.shape[1])))
        tokens = min(len(seen.first), x.shape[1])
        away = (x[:, :tokens] - seen.first[:tokens]).norm(dim=-1).amax(0)
        parts = [*seen.samples, x[: max(most // x.shape[1], 1)].clone()]
        found[name] = replace(
            seen,
            first=seen.first[:tokens],
            deviation=torch.maximum(seen.deviation[:tokens], away),
            count=seen.count + len(x),
            samples=[part[:, :tokens] for part in parts],
        )

    with hooked(layers, before=note), evaluating(module):
        for args, kwargs in calls:
            module(*args, **kwargs)
    kept = {name: seen for name, seen in found.items() if name not in single}
    if any(seen.count < 2 for seen in kept.values()):
        raise InvalidOption(
            "constant_token compares samples, but the calibration data has one; give more."
        )
    return kept


def _results(layer: Layer, tokens: Tensor) -> Tensor:
    """What a layer gives for some tokens, computed in float64."""
    given = tokens.double() @ layer.weight.detach().double().t()
    if layer.bias is not None:
        given = given + layer.bias.detach().double()
    return given.to(layer.weight.dtype)


def _assumption(places: tuple[int, ...], names: Sequence[str]) -> str:
    which = f"token {places[0]}" if len(places) == 1 else f"tokens {', '.join(map(str, places))}"
    verb = "is" if len(places) == 1 else "are"
    listed = ", ".join(f"'{name}'" for name in names)
    return f"{which} of every input of {listed} {verb} the same as in calibration"


constant_token = ConstantToken()
