"""Tokens: fewer of them, where they are in the grid, and the way back."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dynamicvit.layers.tokens import Tokens, top_k


def test_top_k_gives_the_best_in_image_order() -> None:
    score = torch.tensor([[0.1, 0.9, 0.3, 0.8], [0.4, 0.3, 0.2, 0.1]])
    assert top_k(score, 2).tolist() == [[1, 3], [0, 1]]
    assert top_k(score, 4).tolist() == [[0, 1, 2, 3]] * 2
    assert top_k(score, 0).shape == (2, 0)
    assert top_k(torch.tensor([[-1.0, float("-inf"), -2.0]]), 2).tolist() == [[0, 2]]


def test_top_k_of_equal_scores_still_gives_k_different_patches() -> None:
    positions = top_k(torch.zeros(3, 50), 20)
    assert positions.shape == (3, 20)
    assert (positions.diff(dim=1) > 0).all()


def tokens_of(batch: int, prefix: int, patches: int) -> Tokens:
    """The value of each token is its place."""
    x = torch.arange(prefix + patches, dtype=torch.float32)[None, :, None]
    return Tokens(x.expand(batch, -1, 4).contiguous(), prefix, (patches,))


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_gather_keeps_the_prefix_and_remembers_the_original_patch(prefix: int) -> None:
    held = tokens_of(2, prefix, 8).keep(torch.tensor([[1, 3, 4, 7], [0, 2, 5, 6]]))
    held = held.keep(torch.tensor([[0, 2], [1, 3]]))
    assert held.index.tolist() == [[1, 4], [2, 6]]
    assert held.x[:, :prefix, 0].tolist() == [list(range(prefix))] * 2
    assert torch.equal(held.patches[..., 0], held.index + float(prefix))
    assert held.num_patches == 2
    assert held.decision is None


def test_gather_takes_the_decision_along() -> None:
    tokens = tokens_of(1, 1, 4)
    tokens = replace(tokens, decision=torch.tensor([[1.0, 0.0, 1.0, 0.0]]))
    held = tokens.keep(torch.tensor([[1, 2]]))
    assert held.decision.tolist() == [[0.0, 1.0]]
    assert held.over_all(held.decision).tolist() == [[1.0, 0.0, 1.0]]


def test_gather_of_nothing_leaves_the_prefix() -> None:
    held = tokens_of(2, 1, 4).keep(torch.zeros(2, 0, dtype=torch.long))
    assert held.x.shape == (2, 1, 4)
    assert held.index.shape == (2, 0)


def test_to_grid_is_the_inverse_of_gathering() -> None:
    values = torch.randn(2, 8)
    position = torch.tensor([[1, 3, 4], [0, 2, 7]])
    held = tokens_of(2, 0, 8).keep(position)
    image = held.to_grid(values.gather(1, position), fill=-9.0)
    for row in range(2):
        for patch in range(8):
            kept = patch in position[row].tolist()
            assert image[row, patch] == (values[row, patch] if kept else -9.0)
    assert torch.equal(tokens_of(2, 0, 8).to_grid(values), values)


def test_to_grid_passes_the_gradient() -> None:
    values = torch.randn(2, 3, requires_grad=True)
    held = tokens_of(2, 0, 8).keep(torch.tensor([[1, 3, 4], [0, 2, 7]]))
    held.to_grid(values).sum().backward()
    assert torch.equal(values.grad, torch.ones(2, 3))


def test_where_the_token_is_that_a_patch_is_part_of() -> None:
    tokens = Tokens(torch.zeros(1, 3, 2), 1, (5,), index=torch.tensor([[1, 4]]))
    assert tokens.places() is None, "each is a patch"
    groups = torch.tensor([[1, 0, -1, 1, 1]])
    # The third patch is part of none, and stays where it was.
    assert replace(tokens, groups=groups).places().tolist() == [[4, 1, 2, 4, 4]]
    whole = Tokens(torch.zeros(1, 3, 2), 0, (3,), groups=torch.tensor([[2, 1, 2]]))
    assert whole.places().tolist() == [[2, 1, 2]]


def test_full_map_of_removed_and_merged_tokens() -> None:
    """A removed patch is what it was when it was dropped, a merged one what it became part of."""
    tokens = tokens_of(1, 1, 6).remembering()
    tokens = replace(tokens, grid=(2, 3))
    held = tokens.remembered().keep(torch.tensor([[0, 2, 3, 5]]))
    held = held.with_x(held.x + 10).remembered().keep(torch.tensor([[1, 2]]))
    held = held.with_x(held.x + 100)
    # Places 1 and 4 left with 2 and 5, places 0 and 5 ten later, 2 and 3 are here.
    assert held.full_map()[0, ..., 0].tolist() == [[11.0, 2.0, 113.0], [114.0, 5.0, 16.0]]
    merged = replace(held, groups=torch.tensor([[0, 0, 0, 1, -1, 1]]))
    assert merged.full_map()[0, ..., 0].tolist() == [[113.0] * 3, [114.0, 5.0, 114.0]]


def test_full_map_of_a_clip_has_three_axes() -> None:
    tokens = replace(tokens_of(2, 1, 12), grid=(3, 2, 2))
    assert tokens.full_map().shape == (2, 3, 2, 2, 4)
    assert tokens.full_map()[0, 1, 0, 1, 0] == 1 + 5


def test_full_map_needs_to_have_remembered() -> None:
    with pytest.raises(ValueError, match="remembering"):
        tokens_of(1, 0, 4).keep(torch.tensor([[0]])).full_map()
