"""Images with a mask each: layouts, what masks hold, joint transforms, and bad input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dynamicvit import InputError, segmenter
from dynamicvit.data import (
    ImageData,
    Loader,
    MaskData,
    NoReadableImageError,
    Sample,
    Unreadable,
    has_masks,
    images_digest,
    joint_eval_transform,
    joint_train_transform,
    split,
)
from families import DEIT
from masks import NAMES, scene, write_scenes


def mask_of(data: MaskData, index: int = 0) -> Tensor:
    sample = data[index]
    assert isinstance(sample, Sample)
    assert isinstance(sample.label, Tensor)
    return sample.label


def save_mask(root: Path, pixels: np.ndarray, name: str = "0.png", mode: str = "L") -> None:
    Image.fromarray(pixels).convert(mode).save(root / "masks" / name)


def test_a_folder_of_images_and_masks(tmp_path: Path) -> None:
    data = MaskData(write_scenes(tmp_path))
    assert has_masks(tmp_path)
    assert data.classes == NAMES
    assert data.labeled
    assert len(data) == 4
    for index in range(4):
        sample, (image, mask) = data[index], scene(index)
        assert isinstance(sample, Sample)
        assert sample.image.shape == (3, *mask.shape)
        assert torch.equal((sample.image.permute(1, 2, 0) * 255).byte(), torch.from_numpy(image))
        expected = torch.from_numpy(mask.astype(np.int64))
        assert torch.equal(mask_of(data, index), expected.masked_fill(expected == 255, -1))
        assert data.files(index) == [
            str(tmp_path / "images" / f"{index}.png"),
            str(tmp_path / "masks" / f"{index}.png"),
        ]


def test_splits_are_named(tmp_path: Path) -> None:
    write_scenes(tmp_path, 3, "train")
    write_scenes(tmp_path, 2, "val")
    assert len(MaskData(f"{tmp_path}@train")) == 3
    assert len(MaskData(f"{tmp_path}@val")) == 2
    for name in (f"{tmp_path}@test", str(tmp_path)):
        with pytest.raises(InputError, match=r"@train or .*@val"):
            MaskData(name)


def test_annotations_of_ade20k_count_from_one(tmp_path: Path) -> None:
    write_scenes(tmp_path)
    (tmp_path / "masks").rename(tmp_path / "annotations")
    data = MaskData(tmp_path, reduce_labels=True)
    mask = torch.from_numpy(scene(0)[1].astype(np.int64))
    expected = torch.where((mask == 0) | (mask == 255), -1, mask - 1)
    assert torch.equal(mask_of(data), expected)


def test_a_palette_and_wide_indices_are_read(tmp_path: Path) -> None:
    write_scenes(tmp_path)
    plain, pixels = mask_of(MaskData(tmp_path)), scene(0)[1]
    colored = Image.fromarray(pixels)
    colored.putpalette([7, 7, 7] * 256)
    colored.save(tmp_path / "masks" / "0.png")
    with Image.open(tmp_path / "masks" / "0.png") as saved:
        assert saved.mode == "P"
    assert torch.equal(mask_of(MaskData(tmp_path)), plain)
    Image.fromarray(pixels.astype(np.uint16)).save(tmp_path / "masks" / "0.png")
    assert torch.equal(mask_of(MaskData(tmp_path)), plain)


def test_images_alone_have_no_masks(tmp_path: Path) -> None:
    root = write_scenes(tmp_path)
    assert not has_masks(root / "images")
    with pytest.raises(InputError, match="holds images and masks"):
        MaskData(root / "images")
    data = MaskData(root / "images", labeled=False)
    assert not data.labeled
    assert bool((mask_of(data) == -1).all())


def test_a_hugging_face_data_set(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    pairs = [scene(seed) for seed in range(3)]
    columns = {
        "image": [Image.fromarray(image) for image, _ in pairs],
        "annotation": [Image.fromarray(mask) for _, mask in pairs],
    }
    kinds = datasets.Features({name: datasets.Image() for name in columns})
    datasets.Dataset.from_dict(columns, features=kinds).save_to_disk(tmp_path / "set")
    data = MaskData(f"hfds/{tmp_path / 'set'}")
    for index, (_, mask) in enumerate(pairs):
        expected = torch.from_numpy(mask.astype(np.int64))
        assert torch.equal(mask_of(data, index), expected.masked_fill(expected == 255, -1))
    assert len(ImageData(f"hfds/{tmp_path / 'set'}", labeled=False)) == 3


def remove_mask(root: Path) -> None:
    (root / "masks" / "2.png").unlink()


def remove_image(root: Path) -> None:
    (root / "images" / "2.png").unlink()


def another_size(root: Path) -> None:
    save_mask(root, np.zeros((40, 55), np.uint8))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (remove_mask, r"images/2.png has no mask; give .*masks/2.png"),
        (remove_image, r"masks/2.png has no image; give .*images/2.jpg"),
        (another_size, r"masks/0.png is 55x40 pixels, its image 56x40"),
    ],
)
def test_what_are_no_pairs_is_said_at_once(
    damage: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    damage(write_scenes(tmp_path))
    with pytest.raises(InputError, match=said):
        MaskData(tmp_path)


def test_a_class_that_there_is_not_ends_the_run(tmp_path: Path) -> None:
    root = write_scenes(tmp_path)
    save_mask(root, np.full((40, 56), 3, np.uint8))
    with pytest.raises(InputError, match=r"masks/0.png: names class 3, but there are 3 classes"):
        next(iter(Loader(MaskData(root), 1)))
    assert mask_of(MaskData(root).for_classes(4)).max() == 3


def test_a_picture_is_no_mask(tmp_path: Path) -> None:
    root = write_scenes(tmp_path)
    save_mask(root, scene(0)[1], mode="RGB")
    with pytest.raises(InputError, match=r"masks/0.png: is a picture of mode RGB"):
        next(iter(Loader(MaskData(root), 1)))


def test_images_without_a_labeled_pixel_are_left_out_and_named(tmp_path: Path) -> None:
    root = write_scenes(tmp_path, 2)
    save_mask(root, np.full((40, 56), 255, np.uint8))
    found = MaskData(root)[0]
    assert isinstance(found, Unreadable)
    assert "every pixel" in found.reason
    save_mask(root, np.full((40, 56), 255, np.uint8), "1.png")
    with pytest.raises(NoReadableImageError, match="every pixel of its mask is ignored"):
        list(Loader(MaskData(root), 1))


def test_other_masks_are_other_data(tmp_path: Path) -> None:
    root = write_scenes(tmp_path)
    before = images_digest([MaskData(root)])
    assert images_digest([MaskData(root)]) == before
    save_mask(root, np.zeros((40, 56), np.uint8))
    assert images_digest([MaskData(root)]) != before


def test_held_out_images_keep_their_masks(tmp_path: Path) -> None:
    data = MaskData(write_scenes(tmp_path))
    rest, held = split(data, 0.5)
    assert sorted([*map(rest.path, range(2)), *map(held.path, range(2))]) == [
        data.path(index) for index in range(4)
    ]
    number = int(Path(held.path(0)).stem)
    assert torch.equal(mask_of(held), mask_of(data, number))


# ---------------------------------------------------------------- transforms


def model(side: int = 32) -> torch.nn.Module:
    return segmenter(DEIT.backbone(img_size=(side, side)), 3)


def test_image_and_mask_move_together(tmp_path: Path) -> None:
    """The square and the bar are told by their colors, wherever they are moved to."""
    data = MaskData(write_scenes(tmp_path)).with_joint_transform(
        joint_train_transform(model(), photometric=0.0)
    )
    loader = Loader(data, 4, seed=3)
    mirrored = set()
    for epoch in range(4):
        loader.set_epoch(epoch)
        [batch] = loader
        assert batch.images.shape == (4, 3, 32, 32)
        assert batch.labels.shape == (4, 32, 32)
        bright = batch.images[:, 2] < -0.8  # of the square's yellow alone
        square = batch.labels == 1
        assert (bright & square).sum() > 0.6 * square.sum()
        mirrored.add(float(batch.images[0].mean()))
    assert len(mirrored) == 4


def test_the_same_seed_gives_the_same_crops(tmp_path: Path) -> None:
    data = MaskData(write_scenes(tmp_path)).with_joint_transform(joint_train_transform(model()))
    (one,), (two,) = Loader(data, 4, seed=1), Loader(data, 4, seed=1)
    assert torch.equal(one.images, two.images)
    assert torch.equal(one.labels, two.labels)
    (other,) = Loader(data, 4, seed=2)
    assert not torch.equal(one.labels, other.labels)


def test_an_image_smaller_than_the_crop_is_padded_with_no_class(tmp_path: Path) -> None:
    data = MaskData(write_scenes(tmp_path)).with_joint_transform(
        joint_train_transform(model(64), scale=(0.25, 0.25), photometric=0.0)
    )
    sample = data[0]
    assert isinstance(sample, Sample)
    assert sample.image.shape == (3, 64, 64)
    padded = (mask_of(data) == -1).float().mean()
    assert padded > 0.8
    assert sample.image[:, mask_of(data) == -1].abs().median() < 0.02  # the mean color


def test_evaluation_fills_the_window_and_leaves_the_mask(tmp_path: Path) -> None:
    data = MaskData(write_scenes(tmp_path)).with_joint_transform(joint_eval_transform(model()))
    sample = data[0]
    assert isinstance(sample, Sample)
    assert sample.image.shape == (3, 32, 45)
    assert mask_of(data).shape == (40, 56)
