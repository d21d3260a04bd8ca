"""Accumulators in hls4ml's own C++: proven widths, one bit less, no budget, and hls4ml's inference.

    python -m benchmarks.hls4ml_types [--nets dense conv1d ...] [--origins solved ...] [--all]

Each row is a net of tests/hls4ml/nets.py (digits of scikit-learn), compiled with g++ and executed:
error     largest difference between C++ with accum_t at the proven widths and torch
streamed  the same where values follow one another (io_stream)
bits      sum of accumulator bits, ours
auto      the same as hls4ml infers them (granularity "name", auto)
tight     layers whose extreme inputs wrap with one bit less, of those whose sums need that bit
predicted every wrapped number is the one that arithmetic modulo 2^(P-1) gives
wraps     share of held-out digits that come out wrong where the same net, trained with ordinary
          quantizers of the same bits, gets the accumulators that ours has proven
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from brevitas_axe.export.hls4ml import export_hls4ml, export_layers_alone
from tests.hls4ml.nets import NETS, STYLES, digits, finished, samples
from tests.hls4ml.runner import Result, run_hls4ml

HELD_OUT = 200
PAIRS = (
    ("dense", "solved"),
    ("residual", "fine-tuned"),
    ("conv2d", "A2Q+"),
    ("depthwise", "solved"),
    ("conv1d", "fine-tuned"),
    ("concatenation", "A2Q+"),
)


@dataclass(frozen=True)
class Row:
    """One net; see the top of this file."""

    net: str
    origin: str
    error: float
    streamed: float
    bits: int
    auto: int
    never_wider: bool
    layers: int
    needing: int
    tight: int
    predicted: bool
    wraps: float


def row(net: str, origin: str, folder: Path) -> Row:
    """Trains, exports, compiles and compares one net."""
    model, _ = finished(net, origin)
    x = torch.cat([samples(net), digits(net)[0][-HELD_OUT:]])
    project = export_hls4ml(model, folder / "net", x[:1])
    export_hls4ml(model, folder / "streamed", x[:1], io_type="io_stream")
    nodes = [a.node for a in project.accumulators]
    inferred = {node: {"accum": "auto"} for node in nodes}
    jobs = [{}, {"changes": inferred, "compile": False}]
    ours, auto = _run(folder / "net", [x.numpy()], jobs)
    (streamed,) = _run(folder / "streamed", [x.numpy()], [{}])
    expected = _outputs(model, x)
    mine, theirs = ours.accumulators(nodes), auto.accumulators(nodes)
    needing, tight, predicted = _one_bit_less(model, x, folder / "alone")
    return Row(
        net,
        origin,
        *(float(np.abs(result.outputs[0] - expected).max()) for result in (ours, streamed)),
        sum(mine.values()),
        sum(theirs.values()),
        all(mine[node] <= theirs[node] for node in nodes),
        len(nodes),
        needing,
        tight,
        predicted,
        _without_budget(net, origin, {a.layer: a.width for a in project.accumulators}, folder),
    )


def _one_bit_less(model: torch.nn.Module, x: torch.Tensor, folder: Path) -> tuple[int, int, bool]:
    """(layers whose sums need every bit, those of them that wrapped, all numbers as computed)."""
    project, cases = export_layers_alone(model, folder, x[:1])
    less = {a.node: {"accum": narrowed(a.type, a.width - 1)} for a in project.accumulators}
    enough, short = _run(folder, [case.inputs for case in cases], [{}, {"changes": less}])
    needing = tight = 0
    predicted = True
    for index, (accumulator, case) in enumerate(zip(project.accumulators, cases, strict=True)):
        exact = np.ldexp(case.sums.astype(float), case.exponent)
        predicted &= np.array_equal(enough.outputs[index], exact)
        predicted &= np.array_equal(short.outputs[index], case.outputs(accumulator.width - 1))
        needing += case.needs(accumulator.width)
        tight += bool(np.any(short.outputs[index] != exact))
    return needing, tight, predicted


def _without_budget(net: str, origin: str, widths: dict[str, int], folder: Path) -> float:
    """Share of held-out digits that an ordinary net of the same bits gets wrong at our widths."""
    model, _ = finished(net, origin, budget=False)
    x = digits(net)[0][-HELD_OUT:]
    project = export_hls4ml(model, folder / "ordinary", x[:1])
    changes = {
        a.node: {"accum": narrowed(a.type, min(widths.get(a.layer, a.width), a.width))}
        for a in project.accumulators
    }
    (result,) = _run(folder / "ordinary", [x.numpy()], [{"changes": changes}])
    wrong = np.abs(result.outputs[0] - _outputs(model, x)).max(1) > 0
    return float(wrong.mean())


def narrowed(kind: str, width: int) -> str:
    """The type fixed<W,I> with only `width` bits: high bits are dropped."""
    given, integer = (int(part) for part in kind.removeprefix("fixed<").rstrip(">").split(","))
    return f"fixed<{width},{integer - (given - width)}>"


def _run(folder: Path, inputs: list[np.ndarray], jobs: list[dict]) -> list[Result]:
    results = run_hls4ml(folder, inputs, jobs)
    for result in results:
        if result.error:
            raise RuntimeError(result.error)
    return results


def _outputs(model: torch.nn.Module, x: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        found = model(x)
    return getattr(found, "value", found).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--origins", nargs="+", choices=STYLES, default=list(STYLES))
    parser.add_argument("--all", action="store_true", help="every net with every origin")
    arguments = parser.parse_args()
    every = [(net, origin) for net in NETS for origin in STYLES]
    for net, origin in every if arguments.all else PAIRS:
        if net not in arguments.nets or origin not in arguments.origins:
            continue
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            print(json.dumps(asdict(row(net, origin, Path(folder)))), flush=True)


if __name__ == "__main__":
    main()
