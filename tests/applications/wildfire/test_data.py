"""Pictures: FLAME's layout is read, another one is refused by name, and drawn ones repeat."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from brevitas_axe.applications.wildfire.data import (
    Pictures,
    draw,
    drawn,
    flame,
    in_other_light,
)
from brevitas_axe.errors import InvalidOption

SIZE = 16
RED, GREEN = (250, 40, 10), (20, 90, 20)


def picture(file: Path, colour: tuple[int, int, int], hot: int = 0) -> None:
    """A picture of one colour, with so many rows of flames on top."""
    pixels = np.empty((48, 64, 3), np.uint8)
    pixels[:] = colour
    pixels[:hot] = RED
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """FLAME's layout in small; masks are 0 and 1, as FLAME's."""
    for split, count in (("Training", 10), ("Test", 3)):
        for number in range(count):
            picture(tmp_path / f"frames/{split}/Fire/{number}.jpg", RED)
            picture(tmp_path / f"frames/{split}/No_Fire/{number}.jpg", GREEN)
    data = tmp_path / "frames/Segmentation/Data"
    (data / "Masks").mkdir(parents=True)
    for number in range(20):
        picture(data / f"Images/image_{number}.jpg", GREEN, hot=24)
        mask = np.zeros((48, 64), np.uint8)
        mask[:24] = 1
        Image.fromarray(mask).save(data / f"Masks/image_{number}.png")
    return tmp_path


def sizes(pictures: Pictures) -> list[int]:
    return [len(s.labels) for s in (pictures.training, pictures.validation, pictures.test)]


def test_flame_s_frames_are_read_with_their_classes(folder: Path) -> None:
    found = flame("classifier", folder, SIZE, most=100, seed=0)
    assert sizes(found) == [17, 3, 6]
    for split in (found.training, found.validation, found.test):
        assert split.images.shape[1:] == (3, SIZE, SIZE)
        red = split.images[:, 0].mean((1, 2)) > 0.5
        assert torch.equal(red.long(), split.labels)
    assert found.source.startswith("FLAME")


def test_flame_s_masks_lie_where_the_flames_are(folder: Path) -> None:
    found = flame("unet", folder, SIZE, most=100, seed=0)
    assert sizes(found) == [14, 3, 3]
    for split in (found.training, found.validation, found.test):
        assert torch.equal((split.images[:, 0] > 0.5).long(), split.labels)
        assert split.labels[0].sum() == SIZE * SIZE // 2


def test_fewer_frames_are_taken_evenly(folder: Path) -> None:
    found = flame("classifier", folder, SIZE, most=8, seed=0)
    assert sizes(found) == [7, 1, 4]
    assert torch.cat([found.training.labels, found.validation.labels]).sum() == 4


@pytest.mark.parametrize(
    ("task", "missing"),
    [
        ("classifier", "frames/Training/No_Fire"),
        ("classifier", "frames/Test/Fire"),
        ("unet", "frames/Segmentation/Data/Masks"),
    ],
)
def test_a_missing_folder_is_named(folder: Path, task: str, missing: str) -> None:
    shutil.rmtree(folder / missing)
    with pytest.raises(InvalidOption, match=f"there is no folder .*{missing}; FLAME's layout is"):
        flame(task, folder, SIZE, most=100, seed=0)


def test_a_missing_mask_an_empty_folder_and_a_broken_picture_are_named(folder: Path) -> None:
    data = folder / "frames/Segmentation/Data"
    (data / "Masks/image_7.png").unlink()
    with pytest.raises(InvalidOption, match=r"Masks has no image_7\.png"):
        flame("unet", folder, SIZE, most=100, seed=0)
    for file in (folder / "frames/Test/Fire").iterdir():
        file.unlink()
    with pytest.raises(InvalidOption, match=r"Test/Fire has no \*\.jpg"):
        flame("classifier", folder, SIZE, most=100, seed=0)
    (folder / "frames/Test/Fire/0.jpg").write_bytes(b"no picture")
    with pytest.raises(InvalidOption, match=r"Fire/0\.jpg is no picture"):
        flame("classifier", folder, SIZE, most=100, seed=0)


def test_too_few_pictures_are_refused(folder: Path) -> None:
    with pytest.raises(InvalidOption, match="too few pictures"):
        flame("classifier", folder, SIZE, most=2, seed=0)


def test_drawn_pictures_repeat_and_depend_on_the_seed() -> None:
    first, again, other = (drawn("classifier", SIZE, 12, seed) for seed in (0, 0, 1))
    assert torch.equal(first.test.images, again.test.images)
    assert not torch.equal(first.test.images, other.test.images)
    assert sizes(first) == [12, 12, 24]
    assert [int(s.labels.sum()) for s in (first.training, first.test)] == [6, 12]
    assert "synthetic" in first.source
    assert not any(
        torch.equal(a, b) for a in first.training.images for b in first.validation.images
    )


def test_the_test_split_has_other_colours() -> None:
    found = drawn("unet", SIZE, 64, seed=0)
    alike, shifted = (
        split.images.mean((0, 2, 3)) - found.training.images.mean((0, 2, 3))
        for split in (found.validation, found.test)
    )
    assert shifted.abs().max() > 0.03
    assert alike.abs().max() < shifted.abs().max() / 2


def test_only_fires_burn_and_masks_say_where() -> None:
    fires = torch.tensor([True, False] * 20)
    images, masks = draw(fires, SIZE, torch.Generator().manual_seed(0))
    assert torch.equal(masks.flatten(1).any(1), fires)
    assert images.min() >= 0
    assert images.max() <= 1
    assert images[:, 0][masks].mean() > images[:, 0][~masks].mean() + 0.2


def test_pictures_in_another_light_keep_their_labels_and_repeat() -> None:
    split = drawn("classifier", SIZE, 20, seed=1).training
    found, again = in_other_light(split, seed=3), in_other_light(split, seed=3)
    assert torch.equal(found.images, again.images)
    assert torch.equal(found.labels, split.labels)
    assert found.images.min() >= 0
    assert found.images.max() <= 1
    dark = split.images.amax((2, 3)) < 0.75  # not cut at 1
    gains = (found.images.sum((2, 3)) / split.images.sum((2, 3)))[dark]
    assert gains.min() >= 0.7 - 1e-5
    assert gains.max() <= 1.3 + 1e-5
    assert gains.unique().numel() > gains.numel() / 2  # each its own
    assert not torch.equal(found.images, in_other_light(split, seed=4).images)
