"""The noise of one layer: the authors' NoisyQuant and our modes.

    python benchmarks/side_by_side/noisy.py

Runs `fast_quant` of kriskrisliu/NoisyQuant (fetched, never kept here) on one linear layer, its
range search and its search of shift and noise, and our `noisy` on the same weights, inputs and
seed. Errors are mean squared errors of the outputs on other inputs, over that of the authors' range
without noise; "mean left out" is what remains where a solver puts the mean error of every output
into the bias, as ours do. Our own modes have the range of least squared error, as in a run.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from types import ModuleType

import torch
from official import official
from records import add_arguments, print_table, write_json
from torch import Tensor, nn

from brevitas_axe.methods.transforms.noisy import Noisy, published
from brevitas_axe.methods.transforms.protocol import Site
from brevitas_axe.methods.transforms.rounding_error import input_step
from brevitas_axe.plan import LayerPrecision

REPOSITORY = "kriskrisliu/NoisyQuant"
COMMIT = "ba544d1642f9e390c80a2dbcab8ab4df68f67b2b"
BITS, CHANNELS, ROWS = 6, 48, 64


def inputs(kind: str, count: int, seed: int) -> Tensor:
    """[1, count, CHANNELS]: numbers behind a layer norm, behind a GELU, or at two values."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, count, CHANNELS, generator=generator)
    if kind == "layer norm":
        return x * torch.logspace(-1, 0.7, CHANNELS)
    if kind == "gelu":
        return nn.functional.gelu(2 * x)
    spread = torch.rand(1, count, CHANNELS, generator=generator) * 8 - 4
    return torch.where(x > -1, 0.61 + 0.01 * x, spread)


def theirs(fast_quant: ModuleType, layer: nn.Linear, x: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """(step, noise [CHANNELS]) of the authors' code; it also rounds the layer's weights."""
    holder = nn.Sequential(layer)
    with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
        fast_quant.fast_quant(
            holder, BITS, True, percentile=True, search_mean=True, search_noisy=True
        )
        holder(x)  # the range
        torch.manual_seed(seed)
        holder(x)  # shift and noise
    return layer.act_scale, layer.noisy_bias.flatten()  # type: ignore[return-value]


def error(layer: nn.Linear, x: Tensor, step: Tensor, noise: Tensor, mean: bool) -> float:
    """Of the outputs with rounded weights, on inputs x."""
    top = 2 ** (BITS - 1) - 1
    near = ((x + noise) / step).round().clamp(-top - 1, top) * step - noise
    wrong = (near - x).flatten(0, 1).double() @ layer.weight.detach().double().t()
    return float((wrong if mean else wrong - wrong.mean(0)).square().mean())


def compared(fast_quant: ModuleType, kind: str, count: int) -> dict:
    torch.manual_seed(0)
    layer = nn.Linear(CHANNELS, ROWS)
    weight = layer.weight.detach().clone()
    x, other = inputs(kind, count, 1), inputs(kind, 4 * count, 2)
    step, noise = theirs(fast_quant, layer, x, 3)
    x64 = x[0].double()
    drawn = torch.Generator().manual_seed(3)
    mine, found = published(x64, weight.double(), BITS, BITS, drawn)
    site = Site(
        *(("fc",), "norm", True, False, False),
        low=x64.amin(0), high=x64.amax(0), sample=x64, weights=(weight.unsqueeze(1),),
    )  # fmt: skip
    widths, own = LayerPrecision(weight=BITS, input=BITS), input_step(x64, BITS).float()
    tried = {
        "official": (step, noise),
        "ours published": (step, found.float()),
        "our range, no noise": (own, torch.zeros(())),
    }
    for mode in ("uniform", "shift"):
        change = Noisy(mode).change(site, widths)
        shift = None if change is None else change.shift
        tried[f"ours {mode}"] = own, torch.zeros(()) if shift is None else -shift.float()
    none = {mean: error(layer, other, step, torch.zeros(()), mean) for mean in (True, False)}
    row = {"inputs": kind, "step": float(step), "same step": torch.allclose(step, mine.float())}
    row["noise differs by"] = float((noise - found).abs().max() / step)
    for name, (used, value) in tried.items():
        row[name] = error(layer, other, used, value, True) / none[True]
        row[f"{name}, mean left out"] = error(layer, other, used, value, False) / none[False]
    return row


def main() -> None:
    """Prints what both find, and the errors on other inputs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sys.path.insert(0, str(official(REPOSITORY, COMMIT)))
    import fast_quant

    count = 50 if arguments.quick else 400
    rows = [compared(fast_quant, kind, count) for kind in ("layer norm", "gelu", "two values")]
    for row in rows:
        print_table(
            f"NoisyQuant, {BITS} bits, {row['inputs']}; {REPOSITORY} at {COMMIT[:12]}",
            [{"what": key, "value": value} for key, value in row.items()],
        )
    write_json(
        arguments.output, {"benchmark": "side_by_side/noisy", "commit": COMMIT, "rows": rows}
    )


if __name__ == "__main__":
    main()
