"""Accumulator-aware quantization for Brevitas: overflow made impossible, proven, exported."""

from importlib import import_module

_HOME = {
    "AxeError": "errors",
    "Certificate": "certify",
    "Int8WeightPerChannelFixedPointAXE": "quantizers",
    "Int8WeightPerChannelFloatAXE": "quantizers",
    "Int8WeightPerTensorFixedPointAXE": "quantizers",
    "Int8WeightPerTensorFloatAXE": "quantizers",
    "LayerPrecision": "plan",
    "Plan": "plan",
    "QuantizeResult": "quantize",
    "apply_plan": "apply",
    "axe_gpfq_mode": "ptq",
    "axe_gptq_mode": "ptq",
    "axe_qronos_mode": "ptq",
    "certify": "certify",
    "certify_file": "certify",
    "emulate": "emulate",
    "export_qonnx": "export",
    "quantize": "quantize",
}

__all__ = list(_HOME)


def __getattr__(name: str):
    # Looked up on first use, so that `brevitas-axe --help` does not wait for torch.
    if name not in _HOME:
        raise AttributeError(f"module 'brevitas_axe' has no attribute '{name}'")
    value = getattr(import_module(f"brevitas_axe.{_HOME[name]}"), name)
    globals()[name] = value
    return value
