"""One scale for what is added or concatenated, as far as there is one.

Brevitas's way of it, `residual_handler`, goes on 9,999 times where sums of sums have no solution,
and then gives up the whole model. Here such a sum is left alone: it adds plain numbers, which are
quantized again where a dot product reads them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from brevitas import nn as qnn
from brevitas.graph.quantize import COMPUTE_LAYER_MAP, UNSIGNED_ACT_TUPLE, align_input_quant
from brevitas.graph.quantize_impl import (
    ADD_FNS,
    ADD_METHODS,
    SIGN_PRESERVING_MODULES,
    are_inputs_quantized_and_aligned,
    recursive_input_handler,
)
from torch.nn.modules.batchnorm import _BatchNorm

from brevitas_axe.model.apply.ranges import current_bits, write_bits
from brevitas_axe.model.nodes import called_module
from brevitas_axe.model.quantizers.operands import FEWEST, give_sign_bits, scaling_parts
from brevitas_axe.model.running import Graph, copied, tensor_of

# So often may one sum be aligned anew, because another one changed what it reads.
_ROUNDS = 4
# What a quantizer belongs behind, and turns into integers.
_ON_A_GRID = (*COMPUTE_LAYER_MAP, _BatchNorm)
# What changes neither numbers nor signs.
_MOVES = (torch.reshape, torch.flatten, torch.transpose)
_MOVE_METHODS = ("view", "reshape", "flatten", "t", "permute", "transpose")


def is_sum(node: Graph) -> bool:
    """Whether a node adds or concatenates."""
    if node.op == "call_method":
        return node.target in ADD_METHODS
    return node.op == "call_function" and node.target in (*ADD_FNS, torch.cat)


def never_negative(model: Graph, node: Graph) -> bool:
    """Whether a node reads nothing but unsigned activations.

    Brevitas's own `are_inputs_unsigned` takes every quantizer that is no activation for unsigned,
    the one of the model's input too.
    """
    modules = [called_module(model, source) for source in _sources(model, node)]
    return bool(modules) and all(map(_is_unsigned, modules))


def _is_unsigned(module: Any) -> bool:
    if hasattr(module, "act_quant"):
        return not module.act_quant.is_signed
    return isinstance(module, tuple(UNSIGNED_ACT_TUPLE))


def _sources(model: Graph, node: Graph) -> Iterator[Graph]:
    """What a node reads, through sums and through what changes neither numbers nor signs."""
    for source in node.all_input_nodes:
        if _moves(model, source) or is_sum(source):
            yield from _sources(model, source)
        else:
            yield source


def _moves(model: Graph, node: Graph) -> bool:
    """Whether a node changes neither numbers nor signs."""
    moves = node.op == "call_function" and node.target in _MOVES
    moves |= node.op == "call_method" and node.target in _MOVE_METHODS
    return moves or isinstance(called_module(model, node), tuple(SIGN_PRESERVING_MODULES))


def aligned(model: Graph, node: Graph, acts: dict) -> bool:
    """Whether the inputs of a sum have one scale, and those of a concatenation one sign too."""
    same_sign = node.target is torch.cat
    return are_inputs_quantized_and_aligned(model, node, [], acts, same_sign=same_sign)


def with_aligned_sums(model: Graph, identities: dict, acts: dict) -> Graph:
    """The graph with shared quantizers in front of its sums.

    Args:
        model: with quantized activations; not modified.
        identities: Brevitas's map of quantizers, "signed" and "unsigned".
        acts: Brevitas's map of quantized activations.
    """
    sums = filter(is_sum, model.graph.nodes)
    alone = {n.name for n in sums if _mixes_inputs(model, n) or _adds_float(model, n)}
    while True:
        graph = copied(model)
        left = _align(graph, identities, acts, alone)
        if not left:
            return graph
        # Again, without the quantizers that the vain attempts left behind.
        alone |= left


def _mixes_inputs(model: Graph, node: Graph) -> bool:
    """Whether a sum joins an input of the model with something inside.

    On a shared grid the input would lose its own bits and sign, for the whole model.
    """
    kinds = {
        isinstance(called_module(model, source), qnn.QuantIdentity)
        and source.args[0].op == "placeholder"
        for source in _sources(model, node)
    }
    return kinds == {True, False}


def _adds_float(model: Graph, node: Graph) -> bool:
    """Whether a sum reads what no layer, activation or quantizer gives: a norm, a product, a table.

    Such a stream does not become integers, and rounding it at each of its sums would add an error
    each time. It is quantized where a dot product reads it.
    """
    return any(_is_float(model, source) for source in _sources(model, node))


def _is_float(model: Graph, node: Graph) -> bool:
    module = called_module(model, node)
    if module is None:
        return node.op != "placeholder"
    return not (hasattr(module, "act_quant") or isinstance(module, _ON_A_GRID))


def _align(model: Graph, identities: dict, acts: dict, alone: set[str]) -> set[str]:
    """Aligns all sums but some, in place; the names of those that cannot be."""
    left: set[str] = set()
    rounds: dict[str, int] = {}

    def wanting(node: Graph) -> bool:
        waits = is_sum(node) and node.name not in alone | left
        return waits and not aligned(model, node, acts)

    while True:
        node = next(filter(wanting, model.graph.nodes), None)
        if node is None:
            return left
        rounds[node.name] = rounds.get(node.name, 0) + 1
        if rounds[node.name] > _ROUNDS or not _align_one(model, node, identities):
            left.add(node.name)


def _align_one(model: Graph, node: Graph, identities: dict) -> bool:
    """Gives the inputs of one sum a shared quantizer; False where their signs forbid it."""
    name = f"{node.name}_quant"
    for kind in ("unsigned", "signed") if never_negative(model, node) else ("signed",):
        quantizer, options = identities[kind]
        shared: qnn.QuantIdentity = quantizer(**options)
        rewriters: list[Any] = []
        try:
            recursive_input_handler(
                model,
                node,
                name,
                shared,
                rewriters,
                identities,
                align_input_quant,
                align_sign=node.target is torch.cat,
            )
        except AssertionError:  # something signed stands where nothing but unsigned was expected
            continue
        model.add_module(name, shared)
        for rewriter in rewriters:
            model = rewriter.apply(model)
        model.graph.lint()
        model.recompile()
        return True
    return False


def refined(model: Graph, bits: int) -> None:
    """Takes away, in place, what sums lose beside the rounding of their result.

    FINN builds none of it: it takes at most 8 bits, and refuses one sum into two quantizers.

    Args:
        model: all its quantizers are there.
        bits: of activations.
    """
    if bits >= FEWEST:
        read_streams_unrounded(model)
    give_signed_operands_a_bit(model)


def read_streams_unrounded(model: Graph) -> None:
    """Norms and activations beside a sum read what was not rounded for it, as in the float model.

    In a net whose blocks begin with a norm, the stream is rounded so that it can be added. What is
    behind the norm is rounded again anyway.
    """
    for node in calls_of_quantizers(model):
        source, users = node.args[0], list(node.users)
        if source.op == "placeholder" or not any(map(_adds, users)):
            continue
        for user in users:
            module = called_module(model, user)
            if isinstance(module, _BatchNorm) or hasattr(module, "act_quant"):
                user.replace_input_with(node, source)
    model.recompile()


def give_signed_operands_a_bit(model: Graph) -> None:
    """Gives signed operands a bit for their sign, where sums add them to unsigned ones.

    Only where nothing but sums reads them, so that the inputs of layers keep their bits.
    """
    for nodes in calls_on_one_grid(model):
        proxies: dict[Graph, Any] = {n: model.get_submodule(n.target).act_quant for n in nodes}
        signed = [node for node in nodes if proxies[node].is_signed]
        mixed = 0 < len(signed) < len(nodes)
        if mixed and all(_only_added(model, node) for node in signed):
            give_sign_bits(proxies.values())
            for node in signed:
                write_bits(proxies[node], current_bits(proxies[node]))


def calls_of_quantizers(model: Graph) -> list[Graph]:
    """Nodes that call a quantizer which is no activation as well."""
    return [
        node
        for node in model.graph.nodes
        if isinstance(called_module(model, node), qnn.QuantIdentity)
    ]


def calls_on_one_grid(model: Graph) -> list[list[Graph]]:
    """Nodes that call a quantizer, activations included, those together that share a scale."""
    grids: dict[int, list[Graph]] = {}
    for node in model.graph.nodes:
        for part in scaling_parts(called_module(model, node))[1:]:
            grids.setdefault(id(part), []).append(node)
    return list(grids.values())


def _adds(node: Graph) -> bool:
    return is_sum(node) and node.target is not torch.cat


def _only_added(model: Graph, node: Graph) -> bool:
    """Whether sums alone read the integers of a node, at once or once they are moved."""

    def adds(user: Graph) -> bool:
        if _adds(user) or user.target is tensor_of or user.op == "output":
            return True
        moves = _moves(model, user) or user.target is torch.cat
        return moves and _only_added(model, user)

    return all(map(adds, node.users))
