"""Brevitas's graph quantization, of graphs that hold what Brevitas does not know.

What only moves numbers stays on its grid (`moves`). Sums get one scale where there is one (`sums`).
Every other operation runs on plain numbers, which are quantized again where a dot product reads
them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from brevitas import config
from brevitas import nn as qnn
from brevitas.graph.quantize import (
    COMPUTE_LAYER_MAP,
    QUANT_ACT_MAP,
    QUANT_IDENTITY_MAP,
    UNSIGNED_ACT_TUPLE,
)
from brevitas.graph.quantize_impl import (
    act_handler,
    add_output_quant_handler,
    inp_placeholder_handler,
    layer_handler,
)
from brevitas.graph.standardize import DisableLastReturnQuantTensor
from brevitas.quant import Int8ActPerTensorFloat, Uint8ActPerTensorFloat
from brevitas.quant_tensor import IntQuantTensor
from torch import Tensor, nn

from brevitas_axe.errors import UnsupportedLayer
from brevitas_axe.model.gates import gates_as_modules
from brevitas_axe.model.layers import DOT_PRODUCTS, find_unquantized
from brevitas_axe.model.moves import moves_as_modules
from brevitas_axe.model.nodes import called_module, inputs_of, is_node
from brevitas_axe.model.quantizers.operands import scaling_parts
from brevitas_axe.model.quantizers.relu6 import QuantReLU6
from brevitas_axe.model.rewrites import differ, few, tensors_in
from brevitas_axe.model.running import Batch, Graph, first_input, float_twin, hooked, tensor_of
from brevitas_axe.model.sizes import set_sizes_aside
from brevitas_axe.model.sums import (
    aligned,
    calls_of_quantizers,
    calls_on_one_grid,
    is_sum,
    never_negative,
    refined,
    with_aligned_sums,
)
from brevitas_axe.model.transformer_layers import joins_tensors

_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
# With quantizers off, outputs may differ from the model's by so much of the largest: rounding.
_FLOAT_CHANGE = 1e-2
_ACTIVATIONS = {
    **QUANT_ACT_MAP,
    # Brevitas makes a ReLU of it, or fixes its range at 6 whatever arrives.
    nn.ReLU6: (QuantReLU6, {"act_quant": Uint8ActPerTensorFloat, "return_quant_tensor": True}),
}
# Modules that compute on plain numbers: what they give is on no grid.
_OF_VALUES = (
    nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm, nn.RMSNorm, nn.GELU,
    nn.SiLU, nn.Mish, nn.Hardswish, nn.ELU, nn.Softmax,
)  # fmt: skip
# What QuantTensors know by themselves, beside sums.
_OF_QUANT_TENSORS = (
    torch.flatten, torch.reshape, torch.transpose, getattr, "view", "reshape", "flatten",
    "size", "dim",
)  # fmt: skip


def quantized_graph(
    graph: Graph,
    batches: Sequence[Batch],
    weight: dict[str, Any],
    input_bits: int,
    model_input_bits: int,
    fine_sums: bool = True,
) -> Graph:
    """A graph with quantizers, not calibrated, that computes what it did while they are off.

    Args:
        graph: of a float model, as `rewrites.rewritten` gives it; changed.
        batches: calibration batches, which show where nothing negative arrives.
        weight: options of all weights.
        input_bits: of all activations but the model's inputs.
        model_input_bits: of these.
        fine_sums: see `sums.refined`.

    Raises:
        UnsupportedLayer: something is left that has no quantizer, or the function is another.
        Exception: whatever tracing and Brevitas meet.
    """
    sample = batches[0]
    with torch.no_grad():
        expected = tensors_in(graph(*sample[0], **sample[1]))
    identities = with_bits(QUANT_IDENTITY_MAP, input_bits)
    acts = with_bits(_ACTIVATIONS, input_bits)
    quantized = moves_as_modules(gates_as_modules(graph))
    put_back = set_sizes_aside(quantized, few(sample))
    with missing_keys_ignored():
        quantized = _with_quantizers(quantized, sample, identities, acts, weight)
    _run_on_values(quantized, acts)
    put_back(quantized)
    _quantize_all_inputs(quantized, sample, input_bits)
    lowest = lowest_inputs(quantized, batches)
    _fit_ends(quantized, lowest, model_input_bits)
    _fit_signs(quantized, lowest, input_bits)
    if fine_sums:
        refined(quantized, input_bits)
    with torch.no_grad():
        outputs = tensors_in(float_twin(quantized)(*sample[0], **sample[1]))
    left = find_unquantized(quantized)
    if left:
        raise UnsupportedLayer(f"layer '{left[0]}' is inside a module that tracing takes as one")
    hard = any(isinstance(m, qnn.QuantHardTanh) for m in quantized.modules())  # clips by quantizing
    if not hard and differ(expected, outputs) > _FLOAT_CHANGE:
        raise UnsupportedLayer("Brevitas's quantized graph computes another function")
    return quantized


def _with_quantizers(
    graph: Graph, sample: Batch, identities: dict, acts: dict, weight: dict
) -> Graph:
    """The steps of Brevitas's own `quantize`, but for sums and for inputs that are no floats."""
    graph = inp_placeholder_handler(graph, identities["signed"])
    _free_whole_inputs(graph, sample)
    graph.graph.eliminate_dead_code()  # quantizers of inputs that are not there
    graph.recompile()
    graph = act_handler(graph, layer_map=acts)
    graph = add_output_quant_handler(graph, identities, acts, UNSIGNED_ACT_TUPLE)
    for node in calls_of_quantizers(graph):  # Brevitas mistakes the sign of some sums
        behind_sum = is_sum(node.args[0])
        if behind_sum and not never_negative(graph, node.args[0]):
            quantizer, options = identities["signed"]
            graph.set_submodule(node.target, quantizer(**options))
    # Before layers are, so that every quantizer that a sum needs is there and shared.
    graph = with_aligned_sums(graph, identities, acts)
    graph = layer_handler(
        graph,
        # A layer that is called again has its quantizers by then.
        layer_map={**with_weights(COMPUTE_LAYER_MAP, weight, {}), **dict.fromkeys(DOT_PRODUCTS)},
        quant_identity_map=identities,
        quant_act_map=acts,
        unsigned_act_tuple=UNSIGNED_ACT_TUPLE,
        requantize_output=True,
    )
    _free_modules_on_values(graph)
    return DisableLastReturnQuantTensor().apply(graph)


def _free_modules_on_values(graph: Graph) -> None:
    """Recurrent layers take plain numbers; what gives several results is not quantized as one."""
    for node in list(graph.graph.nodes):
        module = called_module(graph, node)
        if not isinstance(module, (*_RECURRENT, qnn.QuantMultiheadAttention)):
            continue
        _without_quantizers_behind(graph, node)
        if isinstance(module, _RECURRENT):
            _read_values(graph, node)
    graph.recompile()


def _without_quantizers_behind(graph: Graph, node: Graph) -> None:
    """Takes away the quantizers that read a node as it is."""
    for user in list(node.users):
        if isinstance(called_module(graph, user), qnn.QuantIdentity):
            _take_out(graph, user)


def _take_out(graph: Graph, quantizer: Graph) -> None:
    """Takes one call of a quantizer out of a graph: what read it reads what it was given."""
    quantizer.replace_all_uses_with(quantizer.args[0])
    graph.graph.erase_node(quantizer)


def _read_values(graph: Graph, node: Graph) -> None:
    """Takes the numbers out of the QuantTensors that a node reads."""
    for source in list(node.all_input_nodes):
        with graph.graph.inserting_before(node):
            node.replace_input_with(source, graph.graph.call_function(tensor_of, (source,)))


def _free_whole_inputs(graph: Graph, sample: Batch) -> None:
    """Takes quantizers away from indices, truth values and whole numbers among the inputs."""
    for node, value in inputs_of(graph, sample).items():
        if isinstance(value, Tensor) and not value.is_floating_point():
            _without_quantizers_behind(graph, node)
    graph.recompile()


@contextmanager
def missing_keys_ignored() -> Iterator[None]:
    """As Brevitas gives layers quantizers: their states hold more than those of plain layers."""
    before = config.IGNORE_MISSING_KEYS
    config.IGNORE_MISSING_KEYS = True
    try:
        yield
    finally:
        config.IGNORE_MISSING_KEYS = before


def with_bits(layer_map: dict, bits: int) -> dict:
    """Brevitas's map of activation quantizers, with so many bits."""
    return {
        kind: None if entry is None else (entry[0], {**entry[1], "bit_width": bits})
        for kind, entry in layer_map.items()
    }


def with_weights(layer_map: dict, weight: dict, inputs: dict) -> dict:
    """Brevitas's layer map with our weights, float biases and without recurrent layers."""
    result = {}
    for kind, entry in layer_map.items():
        if kind in (nn.LSTM, nn.RNN):
            continue
        if entry is None:
            result[kind] = None
        elif kind is nn.MultiheadAttention:
            parts = {
                f"{part}_{key}": value
                for part in ("in_proj", "out_proj")
                for key, value in {**weight, **inputs, "bias_quant": None}.items()
            }
            # Brevitas evaluates a lambda for every module.
            parts["packed_in_proj"] = lambda attention: not joins_tensors(attention)
            result[kind] = (entry[0], {**entry[1], **parts})
        else:
            result[kind] = (entry[0], {**entry[1], **weight, **inputs, "bias_quant": None})
    return result


def _run_on_values(model: Graph, acts: dict) -> None:
    """Takes the numbers out of QuantTensors in front of what does not know these."""
    for node in list(model.graph.nodes):
        if isinstance(called_module(model, node), _OF_VALUES):
            _read_values(model, node)
        if node.op not in ("call_function", "call_method") or node.target in _OF_QUANT_TENSORS:
            continue
        if node.target is tensor_of or (is_sum(node) and aligned(model, node, acts)):
            continue
        _read_values(model, node)
    _read_before_rounding(model)
    for node in calls_of_quantizers(model):
        if node.args[0].op != "placeholder" and _read_as_values(model, node):  # it would only round
            _take_out(model, node)
    model.recompile()


def _read_before_rounding(model: Graph) -> None:
    """What takes the numbers out of a quantized sum of plain numbers takes those of the sum.

    So a stream that stays in float is rounded in front of dot products alone.
    """
    for node in calls_of_quantizers(model):
        source = node.args[0]
        if is_sum(source) and all(read.target is tensor_of for read in source.all_input_nodes):
            for user in [user for user in node.users if user.target is tensor_of]:
                user.replace_input_with(node, source)


def _read_as_values(model: Graph, node: Graph) -> bool:
    """Whether all that reads a node takes its numbers, at once or once they are moved."""

    def takes(user: Graph) -> bool:
        moves = isinstance(called_module(model, user), (nn.Identity, nn.Dropout))
        moves |= user.op.startswith("call_") and user.target in _OF_QUANT_TENSORS
        return user.target is tensor_of or (moves and _read_as_values(model, user))

    return all(map(takes, node.users))


def _quantize_all_inputs(model: Graph, sample: Batch, bits: int) -> None:
    """A quantizer in front of every call of a layer at which plain numbers arrive."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, DOT_PRODUCTS)}
    returning = {name for name, m in layers.items() if getattr(m, "return_quant_tensor", False)}
    plain: dict[str, list[bool]] = {name: [] for name in layers}

    def note(name: str, layer: Any, args: tuple, kwargs: dict) -> None:
        known = isinstance(first_input(args, kwargs), IntQuantTensor)
        plain[name].append(not known)
        if name in returning:
            layer.return_quant_tensor = known  # it would refuse plain numbers

    def restore(name: str, layer: Any, *_: Any) -> None:
        if name in returning:
            layer.return_quant_tensor = True

    with hooked(layers, note, restore), torch.no_grad():
        model(*sample[0], **sample[1])
    made: dict[Graph, Graph] = {}
    for node in list(model.graph.nodes):
        # Calls are in the order of nodes.
        if node.op != "call_module" or not plain.get(node.target) or not plain[node.target].pop(0):
            continue
        source = node.args[0]
        if source not in made:
            name = f"{node.name}_own_quant"
            options = {"act_quant": Int8ActPerTensorFloat, "bit_width": bits}
            model.add_submodule(name, qnn.QuantIdentity(**options, return_quant_tensor=True))
            with model.graph.inserting_before(node):
                made[source] = model.graph.call_module(name, (source,))
        node.replace_input_with(source, made[source])
    model.recompile()


def lowest_inputs(model: nn.Module, batches: Sequence[Batch]) -> dict[str, float]:
    """The lowest number that arrives at each module while every quantizer is off."""
    twin = float_twin(model)
    lowest: dict[str, float] = {}

    def note(name: str):
        def hook(_: nn.Module, args: tuple, kwargs: dict) -> None:
            x = tensor_of(first_input(args, kwargs)) if args or kwargs else None
            if isinstance(x, Tensor) and x.numel():
                lowest[name] = min(lowest.get(name, math.inf), float(x.min()))

        return hook

    for name, module in twin.named_modules():
        if hasattr(module, "input_quant") or hasattr(module, "act_quant"):
            module.register_forward_pre_hook(note(name), with_kwargs=True)
    with torch.no_grad():
        for args, kwargs in batches:
            twin(*args, **kwargs)
    return lowest


def _fit_ends(model: Graph, lowest: dict[str, float], input_bits: int) -> None:
    """Unsigned model inputs where no sample is negative; plain outputs, however nested."""
    for node in calls_of_quantizers(model):
        if node.args[0].op != "placeholder" and all(user.op == "output" for user in node.users):
            _take_out(model, node)
    for names in _inputs_on_one_grid(model):
        kind = {"bit_width": input_bits, "return_quant_tensor": True}
        # A module of several names is noted under one of them, for all.
        if min((lowest[name] for name in names if name in lowest), default=-1.0) >= 0:
            kind["act_quant"] = Uint8ActPerTensorFloat
        quantizer = qnn.QuantIdentity(**kind)
        for name in names:
            model.set_submodule(name, quantizer)
    (end,) = (node for node in model.graph.nodes if node.op == "output")
    last = end.args[0]
    module = called_module(model, last) if is_node(last) else None
    if not hasattr(module, "return_quant_tensor"):  # nested, or no layer: a sum, a slice
        _read_values(model, end)
    model.recompile()
    model.delete_all_unused_submodules()
    DisableLastReturnQuantTensor().apply(model)
    for node in calls_of_quantizers(model):
        if any(user.op == "call_module" for user in node.users):  # it may be the last one as well
            model.get_submodule(node.target).return_quant_tensor = True


def _inputs_on_one_grid(model: Graph) -> list[list[str]]:
    """Names of the quantizers of inputs, those together that share a scale."""
    return [
        list(dict.fromkeys(node.target for node in nodes))
        for nodes in calls_on_one_grid(model)
        if all(node.args[0].op == "placeholder" for node in nodes)
    ]


def _fit_signs(model: Graph, lowest: dict[str, float], bits: int) -> None:
    """Unsigned quantizers in front of layers where no number that arrives is negative, else signed.

    Brevitas's are signed behind pooling, whatever was pooled, and unsigned behind the sum of a
    signed quantizer and an unsigned activation. What residual branches share, and so aligns their
    scales, stays as it is.
    """
    shared = Counter(id(part) for module in model.modules() for part in scaling_parts(module))
    for node in calls_of_quantizers(model):
        module = model.get_submodule(node.target)
        if node.args[0].op == "placeholder":
            continue
        alone = all(shared[id(part)] == 1 for part in scaling_parts(module))
        signed = lowest.get(node.target, -1.0) < 0
        if alone and module.act_quant.is_signed != signed:
            kind = Int8ActPerTensorFloat if signed else Uint8ActPerTensorFloat
            options = {"bit_width": bits, "return_quant_tensor": module.return_quant_tensor}
            model.set_submodule(node.target, qnn.QuantIdentity(act_quant=kind, **options))
