"""The scenes: repeatable, honest splits, and a truth that agrees with the pixels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dynamicvit import InputError
from dynamicvit.demo.scenes import (
    GRID,
    IMAGE_SIZE,
    NUM_CLASSES,
    PATCH_SIZE,
    Scenes,
    Split,
    digit_indices,
    photograph_bands,
)

SPLITS: tuple[Split, Split] = ("train", "score")


@pytest.mark.parametrize("split", SPLITS)
def test_a_batch_has_the_documented_shapes(split: Split) -> None:
    images, labels, digit_patches = Scenes(split).batch(range(5))
    assert (images.shape, images.dtype) == ((5, 3, IMAGE_SIZE, IMAGE_SIZE), torch.float32)
    assert images.abs().max() <= 2.001  # mean 0.5 and deviation 0.25 of values in [0, 1]
    assert (labels.shape, labels.dtype) == ((5,), torch.int64)
    assert (digit_patches.shape, digit_patches.dtype) == ((5, GRID * GRID), torch.bool)


@pytest.mark.parametrize("clutter", [0.0, 0.5, 1.0])
def test_a_scene_does_not_depend_on_its_batch(clutter: float) -> None:
    scenes = Scenes("train", seed=3, clutter=clutter)
    whole = scenes.batch(range(10, 19))
    parts = [scenes.batch([10]), scenes.batch(range(11, 16)), scenes.batch([16, 17, 18])]
    for together, apart in zip(whole, zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(together, torch.cat(apart), atol=1e-5, rtol=0)
    backwards = scenes.batch(range(18, 9, -1))
    torch.testing.assert_close(backwards.images.flip(0), whole.images, atol=1e-5, rtol=0)


def test_another_seed_and_another_split_give_other_scenes() -> None:
    scenes = Scenes("train", seed=0).batch(range(4)).images
    for other in (Scenes("train", seed=1), Scenes("score", seed=0)):
        assert not torch.isclose(scenes, other.batch(range(4)).images).flatten(1).all(1).any()


def test_the_splits_share_no_digit_and_no_pixel() -> None:
    train, score = digit_indices("train"), digit_indices("score")
    assert not set(train) & set(score)
    assert len(set(train)) + len(set(score)) == 1797
    assert len(train) == 1400
    left, right = (photograph_bands(split).shape[-1] for split in SPLITS)
    assert left + right == 640
    assert right >= IMAGE_SIZE


@pytest.mark.parametrize("clutter", [0.0, 1.0])
def test_the_truth_is_where_the_digit_changes_the_image(clutter: float) -> None:
    scenes = Scenes("score", seed=1, clutter=clutter)
    with_digit, labels, digit_patches = scenes.batch(range(200))
    without, same_labels, same_patches = scenes.batch(range(200), with_digit=False)
    assert torch.equal(labels, same_labels)
    assert torch.equal(digit_patches, same_patches)

    # 0.1 in brightness, before the normalization, is what the eye would call a change.
    changed = (with_digit - without).abs().amax(1, keepdim=True) / 4 > 0.1
    share = F.avg_pool2d(changed.float(), PATCH_SIZE).flatten(1)
    # Every patch of the digit changes, and hardly anything changes outside its patches.
    assert (share[digit_patches] > 0).float().mean() > 0.995
    outside = share.masked_fill(digit_patches, 0).sum(1) / share.sum(1)
    assert outside.mean() < 0.05
    assert outside.max() < 0.2
    assert (digit_patches.sum(1) >= 2).all()
    assert 6 < digit_patches.sum(1).float().mean() < 12


def test_without_the_digit_a_clean_scene_is_empty() -> None:
    images = Scenes("train", clutter=0).batch(range(8), with_digit=False).images
    assert (images == images[0, 0, 0, 0]).all()


def test_every_digit_appears_about_as_often() -> None:
    labels = Scenes("score").batch(range(500)).labels
    assert labels.bincount(minlength=NUM_CLASSES).min() > 30


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"clutter": -0.1}, "-0.1"), ({"clutter": 1.1}, "1.1"), ({"split": "a"}, "'a'")],
)
def test_arguments_out_of_range(wrong: dict, named: str) -> None:
    with pytest.raises(InputError, match=named):
        Scenes(**wrong)
