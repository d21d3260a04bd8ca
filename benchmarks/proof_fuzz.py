"""Random graphs and damaged files against the proof: no claim exceeded, no foreign exception.

Every graph is a chain of operators behind a quantizer, with dot products at its end (see
`random_graphs`). It is executed by qonnx and ONNX Runtime on inputs that drive its dot products to
their ends, and what they add up, in the worst order, in tiles and with their bias, is compared
with what the certificate claims. A claim that is met with equality shows that the inputs are the
worst ones. Every so often the emulator and qonnx's own `execute_onnx` have to agree as well.

    python benchmarks/proof_fuzz.py --graphs 20000 --bytes 20000 --seed 0
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.random_graphs.damage import damaged
from benchmarks.random_graphs.judge import Claim, Judge, build
from brevitas_axe.errors import AxeError
from brevitas_axe.export.finn import check_finn
from brevitas_axe.proof.certificate import certify_file
from brevitas_axe.proof.certificate.certificate import Certificate, DotProduct
from brevitas_axe.proof.emulator import emulate

# One graph in so many is executed by execute_onnx and by the emulator too.
_SOMETIMES = 20


def tried(seed: int, counts: Counter[str]) -> Iterator[str]:
    """Builds, certifies and executes one random graph; gives what is wrong with its claims.

    Args:
        seed: of the graph.
        counts: of what was seen, added to.
    """
    b, model = build(seed)
    counts["graphs"] += 1
    tile = int(b.draw.integers(1, 7)) if b.draw.random() < 0.4 else None
    certificate = certified(model, tile, counts)
    if isinstance(certificate, str):
        yield certificate
        return
    judge = Judge(b, model)
    judge.execute()
    entries = {entry.name: entry for entry in certificate.entries}
    proven = 0
    for made in b.products:
        entry = entries.get(made.name)
        if entry is None:
            yield f"'{made.name}' is no entry"
        elif entry.proven:
            proven += 1
            outcome = judge.compare(made, claim_of(entry))
            counts.update(outcome.counts)
            yield from (f"'{made.name}': {problem}" for problem in outcome.problems)
        else:
            counts["unproven"] += 1
    counts["graphs with a claim"] += bool(proven)
    for name in b.hidden:
        counts["hidden"] += 1
        if name not in entries or entries[name].proven:
            yield f"'{name}' hides a dot product and is no entry"
    if seed % _SOMETIMES == 0:
        yield from compared(b, model, judge, counts)


def certified(model: onnx.ModelProto, tile: int | None, counts: Counter[str]) -> Certificate | str:
    """The certificate, or a sentence about a refusal or about an exception that is not ours."""
    try:
        return certify_file(model, tile_size=tile)
    except AxeError as error:
        counts["refused"] += 1
        return f"is refused: {error}"
    except Exception:
        counts["foreign exceptions"] += 1
        return traceback.format_exc()


def compared(b, model: onnx.ModelProto, judge: Judge, counts: Counter[str]) -> Iterator[str]:
    """The outputs of the emulator and of execute_onnx against the oracle's."""
    context, output = judge.contexts[1], model.graph.output[0].name
    feeds = {value.name: context[value.name] for value in model.graph.input}
    singles = {name: array[:1] for name, array in feeds.items()}
    expected = context[output]
    try:
        result = emulate(model, singles, 64)
    except AxeError as error:
        counts["not emulated"] += 1
        if "the range" in str(error) or "on the grid" in str(error):
            yield str(error)
    else:
        counts["emulated"] += 1
        got = result.outputs[output]
        if expected.shape[0] == len(next(iter(feeds.values()))):
            close = np.allclose(got[:1], expected[:1], 1e-4, 1e-3 * np.abs(expected).max(initial=1))
            if not close:
                yield f"the emulator gives {got.reshape(-1)[:4]}, not {expected.reshape(-1)[:4]}"
    if not b.functions and not any(n.op_type == "If" for n in model.graph.node):
        counts["run by execute_onnx"] += 1
        yield from filter(None, [judge.agrees_with_qonnx()])


def claim_of(entry: DotProduct) -> Claim:
    """The numbers of a proven entry."""
    assert entry.minimum is not None
    assert entry.maximum is not None
    assert entry.width is not None
    return Claim(
        entry.minimum, entry.maximum, entry.width, entry.tile_size, entry.outer_width,
        entry.width_with_bias,
    )  # fmt: skip


def survives(data: bytes, finn: bool = False) -> str:
    """What happens to damaged bytes in certify, emulate and check: '' or a foreign exception."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception:  # an error of protobuf; certify_file raises ours for the same file
        return ""
    inputs = {
        value.name: np.ones(
            [d.dim_value or 1 for d in value.type.tensor_type.shape.dim], np.float32
        )
        for value in model.graph.input
        if all(0 <= d.dim_value < 100 for d in value.type.tensor_type.shape.dim)
    }
    uses = [lambda: certify_file(model).to_json(), lambda: emulate(model, inputs, 32)]
    uses += [lambda: check_finn(model)] if finn else []
    for use in uses:
        try:
            use()
        except AxeError:
            pass
        except Exception:
            return traceback.format_exc()
    return ""


def progress(first: int, count: int, what: str) -> Iterable[int]:
    """So many seeds, with a bar on a terminal and a line a minute in a log."""
    every = 0.5 if sys.stderr.isatty() else 60
    return tqdm(range(first, first + count), what, mininterval=every, maxinterval=every)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graphs", type=int, default=20000)
    parser.add_argument("--bytes", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    counts: Counter[str] = Counter()
    started = time.time()
    for seed in progress(arguments.seed, arguments.graphs, "graphs"):
        try:
            problems = list(tried(seed, counts))
        except Exception:  # the generator's own fault
            counts["not executable"] += 1
            print(f"seed {seed} cannot be executed: {traceback.format_exc(limit=-1)}")
            continue
        counts["problems"] += len(problems)
        for problem in problems:
            print(f"seed {seed}: {problem}", flush=True)
    print(f"{dict(counts)} in {time.time() - started:.0f} s")
    faults = 0
    for seed in progress(arguments.seed, arguments.bytes, "damaged files"):
        if fault := survives(damaged(seed), finn=seed % 10 == 0):
            faults += 1
            print(f"damaged file {seed}: {fault}", flush=True)
    print(f"{arguments.bytes} damaged files: {faults} foreign exceptions")
    if counts["problems"] or faults:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
