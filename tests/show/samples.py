"""A certificate, a plan and arms to draw."""

from __future__ import annotations

from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.proof.certificate import Certificate, DotProduct


def entry(name: str, **changes) -> DotProduct:
    fields = {
        "name": name, "op": "Conv", "inputs": 72, "weight_type": "INT4", "input_type": "UINT4",
        "minimum": -1800, "maximum": 2000, "width": 12, "target": 12, "proven": True,
    }  # fmt: skip
    return DotProduct(**{**fields, **changes})


def certificate(*entries: DotProduct, excluded: tuple[str, ...] = ()) -> Certificate:
    return Certificate(entries, excluded=excluded, subject="model.onnx")


ARM = {
    "name": "ours", "weight": 4, "input": 4, "accumulator": 12, "tile": None, "accuracy": 0.975,
    "proven_width": 12, "overflow_free": True, "kind": "ours", "note": "",
}  # fmt: skip
FLOAT = {"name": "float", "accuracy": 0.984, "kind": "reference"}
PLAN = Plan({"conv": LayerPrecision(weight=4, input=4, accumulator=12)})
