"""The whole job on bundled data: train, quantize, prove, export, compare.

Every figure is measured in this run. Bit widths are chosen on a validation split, accuracies are
those of a test split that nothing else looks at. Every arm is calibrated alike, on training data.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from sklearn.datasets import load_digits
from torch import Tensor, nn
from tqdm.auto import tqdm

from brevitas_axe.accumulator import check_bit_width, datatype_bound
from brevitas_axe.export import export_qonnx
from brevitas_axe.methods.cost import resource_rows
from brevitas_axe.methods.solvers.problem import Quality
from brevitas_axe.model.prepare import as_batches, to_brevitas
from brevitas_axe.proof.certificate import Certificate, certify_file
from brevitas_axe.proof.emulator import emulate
from brevitas_axe.run.quantize import quantize
from brevitas_axe.run.result import QuantizeResult
from brevitas_axe.run.saving.folder import versions
from brevitas_axe.show import arms_table, open_folder, write_folder

BITS = (4, 4)  # weights and inputs of the arms at equal bits
_LEAST = (2, 2)
WEIGHT_BITS, INPUT_BITS = (2, 3, 4), (2, 3, 4, 6)
# Solver, quality, act_order: the published algorithms are tried with every option they have.
PUBLISHED: tuple[tuple[str, Quality, bool], ...] = tuple(
    (name, "fast", order) for name in ("gpfq", "gptq") for order in (False, True)
)
OURS: tuple[tuple[str, Quality, bool], ...] = (("qronos", "best", True),)
_EPOCHS, _BATCH, _CALIBRATION = 30, 64, 512
_TRAINING, _VALIDATION = 900, 400


@dataclass(frozen=True)
class DataSplit:
    """Images in [0, 1], [N, channels, height, width], and their classes, such as digits, [N]."""

    images: Tensor
    labels: Tensor


class DigitsNet(nn.Module):
    """A small net with a strided, a depthwise and a pointwise convolution and a residual sum."""

    def __init__(self, channels: int = 24) -> None:
        super().__init__()
        half = channels // 2
        self.stem = convolution(1, half)
        self.down = convolution(half, channels, stride=2)
        self.depthwise = convolution(channels, channels, groups=channels)
        self.pointwise = convolution(channels, channels, kernel=1)
        self.mix = convolution(channels, channels, stride=2)
        self.head = nn.Linear(4 * channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(self.stem(x))
        x = x + self.pointwise(self.depthwise(x))
        return self.head(self.mix(x).flatten(1))


def convolution(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution, batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


@dataclass(frozen=True)
class Choice:
    """A solved model with the widths and the solver that led to it."""

    weight: int
    input: int
    solver: str
    result: QuantizeResult
    validation: float


class Bench:
    """The trained net and the data; solves and measures at one accumulator width."""

    def __init__(
        self, accumulator_bit_width: int, seed: int, epochs: int = _EPOCHS, progress: bool = True
    ) -> None:
        self.accumulator_bit_width = check_bit_width(accumulator_bit_width)
        self.training, self.validation, self.test = digits(seed)
        self.model = train(self.training, seed, epochs, progress)
        self.progress = progress
        self.batches = [self.training.images[:_CALIBRATION]]
        self.solved: dict[tuple, Choice] = {}

    def solve(
        self, weight: int, input: int, solver: tuple[str, Quality, bool], accumulator: int | None
    ) -> Choice:
        """Quantizes the trained net; the same request is solved once."""
        name, quality, act_order = solver
        key = (weight, input, solver, accumulator)
        if key not in self.solved:
            calibrated = to_brevitas(
                self.model,
                as_batches(self.batches),
                weight_bit_width=weight,
                input_bit_width=input,
                model_input_bit_width=input,
            )
            result = quantize(
                calibrated,
                self.batches,
                accumulator_bit_width=accumulator,
                solver=name,
                quality=quality,
                act_order=act_order,
                progress=False,
            )
            score = accuracy(result.model, self.validation)
            title = name.upper() + (", act-order" if act_order else "")
            self.solved[key] = Choice(weight, input, title, result, score)
        return self.solved[key]

    def best(
        self,
        bits: Iterable[tuple[int, int]],
        solvers: Sequence[tuple[str, Quality, bool]],
        accumulator: int | None,
        title: str,
    ) -> Choice | None:
        """The most accurate choice on the validation split; of equals, the one of fewest bits."""
        requests = [(*pair, solver) for pair in bits for solver in solvers]
        bar = tqdm(requests, desc=title, leave=False, disable=not self.progress)
        choices = [self.solve(*request, accumulator) for request in bar]
        return max(choices, key=lambda c: (c.validation, -c.weight - c.input), default=None)

    def widths_that_always_fit(self) -> list[tuple[int, int]]:
        """The largest uniform widths at which no weights whatever could overflow any layer."""
        fitting = [
            (weight, input)
            for weight in range(_LEAST[0], 9)
            for input in range(_LEAST[1], 9)
            if self.type_bound(weight, input) <= self.accumulator_bit_width
        ]
        return [
            (weight, input)
            for weight, input in fitting
            if (weight + 1, input) not in fitting and (weight, input + 1) not in fitting
        ]

    def type_bound(self, weight: int, input: int) -> int:
        """Accumulator width at which no weights of these types overflow in any layer."""
        longest = max(
            module.weight[0].numel()
            for module in self.model.modules()
            if isinstance(module, (nn.Conv2d, nn.Linear))
        )
        return datatype_bound(longest, input, weight, False)

    def arm(self, name: str, kind: str, choice: Choice, **facts: Any) -> dict[str, Any]:
        """One row of the table; see `brevitas_axe.show`."""
        return {
            "name": name,
            "kind": kind,
            "weight": choice.weight,
            "input": choice.input,
            "accumulator": self.accumulator_bit_width,
            "tile": None,
            "accuracy": accuracy(choice.result.model, self.test),
            "proven_width": proven_width(choice.result.certificate),
            "overflow_free": choice.result.certificate.ok,
            "note": choice.solver,
            **facts,
        }


def quickstart(
    output: str | Path, accumulator_bit_width: int = 8, seed: int = 0, progress: bool = True
) -> bool:
    """Runs everything and writes the folder; True when the exported model is proven.

    Args:
        output: folder for model.onnx, plan.json, certificate.json, summary.json, report.html.
        accumulator_bit_width: P.
        seed: of data split, training and order of samples.
        progress: show progress bars.
    """
    start = time.perf_counter()
    width = check_bit_width(accumulator_bit_width)
    folder = open_folder(output)
    with one_thread():
        bench = Bench(width, seed, progress=progress)
        ours, arms = compare(bench, folder)
        certificate = export(ours.result, bench, folder / "model.onnx", width)
    arms[-1]["proven_width"] = proven_width(certificate)
    arms[-1]["overflow_free"] = certificate.ok
    summary = {
        "title": f"Digits on {width}-bit accumulators",
        "description": "A small convolutional net on scikit-learn's digits: "
        f"{len(bench.training.labels)} images to train, {len(bench.validation.labels)} to choose "
        f"bit widths, {len(bench.test.labels)} to measure accuracy.",
        "accumulator": width,
        "tile": None,
        "arms": arms,
        "layers": ours.result.layers,
        "resources": resource_rows(ours.result.model, (bench.test.images[:1],), ours.result.plan),
        "seconds": round(time.perf_counter() - start, 1),
        "environment": {
            **versions(("torch", "brevitas", "qonnx")),
            "seed": seed,
        },
    }
    files = write_folder(folder, summary, certificate, ours.result.plan, ours.result.recipe)
    Console().print(arms_table(summary))
    verdict = "proven" if certificate.ok else "NOT proven"
    print(f"model.onnx: {verdict}, its widest accumulator needs {proven_width(certificate)} bits.")
    print(f"{summary['seconds']:.0f} seconds. Open {files[0]}, or read")
    for file in [folder / "model.onnx", *files[1:]]:
        print(f"  {file}")
    return certificate.ok


def compare(bench: Bench, folder: Path) -> tuple[Choice, list[dict[str, Any]]]:
    """Our choice at its best widths, and all arms, of which it is the last."""
    width = bench.accumulator_bit_width
    grid = [(weight, input) for weight in WEIGHT_BITS for input in INPUT_BITS]
    reference = {
        "name": "float",
        "kind": "reference",
        "accuracy": accuracy(bench.model, bench.test),
    }

    unlimited = bench.best([BITS], PUBLISHED, None, "unlimited accumulator")
    assert unlimited is not None
    proof = export(unlimited.result, bench, folder / "unlimited.onnx", width)
    wrapped = emulated(folder / "unlimited.onnx", bench.test, width)
    arms = [
        reference,
        bench.arm(
            "unlimited accumulator", "reference", unlimited, accumulator=None, overflow_free=False
        ),
        bench.arm(
            f"same file, {width} bits wrap",
            "overflow",
            unlimited,
            accuracy=wrapped,
            proven_width=proven_width(proof),
            overflow_free=proof.ok,
            note="emulated",
        ),
    ]
    arms.append(naive(bench, folder))
    ours = None
    for owner, kind, solvers in (
        ("published AXE", "published", PUBLISHED),
        ("brevitas_axe", "ours", OURS),
    ):
        same = bench.best([BITS], solvers, width, owner)
        ours = bench.best(grid, solvers, width, f"{owner}, best bits")
        assert same is not None
        assert ours is not None
        arms.append(bench.arm(f"{owner}, same bits", kind, same))
        arms.append(bench.arm(f"{owner}, best bits", kind, ours))
    assert ours is not None
    return ours, arms


def naive(bench: Bench, folder: Path) -> dict[str, Any]:
    """The arm that only reduces bits, until the data types alone exclude overflow."""
    width = bench.accumulator_bit_width
    name = f"fewer bits until {width} fit"
    fitting = bench.best(bench.widths_that_always_fit(), PUBLISHED, None, "fewer bits")
    if fitting is not None:
        safe = proven_width(fitting.result.certificate) <= width
        return bench.arm(name, "reference", fitting, overflow_free=safe)
    least = bench.best([_LEAST], PUBLISHED, None, "fewer bits")
    assert least is not None
    path = folder / "fewest_bits.onnx"
    proof = export(least.result, bench, path, width)
    return bench.arm(
        name,
        "reference" if proof.ok else "overflow",
        least,
        accuracy=emulated(path, bench.test, width),
        proven_width=proven_width(proof),
        overflow_free=proof.ok,
        note=f"no types fit, these may need {bench.type_bound(*_LEAST)}; emulated",
    )


def digits(seed: int) -> tuple[DataSplit, DataSplit, DataSplit]:
    """Training, validation and test split."""
    data: Any = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(seed))
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1)[order] / 16
    labels = torch.tensor(data.target)[order]
    ends = (0, _TRAINING, _TRAINING + _VALIDATION, len(labels))
    parts = [slice(*ends) for ends in pairwise(ends)]
    first, second, third = (DataSplit(images[part], labels[part]) for part in parts)
    return first, second, third


def train(
    split: DataSplit,
    seed: int,
    epochs: int = _EPOCHS,
    progress: bool = True,
    make: Callable[[], nn.Module] = DigitsNet,
    batch: int = _BATCH,
) -> nn.Module:
    """A trained net in evaluation mode; global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
        steps = -(-len(split.labels) // batch)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, epochs * steps)
        for _ in tqdm(range(epochs), desc="training", leave=False, disable=not progress):
            for picked in torch.randperm(len(split.labels)).split(batch):
                loss = F.cross_entropy(model(split.images[picked]), split.labels[picked])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return model.eval()


def accuracy(model: nn.Module, split: DataSplit) -> float:
    with torch.no_grad():
        return _share_correct(model(split.images), split)


def emulated(path: Path, split: DataSplit, accumulator_bit_width: int) -> float:
    """Accuracy of an exported file on accumulators that wrap around."""
    result = emulate(path, split.images.numpy(), accumulator_bit_width, overflow="wrap")
    return _share_correct(torch.from_numpy(result.output), split)


def export(result: QuantizeResult, bench: Bench, path: Path, width: int) -> Certificate:
    """Writes the file and proves it from the file alone."""
    export_qonnx(result.model, bench.test.images[:1], path)
    return certify_file(path, accumulator_bit_width=width)


def proven_width(certificate: Certificate) -> int:
    """The widest accumulator that any layer needs."""
    return max(entry.width for entry in certificate.judged if entry.width is not None)


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread: tensors this small take longer to distribute than to compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _share_correct(scores: Tensor, split: DataSplit) -> float:
    return int((scores.argmax(1) == split.labels).sum()) / len(split.labels)
