"""Channel-wise ranges folded into a norm: the authors' RepQ-ViT and ours.

    python benchmarks/side_by_side/channel_clip.py

Runs the loop "Scale reparameterization" of zkkli/RepQ-ViT's `classification/test_quant.py`
(fetched, never kept here; the script has no function for it, so the loop is taken out of its
syntax tree) on a norm and the layer that reads it, and our `channel_clip` without clipping on the
same ranges. Factors must be equal; shifts differ by name: theirs leave the mean of the zero points
of all channels, ours none.
"""

from __future__ import annotations

import argparse
import ast
import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from official import official
from records import add_arguments, print_table, write_json
from torch import Tensor, nn

from brevitas_axe.methods.transforms.channel_clip import reparametrized
from brevitas_axe.methods.transforms.fold import apply_change
from brevitas_axe.methods.transforms.sites import find_sites

REPOSITORY = "zkkli/RepQ-ViT"
COMMIT = "a160561b9233945e6680132f129d13041b787318"
FILE = "classification/test_quant.py"
CHANNELS = 32


class Block(nn.Module):
    """A norm and its reader, under the names that the authors' loop looks for."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(CHANNELS)
        self.attn = nn.Module()
        self.attn.qkv = nn.Linear(CHANNELS, 24)

    def forward(self, x: Tensor) -> Tensor:
        return self.attn.qkv(self.norm1(x))


def case() -> tuple[nn.Sequential, Tensor]:
    """Channels of different size and place."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(Block()).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        model[0].norm1.weight.mul_(torch.logspace(-1, 1, CHANNELS))
    return model, torch.randn(500, CHANNELS, generator=generator, dtype=torch.float64)


def theirs(folder: Path, model: nn.Sequential, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """Runs the authors' loop on the model, in place; the zero point that is left."""
    delta = (high - low) / (2**bits - 1)
    quantizer = SimpleNamespace(delta=delta, zero_point=(-low / delta).round())
    model[0].attn.qkv.input_quantizer = quantizer  # type: ignore[union-attr]
    model[0].attn.qkv.weight_quantizer = SimpleNamespace()  # type: ignore[union-attr]
    tree = ast.parse((folder / FILE).read_text())
    loops = [
        node for node in ast.walk(tree)
        if isinstance(node, ast.For) and "target_delta" in ast.unparse(node)
    ]  # fmt: skip
    assert len(loops) == 1, "the authors' script is not the one that this benchmark knows"
    space: dict[str, Any] = {
        "torch": torch, "Parameter": nn.Parameter, "module_dict": {}, "q_model_slice": model,
    }  # fmt: skip
    with torch.no_grad():
        exec(compile(ast.Module(loops, []), FILE, "exec"), space)
    return quantizer.zero_point


def difference(mine: Tensor, other: Tensor) -> float:
    return float(((mine - other).abs().max() / other.abs().max()).detach())


def compared(folder: Path, bits: int) -> dict:
    model, x = case()
    original, other = copy.deepcopy(model), copy.deepcopy(model)
    [site] = find_sites(model, [((x,), {})])
    apply_change(model, site, reparametrized(site.low, site.high, bits))
    zero_point = theirs(folder, other, site.low, site.high, bits)
    with torch.no_grad():
        wanted = original(x)
        errors = {"ours": difference(model(x), wanted), "theirs": difference(other(x), wanted)}
    norm, reader = (model[0].norm1, model[0].attn.qkv), (other[0].norm1, other[0].attn.qkv)
    return {
        "bits": bits,
        "gain of the norm differs by": difference(norm[0].weight, reader[0].weight),
        "weight of the reader differs by": difference(norm[1].weight, reader[1].weight),
        "function differs by, theirs": errors["theirs"],
        "function differs by, ours": errors["ours"],
        "zero point left, theirs": float(zero_point),
        "zero point left, ours": 0.0,
    }


def main() -> None:
    """Prints how far both rewrites are apart."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder = official(REPOSITORY, COMMIT)
    rows = [compared(folder, bits) for bits in ((4,) if arguments.quick else (3, 4, 6, 8))]
    print_table(f"Ranges of channels; {REPOSITORY} at {COMMIT[:12]}", rows)
    content = {"benchmark": "side_by_side/channel_clip", "commit": COMMIT, "rows": rows}
    write_json(arguments.output, content)


if __name__ == "__main__":
    main()
