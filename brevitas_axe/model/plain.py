"""Checks and changes of a plain model, so that its layers can be given quantizers."""

from __future__ import annotations

from typing import Any

import torch
from brevitas.inject.enum import ScalingPerOutputType
from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.utils.parametrize import is_parametrized

from brevitas_axe.errors import UnsupportedLayer
from brevitas_axe.model.layers import PLAIN_LAYERS
from brevitas_axe.model.transformer_layers import computes_alone, in_parts


def plain_classes(model: nn.Module) -> nn.Module:
    """Layers get the class that Brevitas knows, in place.

    Those of a subclass that computes the same as its base class get the base class; torch's own
    transformer layers one that calls its parts.
    """
    for module in model.modules():
        if acts_as_linear(module):
            module.__class__ = nn.Linear
        for kind in PLAIN_LAYERS:
            own = type(module)
            methods = ("forward", "_conv_forward", "_output_padding")
            same = all(getattr(own, m, None) is getattr(kind, m, None) for m in methods)
            if (
                isinstance(module, kind)
                and own is not kind
                and same
                and not is_parametrized(module)
            ):
                part: Any = module
                part.__class__ = kind
    return in_parts(model)


def acts_as_linear(module: nn.Module) -> bool:
    """Whether a subclass of nn.Linear has a forward of its own that computes the same.

    Such as Falcon's. It holds nothing but weight and bias, and is compared on random vectors of
    several sizes.
    """
    kind = type(module)
    if not isinstance(module, nn.Linear) or kind.forward is nn.Linear.forward:
        return False
    own = [*module.children(), *module.buffers()]
    if own or {*module._parameters} - {"weight", "bias"} or module.weight.is_meta:
        return False
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, module.in_features, generator=generator)
    x = (x * torch.tensor([1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0])[:, None]).to(module.weight)
    with torch.no_grad():
        wanted = nn.functional.linear(x, module.weight, module.bias)
        try:
            found = module(x)
        except Exception:
            return False
    if not isinstance(found, torch.Tensor) or found.shape != wanted.shape:
        return False
    # Products and the bias may be rounded one after the other.
    size = wanted.abs().amax(1, keepdim=True)
    return bool(((found - wanted).abs() <= 8 * torch.finfo(wanted.dtype).eps * size).all())


def check_open(model: nn.Module) -> None:
    """Refuses a model that hides its layers behind something else.

    Raises:
        UnsupportedLayer: scripted or traced by torch.jit, compiled, exported by torch.export, or
            wrapped to run on several devices.
    """
    kind = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        problem = "is TorchScript, whose layers cannot be exchanged; give the model it was made of"
    elif kind == "OptimizedModule":  # importing its class takes a second
        problem = "is compiled; give the model itself, model._orig_mod, and compile the result"
    elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        problem = "runs copies of a model; give the model itself, model.module"
    elif "eval" in vars(model):  # replaced by torch.export
        problem = "is a program of torch.export, which has no layers; give the model it was made of"
    else:
        return
    raise UnsupportedLayer(f"the model, a {kind}, {problem}.")


def check_plainly_written(model: nn.Module) -> None:
    """Refuses layers whose weights are computed elsewhere, which no quantizer can replace.

    Raises:
        UnsupportedLayer: pruned, weight- or spectral-normalized layers, classes derived from
            torch's own transformer layers, or a layer that is the whole model.
    """
    if isinstance(model, PLAIN_LAYERS):
        raise UnsupportedLayer(
            f"the model is a single {type(model).__name__}, which cannot be exchanged in itself; "
            "give nn.Sequential(model)."
        )
    for name, module in model.named_modules():
        hooks = [type(hook).__name__ for hook in module._forward_pre_hooks.values()]
        if is_parametrized(module):
            tensor = next(iter(vars(module.parametrizations)["_modules"]))
            way = f"torch.nn.utils.parametrize.remove_parametrizations(layer, '{tensor}')"
        elif any(key.endswith("_mask") and f"{key[:-5]}_orig" in module._parameters
                 for key in module._buffers):  # fmt: skip
            way = "torch.nn.utils.prune.remove(layer, 'weight')"
        elif "WeightNorm" in hooks or "SpectralNorm" in hooks:
            kind = "weight" if "WeightNorm" in hooks else "spectral"
            way = f"torch.nn.utils.remove_{kind}_norm(layer)"
        elif computes_alone(module):
            raise UnsupportedLayer(
                f"layer '{name}', a {type(module).__name__}, is derived from torch's own "
                "transformer layer, which reads the weights of its parts without their quantizers; "
                "use torch's class itself, or write it with nn.MultiheadAttention and nn.Linear."
            )
        else:
            continue
        raise UnsupportedLayer(
            f"the weights of layer '{name}' are computed from others in every forward; make them "
            f"plain first, by {way}."
        )


def check_transposed(model: nn.Module, weight_quant: type) -> None:
    """Refuses grouped transposed convolutions: Brevitas 0.12 gives their scales a wrong shape."""
    kind: Any = weight_quant
    per_tensor = getattr(kind, "scaling_per_output_type", None) == ScalingPerOutputType.TENSOR
    for name, module in model.named_modules():
        if isinstance(module, _ConvTransposeNd) and module.groups > 1 and not per_tensor:
            raise UnsupportedLayer(
                f"layer '{name}' is a transposed convolution in {module.groups} groups, which "
                "Brevitas cannot give a weight scale per channel; make it a Brevitas layer with "
                "Int8WeightPerTensorFloatAXE, or write it as one group."
            )
