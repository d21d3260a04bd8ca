"""The graph of a proven file as an inline drawing: what multiplies, coloured by its verdict.

Nothing is fetched and no script runs. A box is a dot product, or a node at which branches part or
meet, with the nodes behind it that only pass its values on; what depends on constants alone, such
as the quantizers of weights, is left out. Boxes stand in columns by the longest way from an input,
so that the drawing is as wide as the net is deep, and scrolls inside its own card.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import accumulate
from pathlib import Path

from brevitas_axe.errors import AxeError
from brevitas_axe.proof.certificate import Certificate, DotProduct
from brevitas_axe.proof.graph.modelfile import Node, read
from brevitas_axe.show.parts import paragraph
from brevitas_axe.show.plots import shortened

# A drawing with more boxes or lanes tells less than a viewer of graphs.
_MOST_BOXES, _MOST_LANES = 160, 12
_WIDTH, _HEIGHT, _GAP, _LANE_GAP, _MARGIN = 168, 78, 30, 18, 14
_LINE_HEIGHT = 6  # of a lane without boxes
_LETTERS = 22
_LEGEND = (
    "Each box is a dot product, or a place where branches part or meet, with what follows it. "
    "Green is proven to fit, red is not; the bar is the accumulator's width, as a share of the "
    "widest. More is told under the mouse."
)


@dataclass
class Box:
    """One box.

    Attributes:
        name: of its layer or first node.
        operations: of its nodes, in order.
        entry: what the certificate says of its dot product; None without one.
        claimed: whether the verdict covers it.
        sources: boxes whose values it reads.
        rank: column.
        lane: row.
    """

    name: str
    operations: list[str]
    entry: DotProduct | None = None
    claimed: bool = True
    sources: list[int] = field(default_factory=list)
    rank: int = 0
    lane: int = 0


def graph_view(file: Path, certificate: Certificate) -> str:
    """The drawing as HTML; "" for a file that is too large for one, or is not the proven one.

    Args:
        file: the QONNX file that was certified.
        certificate: its proof.
    """
    try:
        model = read(file)
    except AxeError:
        return ""
    if model.sha256 != certificate.sha256:
        return ""
    boxes = boxes_of(model.nodes, _inputs(model.graph), certificate)
    if not boxes or len(boxes) > _MOST_BOXES:
        return ""
    lines = list(_placed(boxes))
    if max(lane for *_, lane in [*lines, *((0, 0, b.lane) for b in boxes)]) >= _MOST_LANES:
        return ""
    title = f"<h2>The graph of {escape(file.name)}</h2>"
    return f'{title}\n<div class="card graph">{_svg(boxes, lines)}</div>\n{paragraph(_LEGEND)}'


def netron(certificate: Certificate) -> str:
    """How to look at the graph of the proven file; "" for a live model."""
    if certificate.sha256 is None:
        return ""
    file = escape(Path(certificate.subject).name)
    return (
        f'<p class="soft">To see every node, open {file} at <a href="https://netron.app/">'
        f'netron.app</a>, or run <span class="name">netron {file}</span> (pip install netron).</p>'
    )


def _inputs(graph) -> list[str]:
    constants = {tensor.name for tensor in graph.initializer}
    return [value.name for value in graph.input if value.name not in constants]


def boxes_of(nodes: Iterable[Node], inputs: Iterable[str], certificate: Certificate) -> list[Box]:
    """Boxes in the order of execution, inputs first.

    Args:
        nodes: of the file, in that order.
        inputs: of the graph, constants left out.
        certificate: names the dot products by their nodes.
    """
    entries = {entry.name: entry for entry in (*certificate.entries, *certificate.sums)}
    boxes = [Box(name, ["input"]) for name in inputs]
    giver = {box.name: index for index, box in enumerate(boxes)}  # tensor → its box
    moved = list(_moving(nodes, {*giver}))
    readers: dict[str, int] = defaultdict(int)
    for _, tensors in moved:
        for tensor in set(tensors):
            readers[tensor] += 1
    last = {index: box.name for index, box in enumerate(boxes)}  # box → the tensor at its end
    for node, tensors in moved:
        entry = entries.get(node.name)
        sources = sorted({giver[tensor] for tensor in tensors})
        follows = len(sources) == 1 and all(
            last[sources[0]] == tensor and readers[tensor] == 1 for tensor in tensors
        )
        if follows and entry is None:
            index = sources[0]
            boxes[index].operations.append(node.op)
        else:
            index = len(boxes)
            name = node.name if entry is None else entry.layer or entry.name
            claimed = node.name not in certificate.excluded
            boxes.append(Box(name, [node.op], entry, claimed, sources))
        for tensor in filter(None, node.outputs):
            giver[tensor] = index
        last[index] = next(filter(None, node.outputs), "")
    return boxes


def _moving(nodes: Iterable[Node], known: set[str]) -> Iterator[tuple[Node, list[str]]]:
    """The nodes that depend on an input, each with those of its inputs that do.

    Args:
        nodes: in the order of execution.
        known: inputs of the graph; gets what depends on them.
    """
    for node in nodes:
        tensors = [name for name in node.inputs if name in known]
        if tensors:
            known.update(filter(None, node.outputs))
            yield node, tensors


def _placed(boxes: list[Box]) -> Iterator[tuple[int, int, int]]:
    """Gives every box its place; yields (source, box, lane between them) for every line."""
    taken: dict[int, set[int]] = defaultdict(set)
    for box in boxes:
        box.rank = 1 + max((boxes[source].rank for source in box.sources), default=-1)
        near = [boxes[s].lane for s in box.sources if boxes[s].rank == box.rank - 1]
        box.lane = _free([taken[box.rank]], min(near, default=0))
        taken[box.rank].add(box.lane)
    for index, box in enumerate(boxes):
        for source in box.sources:
            between = [taken[rank] for rank in range(boxes[source].rank + 1, box.rank)]
            lane = _free(between, 0) if between else box.lane
            for lanes in between:
                lanes.add(lane)
            yield source, index, lane


def _free(taken: list[set[int]], wished: int) -> int:
    """The wished lane where nobody has it, or the first one that nobody has."""
    busy = set().union(*taken) if taken else set()
    return wished if wished not in busy else next(n for n in range(len(busy) + 1) if n not in busy)


@dataclass(frozen=True)
class Lanes:
    """Where the lanes lie.

    Attributes:
        tops: of every lane, and where the next one would begin.
        heights: of every lane; those without a box are low.
    """

    tops: tuple[int, ...]
    heights: tuple[int, ...]

    @classmethod
    def of(cls, boxes: Sequence[Box], lines: Sequence[tuple[int, int, int]]) -> Lanes:
        full = {box.lane for box in boxes}
        count = 1 + max([*full, *(lane for *_, lane in lines)])
        heights = tuple(_HEIGHT if lane in full else _LINE_HEIGHT for lane in range(count))
        steps = accumulate((height + _LANE_GAP for height in heights), initial=_MARGIN)
        return cls(tuple(steps), heights)

    def middle(self, lane: int) -> int:
        return self.tops[lane] + self.heights[lane] // 2


def _svg(boxes: list[Box], lines: list[tuple[int, int, int]]) -> str:
    entries = [box.entry for box in boxes if box.entry is not None]
    most = max((w for e in entries for w in (e.width, e.target) if w), default=1)
    lanes = Lanes.of(boxes, lines)
    width = _left(1 + max(box.rank for box in boxes)) - _GAP + _MARGIN
    height = lanes.tops[-1] - _LANE_GAP + _MARGIN
    drawn = [_line(boxes[a], boxes[b], lane, lanes) for a, b, lane in lines]
    drawn += [_box(box, lanes.tops[box.lane], most) for box in boxes]
    return (
        f'<svg role="img" aria-label="graph of the file" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">{"".join(drawn)}</svg>'
    )


def _left(rank: int) -> int:
    return _MARGIN + rank * (_WIDTH + _GAP)


def _line(source: Box, box: Box, lane: int, lanes: Lanes) -> str:
    """From the right edge of a box to the left edge of another, through a lane between them."""
    x, y = _left(source.rank) + _WIDTH, lanes.middle(source.lane)
    end_x, end_y = _left(box.rank), lanes.middle(box.lane)
    path = f"M{x},{y}"
    if box.rank > source.rank + 1:
        at = lanes.middle(lane)
        path += _curve(x, y, _left(source.rank + 1), at) + f"H{end_x - _GAP}"
        x, y = end_x - _GAP, at
    return f'<path class="line" d="{path}{_curve(x, y, end_x, end_y)}"/>'


def _curve(x: int, y: int, end_x: int, end_y: int) -> str:
    middle = (x + end_x) // 2
    return f"C{middle},{y} {middle},{end_y} {end_x},{end_y}"


def _box(box: Box, y: int, most: int) -> str:
    """A box with its name, its widths and what follows it."""
    x = _left(box.rank)
    entry, bar = box.entry, ""
    verdict = "plain" if entry is None or not box.claimed else "good" if entry.fits else "bad"
    texts = [(18, "title", shortened(box.name, _LETTERS))]
    if not box.claimed:
        texts.append((37, "", "nothing is claimed"))
    elif entry is not None and entry.width is not None:
        limit = "" if entry.target is None else f" of {entry.target}"
        texts.append((37, "", f"{entry.width}{limit} bits, K = {entry.inputs}"))
        share = min(entry.width / most, 1) * (_WIDTH - 16)
        bar = f'<rect class="bar" x="{x + 8}" y="{y + 44}" width="{share:.1f}" height="4" rx="2"/>'
    elif entry is not None:
        texts.append((37, "", "not proven"))
    texts.append((64, "soft", shortened(" → ".join(box.operations), _LETTERS + 4)))
    lines = "".join(
        f'<text class="{kind}" x="{x + 8}" y="{y + down}">{escape(text)}</text>'
        for down, kind, text in texts
    )
    return (
        f'<g class="{verdict}"><title>{escape(_told(box))}</title>'
        f'<rect class="box" x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="8"/>'
        f"{bar}{lines}</g>"
    )


def _told(box: Box) -> str:
    """What is told under the mouse."""
    said = [box.name, " → ".join(box.operations)]
    if box.entry is not None:
        known: Mapping[str, object] = {
            "weights": box.entry.weight_type,
            "input": box.entry.input_type,
            "minimum": box.entry.minimum,
            "maximum": box.entry.maximum,
        }
        said.append(
            ", ".join(f"{key} {value}" for key, value in known.items() if value is not None)
        )
        said.append(box.entry.verdict)
    return "\n".join(filter(None, said))
