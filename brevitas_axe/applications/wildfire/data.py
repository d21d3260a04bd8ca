"""Pictures of forests with and without fires: FLAME's, or drawn here.

FLAME (Shamsoshoara et al., arXiv 2012.14036) is a data set of frames from drones. It is read from a
folder of the user's in its own layout, and nothing is downloaded. Without it, pictures are drawn by
a seeded generator. They are a stand-in with which the way can be gone from end to end; an accuracy
on them tells nothing about a real camera.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from brevitas_axe.applications.quickstart import DataSplit
from brevitas_axe.errors import InvalidOption

_CLASSES = ("No_Fire", "Fire")
# Shares of what is trained on and of what is tested on: FLAME's for its masks, and ours.
_TRAINING, _VALIDATION = 0.85, 0.15
# Largest change of red, green and blue in a picture that is trained on.
_LIGHT = 0.3
# Gains of red, green and blue, and what is added, in the drawn test pictures: haze at sunset.
_SHIFT = (1.1, 0.95, 0.85), 0.04


@dataclass(frozen=True)
class Pictures:
    """What one net learns from, what chooses its epochs, and what nothing else looks at.

    Classes are 0 without a fire and 1 with one: of pictures, [N], or of pixels, [N, S, S].

    Attributes:
        training, validation, test: the splits.
        source: where they come from, in words.
    """

    training: DataSplit
    validation: DataSplit
    test: DataSplit
    source: str


def drawn(task: str, size: int, count: int, seed: int) -> Pictures:
    """Pictures of the generator; those of the test split have other colours.

    Args:
        task: "classifier", where half of the pictures have a fire, or "unet", where all have one.
        size: pixels of each side.
        count: pictures to train on, and to validate on; to test on there are twice as many.
        seed: of everything.
    """
    generator = torch.Generator().manual_seed(seed)
    splits = []
    for number, shifted in ((count, False), (count, False), (2 * count, True)):
        share = 0.5 if task == "classifier" else 1.0
        fires = torch.arange(number) < round(share * number)
        images, masks = draw(fires[torch.randperm(number, generator=generator)], size, generator)
        if shifted:
            gains, haze = _SHIFT
            images = (images * torch.tensor(gains).reshape(3, 1, 1) + haze).clamp(0, 1)
        labels = masks.flatten(1).any(1).long() if task == "classifier" else masks.long()
        splits.append(DataSplit(images, labels))
    return Pictures(*splits, source="synthetic, test split with shifted colours")


def in_other_light(split: DataSplit, seed: int) -> DataSplit:
    """Pictures whose colours are changed, each its own way, by up to 30 %.

    A net that has seen one light alone takes it for a property of fires.
    """
    generator = torch.Generator().manual_seed(seed)
    gains = 1 + _LIGHT * (2 * torch.rand(len(split.images), 3, 1, 1, generator=generator) - 1)
    return DataSplit((split.images * gains).clamp(0, 1), split.labels)


def draw(fires: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Forests from above, [N, 3, S, S], and where they burn, [N, S, S].

    Every picture has trees of several greens and browns, autumn leaves with the colour of flames,
    a bright rock, and smoke or clouds over all of it. What burns is small, and brightest in the
    middle.

    Args:
        fires: which of them burn, [N] of booleans.
        size: pixels of each side.
        generator: of all random numbers.
    """
    number = len(fires)

    def colour(red: float, green: float, blue: float) -> Tensor:
        return torch.tensor([red, green, blue]).reshape(1, 3, 1, 1)

    def field(cells: int) -> Tensor:
        """Smooth noise in [0, 1] with so many cells along each side, [N, 1, S, S]."""
        coarse = torch.rand(number, 1, cells + 1, cells + 1, generator=generator)
        return F.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=True)

    def spot(largest: float) -> Tensor:
        """Distance from a ragged spot's middle, 1 at its edge, [N, 1, S, S]."""
        x, y, radius = torch.rand(3, number, 1, 1, 1, generator=generator)
        radius = largest * (0.4 + 0.6 * radius)
        axis = torch.linspace(0, 1, size)
        far = (axis - x).square() + (axis.reshape(-1, 1) - y).square()
        return far.sqrt() / radius + 0.8 * (field(8) - 0.5)

    def blended(images: Tensor, paint: Tensor, share: Tensor) -> Tensor:
        return torch.lerp(images, paint.expand_as(images), share)

    trees, ground = field(max(size // 3, 2)), field(4)
    images = colour(0.10, 0.28, 0.08) + trees * colour(0.18, 0.30, 0.12)
    images = blended(images, colour(0.36, 0.27, 0.16), 0.7 * ground)
    leaves = [(1.3 - spot(0.2)).clamp(0, 1) for _ in range(2)]
    for share in leaves:
        images = blended(images, colour(0.85, 0.42, 0.10) + 0.3 * (field(8) - 0.5), 0.9 * share)
    rocks = (1.2 - spot(0.1)).clamp(0, 1)
    images = blended(images, colour(0.98, 0.93, 0.80), rocks)
    smoke = (1.2 - spot(0.5)).clamp(0, 1) * field(6)
    far = spot(0.16)
    burning = (far < 1) & fires.reshape(-1, 1, 1, 1)
    heat = (1 - far).clamp(0, 1)
    flames = colour(0.90, 0.36, 0.08) + heat * colour(0.1, 0.7, 0.5) + 0.3 * (field(8) - 0.5)
    images = blended(images, flames, 0.9 * burning)
    images = blended(images, colour(0.75, 0.75, 0.78), 0.7 * smoke)
    noise = torch.randn(images.shape, generator=generator)
    return (images + 0.06 * noise).clamp(0, 1), burning[:, 0]


def flame(task: str, folder: str | Path, size: int, most: int, seed: int) -> Pictures:
    """Pictures of FLAME, in the layout in which its authors publish it.

    Training and Test are from different flights. Frames of one video resemble each other, so a
    validation split that is drawn from Training is easier than Test; it chooses epochs alone. There
    is one set of masks, of which a random part of 15 % is tested on, as its authors do.

    Args:
        task: "classifier" or "unet".
        folder: the one that contains `frames`.
        size: pixels of each side, to which frames are scaled.
        most: frames to train on, and half as many to test on; evenly from each folder.
        seed: of the splits.

    Raises:
        InvalidOption: a folder or a file is not where the layout has it, by its name.
    """
    frames = Path(folder) / "frames"
    generator = torch.Generator().manual_seed(seed)
    if task == "unet":
        known = _masked(frames / "Segmentation" / "Data", size, most + most // 2)
        order = torch.randperm(len(known.labels), generator=generator)
        cut = round(_TRAINING * len(order))
        known, test = _part(known, order[:cut]), _part(known, order[cut:])
    else:
        known = _classified(frames / "Training", size, most)
        test = _classified(frames / "Test", size, most // 2)
    order = torch.randperm(len(known.labels), generator=generator)
    cut = round(_VALIDATION * len(order))
    if min(cut, len(order) - cut, len(test.labels)) < 1:
        raise InvalidOption(f"{frames} has too few pictures to train, validate and test with.")
    parts = _part(known, order[cut:]), _part(known, order[:cut]), test
    return Pictures(*parts, source=f"FLAME, {frames}")


def _part(split: DataSplit, index: Tensor) -> DataSplit:
    return DataSplit(split.images[index], split.labels[index])


def _classified(folder: Path, size: int, most: int) -> DataSplit:
    files = [_evenly(_files(folder / name, "jpg"), most // 2) for name in _CLASSES]
    labels = [torch.full((len(part),), place) for place, part in enumerate(files)]
    return DataSplit(
        torch.stack([_image(f, size) for part in files for f in part]), torch.cat(labels)
    )


def _masked(folder: Path, size: int, most: int) -> DataSplit:
    files = _evenly(_files(folder / "Images", "jpg"), most)
    masks = {file.stem: file for file in _files(folder / "Masks", "png")}
    for file in files:
        if file.stem not in masks:
            raise InvalidOption(
                f"FLAME's layout has a mask for every picture, but {folder / 'Masks'} has no "
                f"{file.stem}.png; add it, or take the picture out."
            )
    images = torch.stack([_image(file, size) for file in files])
    return DataSplit(images, torch.stack([_mask(masks[file.stem], size) for file in files]))


def _files(folder: Path, ending: str) -> list[Path]:
    """Sorted files of a folder of the layout."""
    if not folder.is_dir():
        raise InvalidOption(
            f"there is no folder {folder}; FLAME's layout is frames/{{Training,Test}}/"
            "{Fire,No_Fire}/*.jpg and frames/Segmentation/Data/{Images/*.jpg,Masks/*.png}, so give "
            "the folder that contains frames."
        )
    found = sorted(file for file in folder.iterdir() if file.suffix.lower() == f".{ending}")
    if not found:
        raise InvalidOption(f"{folder} has no *.{ending}, which FLAME's layout has there.")
    return found


def _evenly(files: Sequence[Path], most: int) -> list[Path]:
    """At most so many, at equal distances; neighbouring frames are almost the same picture."""
    step = max(len(files) / max(most, 1), 1.0)
    return [files[math.floor(place * step)] for place in range(min(len(files), max(most, 1)))]


def _opened(file: Path, mode: str, size: int, how: Image.Resampling) -> np.ndarray:
    try:
        with Image.open(file) as picture:
            return np.array(picture.convert(mode).resize((size, size), how))
    except OSError as error:
        raise InvalidOption(f"{file} is no picture that can be read: {error}.") from None


def _image(file: Path, size: int) -> Tensor:
    pixels = _opened(file, "RGB", size, Image.Resampling.BOX)
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def _mask(file: Path, size: int) -> Tensor:
    return torch.from_numpy(_opened(file, "L", size, Image.Resampling.NEAREST) > 0).long()
