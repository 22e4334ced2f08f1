"""What only clips have: fewer frames, fewer pixels, and as many tubelets of each time."""

from __future__ import annotations

import copy
import math

import pytest
import timm
import torch
import torch.nn.functional as F

from dynamicvit import DynamicViT, InputError, inflate, sparsify
from dynamicvit.core.decisions import gumbel_sampler
from dynamicvit.core.networks import bound_of, core_of
from dynamicvit.core.schedule import Policy
from dynamicvit.costs import count_macs, schedule_macs
from dynamicvit.methods import METHODS, FewerPixels, at_macs
from families import BY_NAME, DEIT, Family, assert_agree

INFLATED = BY_NAME["inflated_augreg"]
each_family = pytest.mark.parametrize(
    "family", [BY_NAME["hf_videomae"], INFLATED], ids=lambda family: family.name
)


def made(family: Family, method: str, keep_ratio: float = 0.6, **arguments: object) -> DynamicViT:
    return core_of(sparsify(family.backbone(), keep_ratio, method=method, **arguments)).eval()


def by_time(model: DynamicViT, kept: torch.Tensor) -> list[list[int]]:
    return kept.unflatten(1, (model.bound.grid(*model.bound.image_size)[0], -1)).sum(2).tolist()


@each_family
@pytest.mark.parametrize("method", ["fewer-frames", "per-frame"])
@pytest.mark.parametrize("policy", ["removed", "merged"])
@torch.no_grad()
def test_both_paths_agree(family: Family, method: str, policy: Policy) -> None:
    model, clips = made(family, method, policy=policy), family.images()
    model.warns_untrained = False
    pruned = model.forward_pruned(clips)
    masked = model.forward_masked(clips, [kept.float() for kept in pruned.kept])
    assert_agree(masked.logits, pruned.logits)
    assert schedule_macs(model, model.schedule) == count_macs(model) < count_macs(model.backbone)


@each_family
@torch.no_grad()
def test_fewer_frames_are_whole_times(family: Family) -> None:
    model, clips = made(family, "fewer-frames", 0.5), family.images()
    times, *space = model.bound.grid(*model.bound.image_size)
    counts = by_time(model, model.forward_pruned(clips).kept[0])
    whole = space[0] * space[1]
    assert counts == [[0, whole] * (times // 2)] * len(clips)
    drawn = model.forward_masked(clips, sampler=gumbel_sampler).decisions[0]
    assert by_time(model, drawn.bool()) == counts, "by no chance"
    # The dropped times are looked at nowhere.
    frames = model.bound.tubelet
    other = clips.unflatten(1, (times, frames)).clone()
    other[:, ::2] = torch.randn(other[:, ::2].shape)
    assert_agree(model(other.flatten(1, 2)), model(clips))


@each_family
@torch.no_grad()
def test_as_many_of_each_time(family: Family) -> None:
    model, clips = made(family, "per-frame", 0.7, policy="removed"), family.images()
    model.warns_untrained = False
    free = made(family, "dynamicvit", 0.7, policy="removed")
    assert count_macs(model) == count_macs(free)
    assert model.schedule == free.schedule
    for kept in model.forward_pruned(clips).kept:
        for counts in by_time(model, kept):
            assert max(counts) - min(counts) <= 1
    scores = model.methods[0].keep_scores(model.first_blocks(clips))
    kept = model.forward_pruned(clips).kept[0]
    frames = model.bound.grid(*model.bound.image_size)[0], -1
    least = scores.masked_fill(~kept, math.inf).unflatten(1, frames).amin(dim=2)
    best = scores.masked_fill(kept, -math.inf).unflatten(1, frames).amax(dim=2)
    assert (least > best).all(), "the best of their own time"


def test_ranks_have_the_gradient_of_scores() -> None:
    model = made(INFLATED, "per-frame").train()
    model(INFLATED.images()).logits.square().sum().backward()
    assert all(stage.mlp[0].weight.grad.abs().sum() > 0 for stage in model.methods)


@torch.no_grad()
def test_fewer_pixels() -> None:
    """The network at another size of frames, which takes the clips that the others take."""
    small = dict(img_size=96, embed_dim=48, num_heads=3, depth=4, num_classes=7)
    backbone = inflate(timm.create_model("vit_tiny_patch16_224", **small), frames=4).eval()
    clips = torch.randn(2, 4, 3, 96, 96)
    for fraction in (0.7, 0.45):
        model = at_macs("fewer-pixels", backbone, fraction)
        share = count_macs(model) / count_macs(backbone)
        assert share == pytest.approx(fraction, abs=0.1)
        bound = bound_of(copy.deepcopy(backbone))
        side = 16 * model.bound.grid(96, 96)[1]
        bound.set_image_size(side, side)
        smaller = F.interpolate(clips.flatten(0, 1), side, mode="area").unflatten(0, (2, 4))
        assert_agree(model(clips), bound.module(smaller))
        assert_agree(model.dense(clips), bound.module(smaller))
        assert core_of(sparsify(backbone, fraction, method="fewer-pixels")).method is FewerPixels
    with pytest.raises(InputError, match="positions of this backbone are for"):
        at_macs("fewer-pixels", BY_NAME["hf_videomae"].backbone(), 0.7)
    with pytest.raises(InputError, match="frames of 48x48"):
        model(clips[..., :48, :48])


def test_they_are_for_clips() -> None:
    for name in [name for name, kind in METHODS.items() if kind.for_clips]:
        with pytest.raises(InputError, match=f"method '{name}' is for clips; .* takes images"):
            sparsify(DEIT.backbone(), 0.7, method=name)
    with pytest.raises(InputError, match="per-frame gives none"):
        sparsify(INFLATED.backbone(), 0.7, method="per-frame", per_image=True)
