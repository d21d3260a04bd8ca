"""Finds the initializer and the layer of a dot product of a file."""

from __future__ import annotations

import re
from collections import Counter

from brevitas_axe.proof.graph.grid import Fact, is_constant
from brevitas_axe.proof.graph.modelfile import ModelFile, Node, plain_domain, shown


class Names:
    """Follows a weight back to the names in the file."""

    def __init__(self, file: ModelFile) -> None:
        self._initializers = {i.name for i in file.graph.initializer}
        self._producer = {o: node for node in file.nodes for o in node.outputs if o}
        self._consumers: dict[str, list[Node]] = {}
        for node in file.nodes:
            for tensor in node.inputs:
                self._consumers.setdefault(tensor, []).append(node)
        self._uses = Counter({tensor: len(nodes) for tensor, nodes in self._consumers.items()})
        self._outputs = {o.name for o in file.graph.output}
        self._functions = {(plain_domain(f.domain), f.name) for f in file.model.functions}
        # Along first inputs: the origin of a tensor, and the module that a quantizer on the path
        # names. In execution order, so that no path is followed twice.
        self._starts: dict[str, str] = {}
        self._modules: dict[str, str] = {}
        for node in file.nodes:
            before = node.inputs[0] if node.inputs else ""
            module = self._module(node) or self._modules.get(before, "")
            for output in filter(None, node.outputs):
                self._starts[output] = self._starts.get(before, before)
                if module:
                    self._modules[output] = module

    def initializer(self, tensor: str) -> str | None:
        """The initializer that a weight comes from."""
        start = self._starts.get(tensor, tensor)
        return shown(start) if start in self._initializers else None

    def layer(self, node: Node, tensor: str) -> str | None:
        """The module that a dot product belongs to, as a Plan names it; None if no name has it.

        Args:
            node: the dot product.
            tensor: its weight input.
        """
        start = self._starts.get(tensor, tensor)
        if start in self._initializers and start.endswith(".weight"):
            return shown(start.removesuffix(".weight"))
        if module := self._modules.get(tensor):
            return shown(module)
        found = re.fullmatch(r"/(.+)/(?:MatMul|Gemm|Conv|ConvTranspose)(?:_\d+)?", node.proto.name)
        return shown(dotted(found[1])) if found else None

    def _module(self, quantizer: Node) -> str:
        """The module that a weight quantizer names in its own name or in its scale's."""
        if found := re.fullmatch(r"/?(.+)/weight_quant/.*", quantizer.proto.name):
            return dotted(found[1])
        for parameter in quantizer.inputs[1:2]:
            # Exporters share equal constants between layers: a shared one belongs to no single
            # layer.
            found = re.fullmatch(r"(.+)\.weight_quant\..*", parameter)
            if found and self._uses[parameter] == 1:
                return found[1]
        return ""

    def added_after(self, node: Node, facts: dict[str, Fact]) -> str:
        """The constant that the one following Add adds, as exporters write a bias; else ''."""
        output = node.outputs[0]
        followers = self._consumers.get(output, [])
        if len(followers) != 1 or output in self._outputs:
            return ""
        added = (followers[0].domain, followers[0].op) == ("", "Add")
        if not added or ("", "Add") in self._functions:
            return ""
        others = [tensor for tensor in followers[0].inputs if tensor != output]
        return others[0] if len(others) == 1 and is_constant(facts[others[0]]) else ""

    def product(self, node: Node) -> str | None:
        """The attention product that a node of two activations is, as a Plan names it."""
        found = re.fullmatch(r"(.+\.(?:scores|context))(?:_\d+)?", node.name)
        return found[1] if found else None

    def producer(self, tensor: str) -> Node | None:
        """The node that computes a tensor."""
        return self._producer.get(tensor)


def dotted(path: str) -> str:
    """/blocks/blocks.0/conv → blocks.0.conv, as torch writes scopes of nested modules."""
    parts = path.split("/")
    inner = [*parts[1:], ""]
    kept = [p for p, after in zip(parts, inner, strict=True) if not after.startswith(p + ".")]
    return ".".join(kept)
