"""The law where maps stay whole: both paths agree for any decisions, also where they flip."""

from __future__ import annotations

import zlib
from functools import cache

import hypothesis
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dynamicvit import DynamicViT, InputError, Schedule, segmenter, sparsify
from dynamicvit.core.decisions import best_k_sampler
from dynamicvit.costs import DENSE, count_macs, schedule_macs
from dynamicvit.errors import UntrainedWarning
from families import NUM_CLASSES, assert_agree, randomize
from maps import BY_NAME, MapFamily, each_map, few_maps

SHARES = (0.0, 0.05, 0.5, 1.0)


@cache
def backbone(name: str, depth: int) -> nn.Module:
    return BY_NAME[name].backbone(depth)


@st.composite
def cases(draw: st.DrawFn, family: MapFamily) -> tuple[int, tuple[int, ...], list[Tensor], int]:
    """A depth, stages, decisions for each stage, and a seed."""
    depth = draw(st.integers(1, 5))
    stages = tuple(sorted(draw(st.sets(st.integers(0, depth - 1), max_size=3))))
    batch, seed = draw(st.integers(1, 3)), draw(st.integers(0, 2**16))
    share = st.lists(st.sampled_from(SHARES), min_size=batch, max_size=batch)
    shares = draw(st.lists(share, min_size=len(stages), max_size=len(stages)))
    random = torch.Generator().manual_seed(seed)
    decisions = [
        (torch.rand(batch, family.num_patches, generator=random) < torch.tensor(row)[:, None])
        .float()
        for row in shares
    ]  # fmt: skip
    return depth, stages, decisions, seed


@each_map
def test_masked_and_pruned_agree(family: MapFamily) -> None:
    """Decisions are drawn apart for each stage: positions leave the slow path and come back."""

    @settings(
        max_examples=5,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @hypothesis.seed(zlib.crc32(family.name.encode()))
    @given(cases(family))
    @torch.no_grad()
    def holds(case: tuple[int, tuple[int, ...], list[Tensor], int]) -> None:
        depth, stages, decisions, seed = case
        batch = len(decisions[0]) if decisions else 2
        ratios = (0.5,) * len(stages)
        model = DynamicViT(backbone(family.name, depth), Schedule(stages, ratios, "cheap")).eval()
        randomize(model.predictors, seed)
        images = family.images(batch, seed)
        masked = model.forward_masked(images, decisions, full_map=True)
        pruned = model.forward_pruned(images, decisions, full_map=True)
        assert masked.logits.shape == pruned.logits.shape == (batch, NUM_CLASSES)
        assert_agree(masked.logits, pruned.logits)
        assert_agree(masked.full_map, pruned.full_map)
        for decision, kept, drawn in zip(masked.decisions, pruned.kept, decisions, strict=True):
            assert torch.equal(decision > 0.5, kept)
            assert torch.equal(decision, drawn)  # not multiplied by the one before

    holds()


@each_map
@torch.no_grad()
def test_all_on_the_slow_path_is_the_dense_network(family: MapFamily) -> None:
    """And nothing dropped gives timm's own logits, features and levels."""
    dense, images = family.backbone(), family.images()
    model = sparsify(dense, [1.0, 1.0, 1.0]).eval()
    randomize(model.predictors)
    expected = dense(images)
    assert model.bound.grid(*family.size) == family.grid
    assert_agree(model(images), expected)
    assert_agree(model.forward_dense(images).logits, expected)
    everything = [torch.ones(2, family.num_patches)] * 3
    assert_agree(model.forward_masked(images, everything).logits, expected)


@each_map
@torch.no_grad()
def test_inference_does_what_training_with_its_choice_does(family: MapFamily) -> None:
    """Three ways to the same answer; and the paths differ from each other by what they are."""
    model, images = family.sparse(), family.images(3)
    pruned = model.forward_pruned(images)
    n = family.num_patches
    assert [kept.sum(1).tolist() for kept in pruned.kept] == [
        [int(n * ratio)] * 3 for ratio in (0.7, 0.7 - 0.2, 0.7 - 0.4)
    ]
    flips = (pruned.kept[1] & ~pruned.kept[0]) | (pruned.kept[2] & ~pruned.kept[1])
    assert flips.any(), "some position should return to the slow path"
    masked = model.forward_masked(images, sampler=best_k_sampler)
    for decision, kept in zip(masked.decisions, pruned.kept, strict=True):
        assert torch.equal(decision > 0.5, kept)
    assert_agree(masked.logits, pruned.logits)
    assert_agree(model(images), pruned.logits)
    for index, kept in zip(pruned.kept_index, pruned.kept, strict=True):
        assert torch.equal(torch.zeros(3, n, dtype=torch.bool).scatter(1, index, True), kept)
    for image in range(3):  # nobody alone is as in the batch
        assert_agree(model(images[image : image + 1]), pruned.logits[image : image + 1])
    assert (pruned.logits - model.forward_dense(images).logits).abs().max() > 1e-2


@each_map
def test_gradients_of_the_weights_agree(family: MapFamily) -> None:
    """Of backbone and cheap paths, in the masked path, the pruned one, and with "compact"."""
    model, images = family.sparse(), family.images()
    decisions = family.decisions()
    gradients = []
    for path, more in (
        (model.forward_masked, {}),
        (model.forward_pruned, {}),
        (model.forward_masked, {"masking": "compact"}),
    ):
        model.zero_grad()
        path(images, decisions, **more).logits.square().sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert any("cheap" in name for name in gradients[0])
    for name, masked in gradients[0].items():
        for other in gradients[1:]:
            assert_agree(masked, other[name], tolerance=1e-4)


@few_maps
def test_gradient_checkpointing_gives_the_same(family: MapFamily) -> None:
    model, images = family.sparse(), family.images()
    decisions, gradients = family.decisions(), []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model.train().forward_masked(images, decisions).logits.square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        assert_agree(one, other)


@few_maps
def test_the_decision_has_the_slope_of_what_inference_gives(family: MapFamily) -> None:
    """What one position's flip at inference changes is what the derivative says, to first order.

    The branches are scaled down so that the first order is all there is.
    """
    model, images = family.sparse(), family.images(1)
    model = model.double()
    images = images.double()
    for block in model.blocks:
        for weights in (block.mlp.fc2.weight, block.mlp.fc2.bias):
            weights.data *= 1e-4
    for predictor in model.predictors:
        for path in predictor.cheap.values():
            path.linear.weight.data *= 1e-4
            path.linear.bias.data *= 1e-4
    decisions = [d.double().requires_grad_() for d in family.decisions(1)]
    model.forward_masked(images, decisions).logits[0, 3].backward()
    with torch.no_grad():
        before = model.forward_pruned(images, decisions).logits[0, 3]
        for stage in range(3):
            for position in (0, family.num_patches // 2):
                flipped = [d.detach().clone() for d in decisions]
                step = 1 - 2 * flipped[stage][0, position]
                flipped[stage][0, position] += step
                change = model.forward_pruned(images, flipped).logits[0, 3] - before
                slope = decisions[stage].grad[0, position] * step
                assert change == pytest.approx(slope.item(), rel=2e-3)


@few_maps
def test_the_parts_add_up_to_what_is_counted(family: MapFamily) -> None:
    """And to the formula: a position on the cheap path spares the MLP for one linear layer."""
    model, size = family.sparse(), family.size
    dense, first = count_macs(model.backbone, size), Schedule((1,), (1.0,), "cheap")
    assert schedule_macs(model, DENSE, size) == dense
    scores = 3 * (schedule_macs(model, first, size) - dense)
    model.keep_ratio = 0.5
    assert model.keep_ratio == 0.5
    counted = count_macs(model, size)
    assert schedule_macs(model, model.schedule, size) == counted
    assert schedule_macs(model.backbone, model.schedule, size) == counted
    width, n = model.bound.width, family.num_patches
    blocks = zip(model.schedule.kept(n), (1, 1, 2), strict=True)  # up to the next stage
    cheap = sum((n - k) * count for k, count in blocks)
    wide = next(model.blocks[0].mlp.fc1.parameters()).shape[0]
    assert counted == dense + scores - cheap * (2 * wide * width - width * width)


@each_map
@torch.no_grad()
def test_four_levels(family: MapFamily) -> None:
    """As timm's own where nothing is cheap; the first two always, all of them whole."""
    model, images = family.sparse(), family.images()
    dense = model.backbone
    for norm in (False, True):
        final, theirs = dense.forward_intermediates(images, norm=norm)
        sparse_final, ours = model.forward_intermediates(images, norm=norm)
        model.keep_ratio = [1.0, 1.0, 1.0]
        whole_final, whole = model.forward_intermediates(images, norm=norm)
        model.keep_ratio = 0.7
        assert sparse_final.shape == final.shape
        assert_agree(whole_final, final)
        for i in range(4):
            assert_agree(whole[i], theirs[i])
            assert ours[i].shape == theirs[i].shape
            if i < 2:
                assert_agree(ours[i], theirs[i])
    channels = [info["num_chs"] for info in model.feature_info]
    assert channels == [each.shape[1] for each in ours]
    expected = model.forward_pruned(images)
    assert_agree(model.forward_features(images), sparse_final)
    assert_agree(model.forward_head(model.forward_features(images)), expected.logits)
    [early] = model.forward_intermediates(images, [2], stop_early=True, intermediates_only=True)
    assert_agree(early, model.forward_intermediates(images, intermediates_only=True)[2])
    rows = model.forward_intermediates(images, [2], output_fmt="NLC", intermediates_only=True)[0]
    assert_agree(rows, early.flatten(2).transpose(1, 2))
    with pytest.raises(InputError, match=r"0 to 3, got \[4\]"):
        model.forward_intermediates(images, [4])


@few_maps
@torch.no_grad()
def test_a_segmentation_model_reads_the_last_level(family: MapFamily) -> None:
    model, images = segmenter(family.sparse(), 4), family.images()
    decisions = family.decisions()
    masked, pruned = (
        path(images, decisions) for path in (model.forward_masked, model.forward_pruned)
    )
    assert_agree(masked.logits, pruned.logits)
    rows, columns = (side // 32 for side in family.size)
    assert model(images).shape == (2, 4, rows, columns)
    assert_agree(model(images), model.forward_pruned(images).logits)
    assert model.forward_intermediates(images)[1][-1].shape == (2, model._map_width, rows, columns)


def test_nothing_that_needs_no_training_is_named() -> None:
    """There is nothing for maps that stay whole."""
    network = BY_NAME["convnext"].backbone()
    with pytest.warns(UntrainedWarning) as seen:
        sparsify(network, 0.7).eval()(BY_NAME["convnext"].images())
    assert "lookahead" not in str(seen[0].message)
    with pytest.raises(InputError, match="stay whole"):
        sparsify(network, 0.7).calibrate(BY_NAME["convnext"].images(16))


@few_maps
@torch.no_grad()
def test_under_autocast(family: MapFamily) -> None:
    model, images = family.sparse(), family.images()
    decisions = family.decisions()
    with torch.autocast("cpu", torch.bfloat16):
        masked = model.forward_masked(images, decisions).logits
        pruned = model.forward_pruned(images, decisions).logits
    assert_agree(masked.float(), pruned.float(), tolerance=0.05)


def test_what_cant_be() -> None:
    model = BY_NAME["convnext"].sparse()
    dense = BY_NAME["convnext"].backbone
    with pytest.raises(InputError, match=r"0\.3 .* -0\.1"):
        model.keep_ratio = 0.3
    with pytest.raises(InputError, match=r"-0\.1"):
        sparsify(dense(), 0.3)
    with pytest.raises(InputError, match=r"stage 9.*0 to 4"):
        sparsify(dense(), 0.7, stages=[1, 2, 9])
    with pytest.raises(InputError, match=r"'merged'.*'cheap'"):
        sparsify(dense(), 0.7, policy="merged")
    with pytest.raises(InputError, match=r"'merged'.*'cheap'"):
        model.policy = "merged"
    with pytest.raises(InputError, match=r"lookahead.*dynamicvit"):
        sparsify(dense(), 0.7, method="lookahead")
    with pytest.raises(InputError, match=r"16x64.*32"):
        model(torch.randn(1, 3, 16, 64))
    with pytest.raises(InputError, match=r"zeroed"):
        model.forward_masked(BY_NAME["convnext"].images(), masking="zeroed")
    with pytest.raises(InputError, match=r"48x96.*64x96"):
        BY_NAME["swin"].sparse()(torch.randn(1, 3, 48, 96))
    with pytest.raises(InputError, match=r"66x96.*4x4"):
        BY_NAME["swin_any_size"].sparse()(torch.randn(1, 3, 66, 96))
    with pytest.raises(InputError, match=r"global response norm"):
        sparsify(BY_NAME["convnext"].backbone(use_grn=True, ls_init_value=None))
