"""What is measured of one arm: scores, sizes, FINN's estimates, and time on this CPU.

Every number says of what it is: look-up tables, block RAMs and cycles are FINN's estimates for its
HLS units, no measurement of a device; milliseconds are ONNX Runtime's on the CPU of the run.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from brevitas_axe.applications.wildfire import latency
from brevitas_axe.applications.wildfire.arms import Arm, Case, scores
from brevitas_axe.export import check_finn, export_qonnx, mend_for_finn
from brevitas_axe.methods.cost import choose_foldings, full_plan, layer_shapes, resource_table
from brevitas_axe.model.running import dequantized, first_input, hooked
from brevitas_axe.plan import Plan
from brevitas_axe.proof.certificate import Certificate, certify_file
from brevitas_axe.run.costs import costs_of
from brevitas_axe.run.saving.save import Result, left_out, save

# Endings of the file of an arm and of its proof.
CERTIFIED = (".onnx", ".certificate.json")


class _Autocast(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.model(x).float()


def measured(case: Case, arm: Arm) -> dict[str, Any]:
    """Makes an arm and measures it; what it leaves on the disk is in `case.place(arm)`.

    Returns:
        The scores of the test split; "bits" of weights and inputs; "size", bytes of weights, and
        "memory", with the largest input of a layer; "bops"; "lut", "bram", "cycles" and "fps" of
        FINN's estimates; "accumulator", the widest that is proven necessary; "proven"; "refused",
        what FINN would refuse; "p50" and "p95" in milliseconds; "seconds" that it took.
    """
    start = time.perf_counter()
    found = _in_float(case, arm) if arm.make is None else _quantized(case, arm, arm.make(case))
    return {**found, "seconds": round(time.perf_counter() - start, 1)}


def _in_float(case: Case, arm: Arm) -> dict[str, Any]:
    bits = 16 if arm.autocast else 32
    model = _Autocast(case.model) if arm.autocast else case.model
    layers, size = _layers(model), 4 * sum(p.numel() for p in model.parameters())
    counts = _inputs(model, layers, case.frame)
    macs = 0

    def count(name: str, layer: Any, args: tuple, kwargs: dict, output: Tensor) -> None:
        nonlocal macs
        macs += output.numel() * layer.weight[0].numel()

    with hooked(layers, after=count), torch.no_grad():
        model(case.frame)
    found = {
        "bits": "bfloat16" if arm.autocast else "float32",
        **scores(model, case.pictures.test),
        "size": size,
        "memory": size + max(counts.values()) * bits // 8,
        "bops": macs * bits**2,
    }
    if arm.timed and case.seed == 0:
        file = case.place(arm).with_suffix(".onnx")
        latency.write_float(model, case.frame, file)
        found["p50"], found["p95"] = latency.percentiles(file, case.frame.numpy())
    return found


def _quantized(case: Case, arm: Arm, result: Result) -> dict[str, Any]:
    place = case.place(arm)
    save(result, place)
    mended, _ = mend_for_finn(result.model, case.frame)
    result = replace(result, model=mended)
    file = place.with_suffix(CERTIFIED[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ties that are left are findings of the check
        export_qonnx(mended, case.frame, file, target="qonnx")
    certificate = certify_file(file, plan=result.plan)
    certificate.save(place.with_suffix(CERTIFIED[1]))
    refused = [finding.sentence for finding in check_finn(file)]
    found = {
        "bits": _bits(result.plan),
        **scores(mended, case.pictures.test),
        **_costs(case, result, certificate),
        "accumulator": max(entry.width or 0 for entry in certificate.judged),
        "proven": certificate.ok,
        "refused": refused,
    }
    if arm.timed and case.seed == 0:
        qdq = file.with_suffix(".qdq.onnx")
        latency.write_qdq(file, qdq)
        found["p50"], found["p95"] = latency.percentiles(qdq, case.frame.numpy())
    return found


def _costs(case: Case, result: Result, certificate: Certificate) -> dict[str, Any]:
    """Costs of one frame; FINN gives every accumulator the bits that its weights need."""
    exclude = left_out(result)
    plan = full_plan(result.model, (case.frame,), exclude=exclude, plan=result.plan)
    needed = {entry.layer: entry.width for entry in certificate.judged}
    plan = Plan({n: replace(p, accumulator=needed[n]) for n, p in plan.layers.items()})
    shapes = layer_shapes(result.model, (case.frame,), exclude=exclude)
    foldings = choose_foldings(shapes, plan, case.settings.cycles)
    hardware = resource_table(plan, shapes, foldings).planned
    costs, _ = costs_of(replace(result, plan=plan), ("memory", "bops"))
    size = costs["memory"].total
    inputs = _inputs(result.model, _layers(result.model), case.frame)
    largest = max(inputs[name] * (p.input_bits or 0) / 8 for name, p in plan.layers.items())
    return {
        "size": size,
        "memory": size + largest,
        "bops": costs["bops"].total,
        "lut": hardware.lut,
        "bram": hardware.bram,
        "cycles": hardware.cycles,
        "fps": case.settings.clock * 1e6 / hardware.cycles,
    }


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    kinds = nn.Conv2d, nn.Linear
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, kinds)}


def _inputs(model: nn.Module, layers: dict[str, nn.Module], frame: Tensor) -> dict[str, int]:
    """Numbers that arrive at every layer for one frame."""
    found: dict[str, int] = {}

    def note(name: str, _: Any, args: tuple, kwargs: dict) -> None:
        found[name] = dequantized(first_input(args, kwargs)).numel()

    with hooked(layers, before=note), torch.no_grad():
        model(frame)
    return found


def _bits(plan: Plan) -> str:
    """W4A8, or W2–4A4–8 where layers differ; the camera's 8 bits are not counted."""
    layers = list(plan.layers.values())
    parts = [[p.weight_bits for p in layers], [p.input_bits for p in layers[1:]]]
    return "".join(
        f"{letter}{_range([bits for bits in part if bits is not None])}"
        for letter, part in zip("WA", parts, strict=True)
    )


def _range(bits: list[int]) -> str:
    least, most = min(bits), max(bits)
    return f"{least}" if least == most else f"{least}–{most}"
