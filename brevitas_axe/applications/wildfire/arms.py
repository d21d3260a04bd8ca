"""The arms that are compared, and how each is made; all use what the package offers to users."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from brevitas_axe.applications.quickstart import DataSplit, train
from brevitas_axe.applications.wildfire.data import Pictures, drawn, flame, in_other_light
from brevitas_axe.applications.wildfire.nets import NETS
from brevitas_axe.errors import InvalidOption
from brevitas_axe.export.finn.prepare import made_for_finn
from brevitas_axe.files import write_whole
from brevitas_axe.methods.cost import cycles_per_frame
from brevitas_axe.methods.sensitivity.metrics import output_tensor
from brevitas_axe.model.prepare import as_batches
from brevitas_axe.model.running import evaluating
from brevitas_axe.recipe import Run
from brevitas_axe.run.allocate import allocate
from brevitas_axe.run.finetune import finetune
from brevitas_axe.run.quantize import quantize
from brevitas_axe.run.saving.load import load
from brevitas_axe.run.saving.save import Result
from brevitas_axe.run.tune import Tuning, tune

TASKS = tuple(NETS)
_BATCH, _CALIBRATION, _EVALUATED = 32, 128, 64
_CAMERA_BITS = 8
# Of quantization-aware training. With the usual rates of scales its own loss rises here.
_TUNING_RATE, _SCALES_RATE = 1e-3, 1e-4


@dataclass(frozen=True)
class Settings:
    """What a run is asked for; two runs with equal settings give equal integers.

    Attributes:
        data: folder with FLAME's `frames`; None for pictures that are drawn.
        size: pixels of each side of a picture.
        pictures: to train on.
        epochs: of the float nets.
        tuned_epochs: of quantization-aware training.
        seeds: how many times everything is done, with seeds from 0 on.
        accumulator: P of the arms with narrow accumulators.
        budget: share of the look-up tables of W4A4 that the mixed arms may take.
        fps: frames per second that every layer is folded for.
        clock: of the hardware, in MHz.
        tune_trials: of an arm that `tune` searches; 0 for none.

    Raises:
        InvalidOption: a value that cannot be used, by its name.
    """

    data: str | None = None
    size: int = 24
    pictures: int = 1600
    epochs: int = 10
    tuned_epochs: int = 4
    seeds: int = 3
    accumulator: int = 16
    budget: str = "80%"
    fps: float = 30.0
    clock: float = 100.0
    tune_trials: int = 0

    def __post_init__(self) -> None:
        least = {"pictures": 8, "epochs": 1, "tuned_epochs": 1, "seeds": 1, "tune_trials": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise InvalidOption(f"{name} must be at least {value}, not {getattr(self, name)}.")
        if self.size < 16 or self.size % 4:
            raise InvalidOption(
                f"the U-Net halves pictures twice, so size must be a multiple of 4 from 16 on, not "
                f"{self.size}."
            )
        cycles_per_frame(self.fps, self.clock)  # refuses what leaves no cycle

    @property
    def cycles(self) -> int:
        """Clock cycles that a layer has for one frame."""
        return cycles_per_frame(self.fps, self.clock)


USUAL, QUICK = Settings(), Settings(pictures=120, epochs=8, tuned_epochs=1, seeds=1)


class Case:
    """One net with its data and one seed, and the folder with what is known of it.

    Args:
        task: "classifier" or "unet".
        seed: of data and training.
        settings: of the run.
        folder: of this task and seed.
        progress: show progress bars.
    """

    def __init__(
        self, task: str, seed: int, settings: Settings, folder: Path, progress: bool = True
    ) -> None:
        self.task, self.seed, self.settings = task, seed, settings
        self.folder, self.progress = folder, progress

    @cached_property
    def pictures(self) -> Pictures:
        wanted = self.settings.size, self.settings.pictures, self.seed
        data = self.settings.data
        found = drawn(self.task, *wanted) if data is None else flame(self.task, data, *wanted)
        return replace(found, training=in_other_light(found.training, self.seed))

    @cached_property
    def model(self) -> nn.Module:
        """The float net, trained once and kept in the folder."""
        file, make = self.folder / "float.safetensors", NETS[self.task]
        if file.exists():
            model = make().eval()
            model.load_state_dict(load_file(file))
            return model
        split, epochs = self.pictures.training, self.settings.epochs
        model = train(split, self.seed, epochs, self.progress, make, _BATCH)
        write_whole(file, save(model.state_dict()))
        return model

    @property
    def calibration(self) -> list[Tensor]:
        return [self.pictures.training.images[:_CALIBRATION]]

    @property
    def frame(self) -> Tensor:
        return self.pictures.test.images[:1]

    def prepared(self, weight: int, inputs: int) -> nn.Module:
        """The net with calibrated quantizers, as FINN wants them; the camera has 8 bits."""
        batches = as_batches(self.calibration)
        return made_for_finn(self.model, batches, weight, inputs, _CAMERA_BITS)

    def score(self, model: nn.Module) -> float:
        """What chooses epochs: F1 of a classifier and mean IoU of a U-Net, on validation data."""
        return scores(model, self.pictures.validation)[JUDGED[self.task]]

    def place(self, arm: Arm) -> Path:
        """Folder of what is saved of an arm; its files have the same name with an ending."""
        return self.folder / arm.name.lower().replace(" ", "-").replace(",", "")


@dataclass(frozen=True)
class Arm:
    """One row of the table.

    Attributes:
        name: of the row; the folder has the same.
        kind: of `brevitas_axe.show`.
        make: Case → the quantized result; None for arms in float.
        autocast: in bfloat16 where torch allows it.
        timed: whether ONNX Runtime's time is measured.
    """

    name: str
    kind: str
    make: Callable[[Case], Result] | None = None
    autocast: bool = False
    timed: bool = False


def _uniform(weight: int, inputs: int, narrow: bool = False) -> Callable[[Case], Result]:
    """The same bits for every layer; accumulators of any width, or of the narrow one."""

    def make(case: Case) -> Result:
        return quantize(
            case.prepared(weight, inputs),
            case.calibration,
            accumulator_bit_width=case.settings.accumulator if narrow else None,
            progress=case.progress,
        )

    return make


def _trained(start: Arm) -> Callable[[Case], Result]:
    """Quantization-aware training from another arm; the best epoch on validation data is kept."""

    def make(case: Case) -> Result:
        split = case.pictures.training
        data = TensorDataset(split.images, split.labels)
        return finetune(
            load(case.place(start)),
            DataLoader(data, _BATCH, shuffle=True),
            epochs=case.settings.tuned_epochs,
            learning_rate=_TUNING_RATE,
            scale_learning_rate=_SCALES_RATE,
            validation=case.score,
            seed=case.seed,
            progress=case.progress,
        )

    return make


def _mixed(narrow: bool) -> Callable[[Case], Result]:
    """Bits for every layer under the budget of look-up tables."""

    def make(case: Case) -> Result:
        settings, prepared = case.settings, case.prepared(4, 4)
        accumulators = (settings.accumulator if narrow else None,)
        found = allocate(
            prepared,
            case.calibration,
            {"finn_lut": settings.budget},
            {"weight": (2, 3, 4, 6), "input": (3, 4, 6), "accumulator": accumulators},
            max_cycles=settings.cycles,
            run=Run(progress=case.progress),
        )
        return quantize(prepared, case.calibration, found.plan, progress=case.progress)

    return make


def _searched(case: Case) -> Result:
    """What `tune` finds with the same data, judged on validation pictures."""
    settings = case.settings
    return tune(
        case.prepared(4, 4),
        case.calibration,
        validate=case.score,
        accumulator_bit_width=settings.accumulator,
        budget={"finn_lut": settings.budget},
        tuning=Tuning(minutes=None, trials=settings.tune_trials, seed=case.seed),
        run=Run(case.folder / "tuning", progress=case.progress),
    ).result


def arms(settings: Settings) -> tuple[Arm, ...]:
    """All arms, each after those that it starts from; the one that is handed over is the last."""
    eight = Arm("PTQ W8A8", "published", _uniform(8, 8), timed=True)
    four = Arm("PTQ W4A4", "published", _uniform(4, 4))
    found = (
        Arm("FP32", "reference", timed=True),
        Arm("autocast bf16", "reference", autocast=True),
        eight,
        four,
        Arm("QAT W8A8", "published", _trained(eight), timed=True),
        Arm("QAT W4A4", "published", _trained(four)),
        Arm("PTQ W8A8, narrow", "ours", _uniform(8, 8, narrow=True), timed=True),
        Arm("mixed", "ours", _mixed(False)),
        Arm("mixed, narrow", "ours", _mixed(True)),
    )
    if not settings.tune_trials:
        return found
    return (*found[:-1], Arm("tuned, narrow", "ours", _searched), found[-1])


# What is measured, and by which of it the epochs of a net are chosen.
SCORES = ("accuracy", "f1", "mpa", "miou")
JUDGED: Mapping[str, str] = {"classifier": "f1", "unet": "miou"}


@torch.no_grad()
def scores(model: nn.Module, split: DataSplit) -> dict[str, float]:
    """Accuracy and F1 of fire, mean pixel accuracy and mean IoU of both classes.

    Of a classifier a "pixel" is a picture.
    """
    counts = torch.zeros(4, dtype=torch.long)
    with evaluating(model):
        for images, labels in zip(
            split.images.split(_EVALUATED), split.labels.split(_EVALUATED), strict=True
        ):
            found = output_tensor(model(images)).argmax(1)
            counts += torch.bincount((2 * labels + found).flatten(), minlength=4)
    neither, wrong, missed, fire = map(int, counts)
    pixels = _share(neither, neither + wrong), _share(fire, fire + missed)
    unions = (_share(part, part + wrong + missed) for part in (neither, fire))
    found = (
        _share(neither + fire, int(counts.sum())),
        _share(2 * fire, 2 * fire + wrong + missed),
        sum(pixels) / 2,
        sum(unions) / 2,
    )
    return dict(zip(SCORES, found, strict=True))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
