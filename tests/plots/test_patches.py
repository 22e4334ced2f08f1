"""Fading, merged patches, and the map of scores."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dynamicvit import InputError
from dynamicvit.plots.patches import as_merged, dim, score_map


def luma(patch: Tensor) -> Tensor:
    """Brightness as seen, by ITU-R BT.601."""
    return 0.299 * patch[0] + 0.587 * patch[1] + 0.114 * patch[2]


@settings(deadline=None, max_examples=50)
@given(
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    patch=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 2**31),
)
def test_dropped_patches_alone_are_dimmed(
    grid: tuple[int, int], patch: tuple[int, int], channels: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    (rows, columns), (high, wide) = grid, patch
    image = torch.rand(channels, rows * high, columns * wide, generator=generator) * 0.9
    kept = torch.rand(rows * columns, generator=generator) < 0.5
    untouched = image.clone()
    dimmed = dim(image, kept, grid)
    assert torch.equal(image, untouched)
    assert dimmed.shape == (3, rows * high, columns * wide)
    for index, is_kept in enumerate(kept.tolist()):
        row, column = divmod(index, columns)
        place = (
            slice(None),
            slice(row * high, (row + 1) * high),
            slice(column * wide, (column + 1) * wide),
        )
        before = image.expand(3, -1, -1)[place]
        if is_kept:
            assert torch.equal(dimmed[place], before)
        else:  # gray: dark, in a dark image light
            assert torch.equal(*dimmed[place][:2])
            level = 0.62 if luma(image.expand(3, -1, -1)).median() < 0.3 else 0.12
            torch.testing.assert_close(dimmed[place][0], level + 0.3 * luma(before))


def test_dim_names_what_does_not_fit() -> None:
    with pytest.raises(InputError, match=r"2x3.* 6 .*\(4,"):
        dim(torch.rand(3, 4, 4), torch.ones(4, dtype=torch.bool), (2, 3))
    with pytest.raises(InputError, match=r"\(2, 4, 4\)"):
        dim(torch.rand(2, 4, 4), torch.ones(4, dtype=torch.bool), (2, 2))


def test_a_merged_patch_looks_like_the_one_that_it_is_part_of() -> None:
    """2 x 3 patches of 4 x 5: the third and the last are kept, the fifth is removed."""
    image = torch.rand(3, 8, 15)
    kept = torch.tensor([0, 0, 1, 0, 0, 1]).bool()
    shown = as_merged(image, kept, torch.tensor([1, 0, 0, 0, -1, 1]), (2, 3))

    def patch(of: Tensor, index: int) -> Tensor:
        row, column = divmod(index, 3)
        return of[:, 4 * row : 4 * row + 4, 5 * column : 5 * column + 5]

    for index, like in enumerate((5, 2, 2, 2, 4, 5)):
        assert torch.equal(patch(shown, index), patch(image, like)), index
    removed = torch.full((6,), -1)
    assert torch.equal(as_merged(image, torch.zeros(6).bool(), removed, (2, 3)), image)


@pytest.mark.parametrize("size", [(7, 17), (9, 13)])
def test_images_that_patches_do_not_divide(size: tuple[int, int]) -> None:
    """Padded for the model, they are drawn as they are."""
    image, kept = torch.rand(3, *size), torch.tensor([1, 0, 0, 0, 0, 1]).bool()
    shown = as_merged(image, kept, torch.tensor([0, 0, 0, 1, 1, 1]), (2, 3))
    assert shown.shape == image.shape
    rows, columns = (side // part for side, part in zip(size, (2, 3), strict=True))
    assert torch.equal(shown[:, :rows, :columns], image[:, :rows, :columns])


def test_score_map_is_in_image_order_and_blank_at_dropped_patches() -> None:
    scores = torch.tensor([-0.1, -9.0, -2.0, -torch.inf, -2.0, -1000.0])
    shown = score_map(scores, (2, 3))
    expected = torch.tensor([[1.0, 0.25, 0.625], [math.nan, 0.625, 0.0]])
    torch.testing.assert_close(shown, expected, equal_nan=True)
