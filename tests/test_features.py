"""Feature maps as timm's users ask for them: every patch in its place, dropped ones too."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import prod

import pytest
import torch
from torch import Tensor

from dynamicvit import DynamicViT, InputError, count_macs
from dynamicvit.costs import schedule_macs
from families import (
    BY_NAME,
    DEIT,
    FEW,
    HF_VIDEO_FAMILIES,
    Family,
    assert_agree,
    each_family,
    kinds_or_all,
)


def dense_states(model: DynamicViT, images: Tensor) -> Sequence[Tensor]:
    """``(B, P + N, C)`` after each block, as transformers gives them."""
    seen: list[Tensor] = []
    hooks = [
        block.register_forward_hook(
            lambda *args: seen.append(args[-1][0] if isinstance(args[-1], tuple) else args[-1])
        )
        for block in model.blocks
    ]
    model.bound.dense(images)
    for hook in hooks:
        hook.remove()
    return seen


@each_family
@torch.no_grad()
def test_maps_where_nothing_is_dropped_are_the_backbones(family: Family) -> None:
    model, images = family.sparse(keep_ratio=1.0), family.images()
    maps = model.forward_intermediates(images, intermediates_only=True)
    assert [tuple(map.shape) for map in maps] == [(2, 48, *family.grid)] * model.depth
    if not hasattr(model.backbone, "forward_intermediates"):  # transformers'
        states = dense_states(model, images)
        assert len(states) == len(maps)
        for mine, right in zip(maps, states, strict=True):
            patches = right[:, model.num_prefix_tokens :]
            assert_agree(mine.flatten(2).transpose(1, 2), patches)
        return
    for norm in (False, True):
        ours = model.forward_intermediates(images, norm=norm, intermediates_only=True)
        theirs = model.backbone.forward_intermediates(images, norm=norm, intermediates_only=True)
        for mine, right in zip(ours, theirs, strict=True):
            assert_agree(mine, right)


@kinds_or_all
@pytest.mark.filterwarnings(  # timm's, of BeiT's relative biases
    "ignore:Using a non-tuple sequence:UserWarning", "ignore:.*searchsorted:UserWarning"
)
@torch.no_grad()
def test_any_size_and_ratio_of_sides(family: Family) -> None:
    """Positions are interpolated as the dense network does it; the law and the costs hold."""
    if family in HF_VIDEO_FAMILIES:
        pytest.skip("positions of clips are not interpolated")
    grid = (*family.grid[:-2], 3, 7)
    size = 3 * family.patch, 7 * family.patch
    square = {"image_size": 4 * family.patch} if family.name == "hf_vit" else {}
    model = family.sparse(0.6, stages=(1, 2), policy="bypassed", restore_before=3, **square)
    model.bound.set_image_size(*size)
    shape = (*family.shape[:-2], *size)
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    decisions = [
        (torch.rand(2, prod(grid), generator=torch.Generator().manual_seed(seed)) < 0.6).float()
        for seed in (1, 2)
    ]
    masked = model.forward_masked(images, decisions, full_map=True)
    pruned = model.forward_pruned(images, decisions, full_map=True)
    assert pruned.full_map.shape[1:-1] == grid
    assert_agree(masked.logits, pruned.logits)
    assert_agree(masked.full_map, pruned.full_map)
    whole = model.at(1.0)
    assert_agree(whole(images), model.bound.dense(images))
    maps = whole.forward_intermediates(images, intermediates_only=True)
    assert [tuple(map.shape[2:]) for map in maps] == [grid] * 4
    for mine, right in zip(maps, dense_states(model, images), strict=True):
        assert_agree(mine.flatten(2).transpose(1, 2), right[:, model.num_prefix_tokens :])
    if family in FEW:
        assert count_macs(model, size) == schedule_macs(model, model.schedule, size)


@pytest.mark.parametrize("policy", ["removed", "merged"])
@pytest.mark.parametrize("name", ["deit", "registers", "eva02_split", "beit", "hf_siglip"])
@torch.no_grad()
def test_a_dropped_patch_stays_on_the_map(name: str, policy: str) -> None:
    """As it was when it was dropped, or as what it became part of; kept ones go on."""
    if name not in BY_NAME:
        pytest.skip("needs transformers")
    family = BY_NAME[name]
    model, images = family.sparse(0.6, stages=(1, 3), policy=policy), family.images()
    tokens, maps = model.forward_intermediates(images, output_fmt="NLC")
    report = model.forward_pruned(images, full_map=True)
    assert_agree(tokens, model.forward_features(images))
    first, _, third, last = maps
    dropped = ~report.kept[1]
    for image in range(2):
        lost = dropped[image] & report.kept[0][image]  # at the second stage, before block 3
        assert lost.any()
        if policy == "removed":
            assert torch.equal(last[image][lost], third[image][lost])
            early = ~report.kept[0][image]
            assert torch.equal(third[image][early], first[image][early])
        else:
            into = report.kept_index[1][image][report.groups[1][image]]
            assert torch.equal(last[image], last[image][into])
        assert not torch.equal(last[image][~dropped[image]], third[image][~dropped[image]])
    normed = model.forward_intermediates(images, norm=True, intermediates_only=True)[-1]
    assert_agree(normed.movedim(1, -1), report.full_map)


@torch.no_grad()
def test_which_blocks_and_how() -> None:
    model, images = DEIT.sparse(), DEIT.images()
    every = model.forward_intermediates(images, intermediates_only=True)
    for indices, blocks in ((2, [2, 3]), ([0, -1], [0, 3]), ([1], [1])):
        some = model.forward_intermediates(images, indices, stop_early=True)[1]
        assert len(some) == len(blocks)
        assert all(torch.equal(map, every[block]) for map, block in zip(some, blocks, strict=True))
    [(map, prefix)] = model.forward_intermediates(
        images, 1, return_prefix_tokens=True, intermediates_only=True
    )
    assert (map.shape, prefix.shape) == ((2, 48, *DEIT.grid), (2, 1, 48))
    lengths: list[int] = []
    model.blocks[2].register_forward_pre_hook(lambda *_: lengths.append(1))
    model.blocks[2].mlp.register_forward_pre_hook(lambda *_: lengths.append(2))
    model.forward_intermediates(images, [1], stop_early=True)
    assert lengths == []
    for indices in ([4], [-5], []):
        with pytest.raises(InputError, match=f"got {re.escape(str(indices))}"):
            model.forward_intermediates(images, indices)
    with pytest.raises(InputError, match="'NHWC'"):
        model.forward_intermediates(images, output_fmt="NHWC")


@each_family
def test_feature_info_names_what_there_is(family: Family) -> None:
    model = family.sparse()
    modules = dict(model.named_modules())
    assert len(model.feature_info) == model.depth
    for block, info in zip(model.blocks, model.feature_info, strict=True):
        assert modules[info["module"]] is block
        assert (info["num_chs"], info["reduction"]) == (48, family.patch)


@torch.no_grad()
def test_a_plain_tensor_is_pooled_where_that_is_right() -> None:
    images = DEIT.images()
    model = DEIT.sparse(policy="merged")
    assert_agree(model.forward_head(model.forward_features(images)), model(images), 1e-6)
    averaging = BY_NAME["registers"].sparse()
    images = BY_NAME["registers"].images()
    features = averaging.forward_features(images)
    assert_agree(averaging.forward_head(features), averaging(images), 1e-6)
    averaging.policy = "merged"
    with pytest.raises(InputError, match="forward_tokens"):
        averaging.forward_head(features)
