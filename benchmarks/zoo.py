"""Public architectures quantized, proven and exported: a process and a line for each.

    pip install --no-deps --target FOLDER pytorchcv
    python benchmarks/zoo.py --packages FOLDER [--models resnet20_cifar10 bert] [--output FILE]

Convolutional nets are those of the package pytorchcv, transformers those of transformers by a small
configuration. All weights are random, so that nothing has to be loaded. A random net whose batch
norms were never trained may not be stable in float, so the statistics of its batch norms are
estimated again on the images (as they are in training, by forwards alone); the column "float" is
what noise of one level of 8 bits in the image, or in embeddings, does to the float net. Images are
mosaics of those of CIFAR-10; ImageNet nets get smaller ones than they were made for, and average
over what is left.

Columns: quantized on the graph, block by block, or layer by layer and why; the error of the
outputs at W8A8 without a limit, |q - f| / |f| over images that calibration did not see, and beside
it that of a plain simulation, which rounds the same layers to nearest; at W4A8 and P bits, whether
the model is certified, its QONNX file proven, and of how many images file and model agree; seconds
of solve and export. Of transformers the linear layers are exported, a file each, and every file is
compared with its layer. "By quantizer" are images for which float rounding turned single integers:
outputs differ by what follows, but every quantizer of the file gives the model's integers, but for
at most one in a thousand, where those before it have the model's.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import time
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import transformers
from records import DATA, print_table, write_json
from torch import Tensor, nn

from brevitas_axe import (
    BlocksResult,
    certify_file,
    emulate,
    export_layers,
    export_qonnx,
    quantize,
)
from brevitas_axe.export.comparison import check_output

CIFAR = ("resnet20_cifar10", "preresnet20_cifar10", "seresnet20_cifar10", "densenet40_k12_cifar10",
         "nin_cifar10", "shakeshakeresnet20_2x16d_cifar10")  # fmt: skip
# Image size by net: the least that its strides and windows leave something of.
IMAGENET = {
    "squeezenet_v1_1": 64, "mobilenet_wd4": 64, "mobilenetv2_wd4": 64, "mobilenetv3_small_wd2": 64,
    "shufflenet_g3_wd4": 64, "shufflenetv2_wd2": 64, "ghostnet": 64, "mnasnet_small": 64,
    "efficientnet_b0": 64, "regnetx002": 64, "resnet18_wd4": 64, "dpn68": 64, "peleenet": 64,
    "xception": 96, "inceptionv3": 96, "hrnet_w18_small_v1": 64,
}  # fmt: skip
_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_TEXT = {**_SMALL, "vocab_size": 99, "intermediate_size": 64, "max_position_embeddings": 64}
_LLAMA = {**_TEXT, "num_key_value_heads": 2, "pad_token_id": 0}
_VIT = {**_SMALL, "intermediate_size": 64, "image_size": 32, "patch_size": 8}
# Name → (configuration, class, its options).
TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("ViTConfig", "ViTForImageClassification", _VIT),
    "deit": ("DeiTConfig", "DeiTForImageClassification", _VIT),
    "swin": ("SwinConfig", "SwinForImageClassification", {
        "image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4],
        "window_size": 4}),
    "convnext": ("ConvNextConfig", "ConvNextForImageClassification", {
        "image_size": 32, "hidden_sizes": [16, 32], "depths": [2, 2], "num_stages": 2}),
    "mobilevit": ("MobileViTConfig", "MobileViTForImageClassification", {
        "image_size": 64, "hidden_sizes": [24, 32, 40], "neck_hidden_sizes": [8, 8, 16, 24, 32, 40,
        64]}),
    "segformer": ("SegformerConfig", "SegformerForSemanticSegmentation", {
        "depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32], "decoder_hidden_size": 32,
        "num_attention_heads": [1, 2, 2, 4]}),
    "bert": ("BertConfig", "BertForSequenceClassification", _TEXT),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {
        "vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "opt": ("OPTConfig", "OPTForCausalLM", {
        **_TEXT, "ffn_dim": 64, "word_embed_proj_dim": 32, "pad_token_id": 0}),
    "llama": ("LlamaConfig", "LlamaForCausalLM", _LLAMA),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", _LLAMA),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", {**_LLAMA, "head_dim": 8}),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", _LLAMA),
    "bloom": ("BloomConfig", "BloomForCausalLM", {
        "vocab_size": 99, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", {
        **_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}),
}  # fmt: skip
IMAGES = {"vit", "deit", "swin", "convnext", "mobilevit", "segformer"}
_FALLEN = " is quantized layer by layer"
_FILE_AGREES = 1e-4


def images(count: int, size: int) -> Tensor:
    """CIFAR-10 images in [0, 1], or mosaics of them: [count, 3, size, size].

    Enlarged images are smooth, and batch norms of random filters then enlarge what rounding did.
    """
    with np.load(DATA / "cifar10_jpeg_subset.npz") as file:
        tiles = torch.from_numpy(file["train_images"]).permute(0, 3, 1, 2)
    side = -(-size // 32)
    found = tiles[: count * side * side].float() / 255
    rows = found.reshape(count, side, side, 3, 32, 32).permute(0, 3, 1, 4, 2, 5)
    return rows.reshape(count, 3, 32 * side, 32 * side)[:, :, :size, :size].contiguous()


def convolutional(name: str, size: int) -> nn.Module:
    """A net of pytorchcv with random weights."""
    operators = types.ModuleType("torchvision.ops")
    vars(operators)["DeformConv2d"] = nn.Module  # of a video model that is imported beside it
    sys.modules.setdefault("torchvision", types.ModuleType("torchvision"))
    sys.modules.setdefault("torchvision.ops", operators)
    from pytorchcv.model_provider import get_model  # type: ignore

    torch.manual_seed(0)
    net = get_model(name, pretrained=False).eval()
    _shrink_windows(net, images(1, size))
    _estimate_norms(net, images(64, size))
    return net


def _shrink_windows(net: nn.Module, x: Tensor) -> None:
    """Averages over more pixels than a smaller image has become averages over all of them."""

    def note(pool: nn.AvgPool2d, args: tuple) -> None:
        kernel = pool.kernel_size if isinstance(pool.kernel_size, int) else pool.kernel_size[0]
        pool.kernel_size = min(kernel, args[0].shape[2])

    pools = [m for m in net.modules() if isinstance(m, nn.AvgPool2d) and m.padding in (0, (0, 0))]
    handles = [pool.register_forward_pre_hook(note) for pool in pools]
    with torch.no_grad():
        net(x)
    for handle in handles:
        handle.remove()


def _estimate_norms(net: nn.Module, x: Tensor) -> None:
    """Batch norms with the statistics of what really arrives."""
    norms = [m for m in net.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for part in x.split(32):
            net(part)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def transformer(name: str) -> tuple[nn.Module, int]:
    """A small transformer with random weights, and the size of its images (0 for text)."""
    config, kind, options = TRANSFORMERS[name]
    torch.manual_seed(0)
    made = getattr(transformers, config)(**options)
    if hasattr(made, "initializer_range"):
        made.initializer_range = 0.2  # random weights of usual size leave attention indifferent
    net, size = getattr(transformers, kind)(made).eval(), int(options.get("image_size", 64))
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:  # random factors of batch norms let what arrives vanish
        norm.reset_parameters()
    if norms:
        _estimate_norms(net, images(64, size))
    return net, size


def case(name: str, count: int, size: int | None) -> tuple[nn.Module, list, Any]:
    """Model, calibration batches and a batch to be judged by."""
    torch.manual_seed(0)
    if name in TRANSFORMERS:
        net, own = transformer(name)
        if name not in IMAGES:
            tokens = torch.randint(1, 99, (count + 8, 16))
            return (
                net,
                [{"input_ids": part} for part in tokens[8:].split(8)],
                {"input_ids": tokens[:8]},
            )
        x = images(count + 8, own)
        return net, [{"pixel_values": p} for p in x[8:].split(16)], {"pixel_values": x[:8]}
    size = size if size and name not in CIFAR else 32 if name in CIFAR else IMAGENET[name]
    x = images(count + 8, size)
    return convolutional(name, size), list(x[8:].split(16)), x[:8]


def outputs(net: nn.Module, batch: Any) -> Tensor:
    """What a net gives, one tensor."""
    with torch.no_grad():
        found = net(**batch) if isinstance(batch, dict) else net(batch)
    found = found["logits"] if isinstance(found, dict) else found
    return (found[0] if isinstance(found, tuple) else found).double()


def distance(found: Tensor, wanted: Tensor) -> float:
    """Relative to the wanted; 0 where both are the same, all zeros included."""
    return 0.0 if torch.equal(found, wanted) else float((found - wanted).norm() / wanted.norm())


def effect_of_noise(net: nn.Module, batch: Any, wanted: Tensor) -> float:
    """How far outputs move with noise of one level of 8 bits in images, or in embeddings."""
    if not isinstance(batch, dict):
        return distance(outputs(net, batch + (torch.rand_like(batch) - 0.5) / 255), wanted)
    if "pixel_values" in batch:
        x = batch["pixel_values"]
        noisy = {"pixel_values": x + (torch.rand_like(x) - 0.5) / 255}
        return distance(outputs(net, noisy), wanted)

    def add(_: nn.Module, __: tuple, output: Tensor) -> Tensor:
        return output + (torch.rand_like(output) - 0.5) * output.abs().max() / 127

    table = next(m for m in net.modules() if isinstance(m, nn.Embedding))
    handle = table.register_forward_hook(add)
    found = distance(outputs(net, batch), wanted)
    handle.remove()
    return found


def simulated(net: nn.Module, names: list[str], batches: list, batch: Any) -> Tensor:
    """Outputs with the same layers at 8 bits, written without the package: round to nearest.

    Weights have a scale per output channel; inputs one scale, for the largest of calibration.
    """
    twin = copy.deepcopy(net)
    modules: dict[str, Any] = dict(twin.named_modules())
    layers = [modules[name] for name in names if name in modules]
    largest = dict.fromkeys(layers, 0.0)

    def note(layer: Any, args: tuple) -> None:
        largest[layer] = max(largest[layer], float(args[0].abs().max()))

    def nearest(layer: Any, args: tuple) -> tuple:
        step = max(largest[layer], 1e-12) / (255 if float(args[0].min()) >= 0 else 127)
        return ((args[0] / step).round().clamp(-128, 255) * step, *args[1:])

    handles = [layer.register_forward_pre_hook(note) for layer in layers]
    for each in batches:
        outputs(twin, each)
    for handle in handles:
        handle.remove()
    for layer in layers:
        weight = layer.weight.data if not hasattr(layer, "nf") else layer.weight.data.t()
        rows = tuple(range(1, weight.dim()))
        step = weight.abs().amax(rows, keepdim=True).clamp_min(1e-12) / 127
        weight.copy_((weight / step).round() * step)
        layer.register_forward_pre_hook(nearest)
    return outputs(twin, batch)


def path_of(result: Any, told: list) -> str:
    """How a model was quantized."""
    if isinstance(result, BlocksResult):
        return f"blocks ({len(result.plan.layers)} layers)"
    fallen = [str(w.message) for w in told if _FALLEN in str(w.message)]
    if fallen:
        return "LAYERS: " + fallen[0].partition("as a whole: ")[2]
    return f"graph ({len(result.plan.layers)} layers)"


def row_of(name: str, count: int, size: int | None, bits: int, quality: str) -> dict[str, Any]:
    """The line of one net, as far as it gets."""
    row: dict[str, Any] = {"model": name}
    net, batches, judged = case(name, count, size)
    wanted = outputs(net, judged)
    row["float"] = effect_of_noise(net, judged, wanted)
    options: dict[str, Any] = {"quality": quality, "progress": False, "input_bit_width": 8}
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            start = time.perf_counter()
            result = quantize(net, batches, weight_bit_width=8, **options)
        row["path"] = path_of(result, told)
        row["w8a8"] = distance(outputs(result.model, judged), wanted)
        names = list(result.plan.layers)
        row["plain"] = distance(simulated(net, names, batches, judged), wanted)
        del result
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            start = time.perf_counter()
            result = quantize(
                net, batches, weight_bit_width=4, accumulator_bit_width=bits, **options
            )
        row["solve s"] = time.perf_counter() - start
        unproven = [entry.name for entry in result.certificate.entries if not entry.proven]
        row["certified"] = "yes" if result.certificate.ok else f"NO: {unproven[:2]}"
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if isinstance(result, BlocksResult):
                files = export_layers(result.model, folder, target="qonnx")
                row["export s"] = time.perf_counter() - start
                proven = [certify_file(file, bits).ok for file in files.values()]
                row["file"] = f"{sum(proven)}/{len(files)} proven"
                row["equal"] = f"{len(files)}/{len(files)} files"
            else:
                _export(result.model, judged, Path(folder) / "net.onnx", bits, row, start)
    except Exception as error:
        row["refused"] = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    return row


def _export(model: nn.Module, x: Any, path: Path, bits: int, row: dict, start: float) -> None:
    """Writes the file, proves it, and runs it beside the model."""
    samples = list((next(iter(x.values())) if isinstance(x, dict) else x).split(1))
    export_qonnx(model, samples[0], path, target="qonnx")
    row["export s"] = time.perf_counter() - start
    row["file"] = "proven" if certify_file(path, bits).ok else "NOT PROVEN"
    whole = by_quantizer = 0
    for sample in samples[:4]:
        wanted = outputs(model, sample)
        [found] = emulate(path, sample.numpy()).outputs.values()
        found = torch.from_numpy(found).double()
        if distance(found.reshape(wanted.shape), wanted) <= _FILE_AGREES:
            whole += 1
        else:
            check_output(model, (sample,), onnx.load(path))  # refuses what rounding cannot explain
            by_quantizer += 1
    row["equal"] = f"{whole}/{len(samples[:4])} images"
    if by_quantizer:
        row["equal"] += f", {by_quantizer} by quantizer"


def run_apart(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One net in a process of its own."""
    command = [sys.executable, __file__, "--one", name, "--images", str(arguments.images)]
    command += ["--bits", str(arguments.bits), "--quality", arguments.quality]
    command += ["--size", str(arguments.size)] if arguments.size else []
    command += ["--packages", str(arguments.packages)] if arguments.packages else []
    start = time.perf_counter()
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=arguments.timeout)
    except subprocess.TimeoutExpired:
        return {"model": name, "refused": f"took more than {arguments.timeout} s"}
    if ran.returncode or not ran.stdout.strip():
        end = next(iter(ran.stderr.strip().splitlines()[-1:]), "")
        return {"model": name, "refused": f"the process ended with {ran.returncode}: {end}"}
    row = json.loads(ran.stdout.strip().splitlines()[-1])
    return {**row, "all s": time.perf_counter() - start, "stderr": len(ran.stderr)}


def main() -> None:
    """Runs every net and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = [*CIFAR, *IMAGENET, *TRANSFORMERS]
    parser.add_argument("--models", nargs="+", default=known, metavar="NAME")
    parser.add_argument("--packages", type=Path, help="folder into which pytorchcv was installed")
    parser.add_argument("--images", type=int, default=64, help="images or texts to calibrate with")
    parser.add_argument("--size", type=int, help="of the images of ImageNet nets")
    parser.add_argument("--bits", type=int, default=16, help="of every accumulator")
    parser.add_argument("--quality", choices=["fast", "best"], default="fast")
    parser.add_argument("--timeout", type=float, default=900, help="seconds a net may take")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.packages:
        sys.path.insert(0, str(arguments.packages))
    if arguments.one:
        options = (arguments.images, arguments.size, arguments.bits, arguments.quality)
        print(json.dumps(row_of(arguments.one, *options)))
        return
    rows = []
    for name in arguments.models:
        rows.append(run_apart(name, arguments))
        print(json.dumps(rows[-1]), flush=True)
    print_table("zoo", rows)
    write_json(arguments.output, {"rows": rows})


if __name__ == "__main__":
    main()
