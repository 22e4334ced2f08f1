"""The law: for the same decisions the masked path and the pruned path give the same logits.

For every backbone and any decisions: images of one batch that keep different numbers of patches,
that keep all, that keep one, that keep none.
"""

from __future__ import annotations

import zlib
from functools import cache

import hypothesis
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dynamicvit import DynamicViT, Schedule
from dynamicvit.core.schedule import Policy
from dynamicvit.layers import masked_attention
from families import BY_NAME, NUM_CLASSES, POLICIES, Family, assert_agree, each_family, kinds_or_all

SHARES = (0.0, 0.05, 0.3, 0.7, 1.0)

#: For each family and policy.
EXAMPLES = 5


@cache
def backbone(name: str, depth: int) -> nn.Module:
    return BY_NAME[name].backbone(depth)


def sparse(
    name: str,
    depth: int,
    stages: tuple[int, ...],
    policy: Policy = "removed",
    restore_before: int | None = None,
) -> DynamicViT:
    """Decisions are given, so ratios and prediction modules play no part."""
    schedule = Schedule(
        stages,
        (0.5,) * len(stages),
        policy,
        None if policy == "removed" else restore_before,
    )
    return DynamicViT(backbone(name, depth), schedule).eval()


whatever_becomes_of_them = pytest.mark.parametrize("policy", POLICIES)


@pytest.fixture(
    params=["fused attention", pytest.param("attention by size", marks=pytest.mark.extended)]
)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The form that real networks run; these are so small that hypothesis sees the explicit one."""
    if request.param == "fused attention":
        monkeypatch.setattr(masked_attention, "KEYS_PER_WIDTH", 0)


@st.composite
def cases(
    draw: st.DrawFn, family: Family
) -> tuple[int, tuple[int, ...], int | None, list[Tensor], int]:
    """A depth, stages, where dropped tokens come back, decisions for each stage, and a seed."""
    depth = draw(st.sampled_from((1, 3, 4)))  # to build a network takes longer than to run it
    stages = tuple(sorted(draw(st.sets(st.integers(0, depth - 1), max_size=3))))
    later = range(max(stages, default=-1) + 1, depth)
    restore_before = draw(st.sampled_from([None, *later]))
    batch = draw(st.integers(1, 4))
    seed = draw(st.integers(0, 2**16))
    # How much an image keeps differs from image to image and from stage to stage.
    share = st.lists(st.sampled_from(SHARES), min_size=batch, max_size=batch)
    shares = draw(st.lists(share, min_size=len(stages), max_size=len(stages)))
    random = torch.Generator().manual_seed(seed)
    decisions = [
        (torch.rand(batch, family.num_patches, generator=random) < torch.tensor(row)[:, None])
        .float()
        for row in shares
    ]  # fmt: skip
    return depth, stages, restore_before, decisions, seed


@each_family
@whatever_becomes_of_them
def test_masked_and_pruned_logits_agree(family: Family, policy: Policy) -> None:
    """Whatever hypothesis draws: others for each family and policy, the same ones in every run."""

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @hypothesis.seed(zlib.crc32(f"{family.name} {policy}".encode()))
    @given(cases(family))
    @torch.no_grad()
    def holds(case: tuple[int, tuple[int, ...], int | None, list[Tensor], int]) -> None:
        depth, stages, restore_before, decisions, seed = case
        batch = len(decisions[0]) if decisions else 2
        model = sparse(family.name, depth, stages, policy, restore_before)
        images = family.images(batch, seed)
        masked = model.forward_masked(images, decisions, full_map=True)
        pruned = model.forward_pruned(images, decisions, full_map=True)
        assert masked.logits.shape == pruned.logits.shape == (batch, NUM_CLASSES)
        assert_agree(masked.logits, pruned.logits)
        assert masked.full_map.shape == (batch, *family.grid, 48)
        assert_agree(masked.full_map, pruned.full_map)
        for decision, kept in zip(masked.decisions, pruned.kept, strict=True):
            assert torch.equal(decision > 0.5, kept)

    holds()


@each_family
@pytest.mark.parametrize(
    ("policy", "restore_before"), [("removed", None), ("merged", 3), ("bypassed", 3)]
)
@pytest.mark.usefixtures("form")
@torch.no_grad()
def test_every_image_of_the_batch_keeps_another_number(
    family: Family, policy: Policy, restore_before: int | None
) -> None:
    """None, one, half and all, in one batch and for every family whatever hypothesis draws.

    Tokens that come back at the end only are in the tests around.
    """
    stages = (1, 3) if restore_before is None else (1, 2)
    model = sparse(family.name, 4, stages, policy, restore_before)
    images = family.images(4)
    first = torch.zeros(4, family.num_patches)
    first[1, 7] = 1
    first[2, ::2] = 1
    first[3] = 1
    second = first.clone()
    second[3, :3] = 0
    masked = model.forward_masked(images, [first, second], full_map=True)
    pruned = model.forward_pruned(images, [first, second], full_map=True)
    assert masked.logits.isfinite().all()
    assert_agree(masked.logits, pruned.logits)
    assert_agree(masked.full_map, pruned.full_map)
    for image in range(4):  # nobody alone is as in the batch: rows are packed, padding is none
        alone = model.forward_pruned(
            images[image : image + 1], [d[image : image + 1] for d in (first, second)]
        )
        assert_agree(pruned.logits[image : image + 1], alone.logits)


@kinds_or_all
@whatever_becomes_of_them
@torch.no_grad()
def test_the_surviving_tokens_agree_and_not_only_the_logits(family: Family, policy: Policy) -> None:
    """A class token could hide what pooling does not see."""
    model, images = family.sparse(keep_ratio=0.5, policy=policy), family.images()
    survived = model.forward_pruned(images).kept
    pruned = model.forward_tokens(images)
    masked = model.forward_masked(images, [kept.float() for kept in survived]).features
    prefix = model.num_prefix_tokens
    rows = pruned.kept_index()[..., None].expand(-1, -1, pruned.x.shape[-1])
    held = torch.cat([masked.x[:, :prefix], masked.patches.gather(1, rows)], dim=1)
    assert_agree(held, pruned.x)


@each_family
@pytest.mark.usefixtures("form")
@torch.no_grad()
def test_the_law_holds_where_attention_is_sharp(family: Family) -> None:
    """Logits that differ by hundreds: a dropped key far above the kept ones changes nothing.

    In fp64, because fp32 itself can't resolve such attention to 1e-5.
    """
    model = family.sparse(depth=3, stages=(1, 2)).double()
    sharpened = [
        module
        for name, module in model.blocks.named_modules()
        if name.endswith(("qkv", "q_proj", "k_proj", "query", "key"))
        or (family.name == "qk_norm" and name.endswith(("q_norm", "k_norm")))
    ]
    assert len(sharpened) >= model.depth
    for module in sharpened:
        module.weight.mul_(10)
    images = family.images(3).double()
    decisions = [d.double() for d in family.decisions(3, stages=2, share=0.5)]
    masked = model.forward_masked(images, decisions).logits
    assert masked.isfinite().all()
    assert_agree(masked, model.forward_pruned(images, decisions).logits, tolerance=1e-9)


@each_family
@pytest.mark.usefixtures("form")
def test_gradients_of_the_weights_agree(family: Family) -> None:
    """Same logits from the same computation: the weights get the same gradient in both paths."""
    model, images = family.sparse(), family.images()
    decisions = family.decisions(share=0.6)
    gradients = []
    for path in (model.forward_masked, model.forward_pruned):
        model.zero_grad()
        path(images, decisions).logits.square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in family.read(model.backbone)})
    for name, masked in gradients[0].items():
        assert_agree(masked, gradients[1][name], tolerance=1e-4)


@pytest.mark.parametrize("name", ["deit", "beit", "eva02_split"])
@torch.no_grad()
def test_a_dropped_patch_has_no_influence(name: str) -> None:
    """What is in the dropped patches' pixels does not matter once they are dropped at block 0."""
    family = BY_NAME[name]
    model, images = sparse(name, 3, (0,)), family.images()
    decision = family.decisions(stages=1, share=0.5)[0]
    other = images.clone()
    for image, row in enumerate(decision):
        for patch in (row < 0.5).nonzero().flatten().tolist():
            top, left = (side * family.patch for side in divmod(patch, family.grid[1]))
            other[image, :, top : top + family.patch, left : left + family.patch] = 9.0
    for path in (model.forward_masked, model.forward_pruned):
        assert_agree(path(other, [decision]).logits, path(images, [decision]).logits)
    assert (model.backbone(other) - model.backbone(images)).abs().max() > 0.1
