"""The scenes: repeatable, honest splits, and a truth that agrees with the pixels."""

from __future__ import annotations

import numpy as np
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
    photograph_columns,
)

SPLITS: tuple[Split, Split] = ("train", "score")


@pytest.mark.parametrize("split", SPLITS)
def test_a_batch_has_the_documented_shapes(split: Split) -> None:
    images, labels, digit_patches = Scenes(split).batch(0, 5)
    assert images.shape == (5, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert images.dtype == torch.float32
    assert images.isfinite().all()
    assert images.abs().max() <= 2.001  # Mean 0.5 and deviation 0.25 of values in [0, 1].
    assert labels.shape == (5,)
    assert labels.dtype == torch.int64
    assert digit_patches.shape == (5, GRID * GRID)
    assert digit_patches.dtype == torch.bool


@pytest.mark.parametrize("clutter", [0.0, 0.5, 1.0])
def test_a_scene_does_not_depend_on_its_batch(clutter: float) -> None:
    scenes = Scenes("train", seed=3, clutter=clutter)
    whole = scenes.batch(10, 9)
    parts = [scenes.batch(10, 1), scenes.batch(11, 5), scenes.batch([16, 17, 18])]
    for together, apart in zip(whole, zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(together, torch.cat(apart), atol=1e-5, rtol=0)
    backwards = scenes.batch(list(range(18, 9, -1)))
    torch.testing.assert_close(backwards.images.flip(0), whole.images, atol=1e-5, rtol=0)


def test_another_seed_and_another_split_give_other_scenes() -> None:
    scenes = Scenes("train", seed=0).batch(0, 4).images
    for other in (Scenes("train", seed=1), Scenes("score", seed=0)):
        assert not torch.isclose(scenes, other.batch(0, 4).images).flatten(1).all(1).any()


def test_the_splits_share_no_digit() -> None:
    train, score = digit_indices("train"), digit_indices("score")
    assert not set(train) & set(score)
    assert len(set(train)) + len(set(score)) == 1797
    assert len(train) == 1400


def test_the_splits_share_no_pixel_of_the_photographs() -> None:
    columns = np.arange(640)
    train, score = (columns[photograph_columns(split, 640)] for split in SPLITS)
    assert not set(train) & set(score)
    for split, kept in zip(SPLITS, (train, score), strict=True):
        assert photograph_bands(split).shape[-1] == len(kept) >= IMAGE_SIZE


@pytest.mark.parametrize("clutter", [0.0, 1.0])
def test_the_truth_is_where_the_digit_changes_the_image(clutter: float) -> None:
    scenes = Scenes("score", seed=1, clutter=clutter)
    with_digit, labels, digit_patches = scenes.render(0, 200)
    without, same_labels, same_patches = scenes.render(0, 200, with_digit=False)
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
    images = Scenes("train", clutter=0).render(0, 8, with_digit=False).images
    assert (images == images[0, 0, 0, 0]).all()


def test_every_digit_appears_about_as_often() -> None:
    labels = Scenes("score").batch(0, 500).labels
    assert labels.bincount(minlength=NUM_CLASSES).min() > 30


@pytest.mark.parametrize("clutter", [-0.1, 1.1])
def test_an_impossible_clutter_is_named(clutter: float) -> None:
    with pytest.raises(InputError, match=f"clutter is {clutter}"):
        Scenes(clutter=clutter)


def test_an_unknown_split_is_named() -> None:
    with pytest.raises(InputError, match=r"'test'.*'train', 'score'"):
        Scenes("test")  # pyright: ignore[reportArgumentType]


def test_a_range_needs_a_size_and_indices_bring_their_own() -> None:
    with pytest.raises(InputError, match="size is missing"):
        Scenes().batch(0)
    with pytest.raises(InputError, match="size is 2"):
        Scenes().batch([0, 1], 2)
