"""Keep ratios whose token counts fill whole tiles."""

from __future__ import annotations

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dynamicvit import InputError, count_macs, sparsify, tiled_keep_ratios
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.schedule import Schedule
from dynamicvit.costs import costs_of
from dynamicvit.methods.class_attention import EViT
from families import Family, few_families


@few_families
def test_every_stage_fills_whole_tiles(family: Family) -> None:
    """Whatever its prefix tokens are."""
    model = family.sparse(keep_ratio=0.7)
    costs = costs_of(model, len(model.schedule.stages), family.size)
    model.keep_ratio = tiled_keep_ratios(model, 4, family.size)
    kept = model.schedule.kept(costs.num_patches)
    assert all((costs.num_prefix + k) % 4 == 0 for k in kept)
    with torch.no_grad():
        survived = model.forward_pruned(family.images()).kept
    assert [int(places[0].sum()) for places in survived] == list(kept)


def test_deit_at_its_published_ratio() -> None:
    """137, 96 and 67 patches and a class token become 144, 96 and 64 rows, for the same MACs."""
    with torch.device("meta"):
        model = sparsify(timm.create_model("deit_small_patch16_224"), 0.7, method="dynamicvit")
    before = count_macs(model)
    model.keep_ratio = tiled_keep_ratios(model)
    assert model.schedule.kept(196) == (143, 95, 63)
    assert count_macs(model) == pytest.approx(before, rel=0.01)
    assert model.keep_ratio is None, "they are no powers of one ratio any more"


@pytest.fixture(scope="module")
def shapes() -> nn.Module:
    with torch.device("meta"):
        return timm.create_model("deit_tiny_patch16_224", embed_dim=32, num_heads=2)


@given(
    ratios=st.lists(st.floats(0.001, 1.0), min_size=3, max_size=3),
    tile=st.integers(1, 300),
)
@settings(max_examples=200, deadline=None)
def test_the_nearest_that_can_be(shapes: nn.Module, ratios: list[float], tile: int) -> None:
    ratios.sort(reverse=True)
    model = DynamicViT(shapes, Schedule((3, 6, 9), tuple(ratios)))
    asked = model.schedule.kept(196)
    model.keep_ratio = tiled_keep_ratios(model, tile)
    for before, after in zip(asked, model.schedule.kept(196), strict=True):
        if before == 196:
            assert after == 196
        elif (1 + after) % tile:  # no whole tile is near enough
            assert after == 196 or after == 1
        else:
            assert abs(after - before) <= tile / 2
    if tile == 1:
        assert model.schedule.kept(196) == asked


def test_tokens_that_a_stage_adds_are_counted(shapes: nn.Module) -> None:
    """EViT's fused token is a row of its own, and one more with every stage."""
    stages = [EViT() for _ in range(3)]
    model = DynamicViT(shapes, Schedule.for_depth(12, 0.7), stages)
    model.keep_ratio = tiled_keep_ratios(model)
    kept = model.schedule.kept(196)
    assert [(1 + added + k) % 16 for added, k in enumerate(kept, start=1)] == [0, 0, 0]


def test_another_image_size_has_other_counts() -> None:
    model = sparsify(
        timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True), 0.7, method="dynamicvit"
    ).eval()
    model.keep_ratio = tiled_keep_ratios(model, 16, (160, 256))
    with torch.no_grad():
        output = model.forward_pruned(torch.randn(1, 3, 160, 256))
    assert [(1 + int(places.sum())) % 16 for places in output.kept] == [0, 0, 0]


@pytest.mark.parametrize("tile", [0, -16])
def test_a_tile_has_rows(shapes: nn.Module, tile: int) -> None:
    model = DynamicViT(shapes, Schedule.for_depth(12, 0.7))
    with pytest.raises(InputError, match=f"at least 1 row, got {tile}"):
        tiled_keep_ratios(model, tile)
