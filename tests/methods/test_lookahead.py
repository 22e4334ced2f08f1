"""Look-ahead merging: the coming block's attention told before it runs, and who merges by it."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from dynamicvit import DynamicViT, Schedule, count_macs, sparsify
from dynamicvit.backbones import backbone_for
from dynamicvit.core.combination import match, merge
from dynamicvit.core.merging import cosines, halves
from dynamicvit.costs import schedule_macs
from dynamicvit.layers.tokens import Tokens
from dynamicvit.methods import LookAhead, at_macs
from dynamicvit.methods.class_attention import class_attention
from families import (
    BY_NAME,
    DEIT,
    HF_FAMILIES,
    Family,
    assert_agree,
    each_family,
    few_families,
    few_families_or_all,
)
from real import ImageNet

RATIOS = (0.7, 0.5, 0.3)


def looking_ahead(family: Family = DEIT) -> DynamicViT:
    return DynamicViT(family.backbone(), Schedule((1, 2, 3), RATIOS), LookAhead).eval()


class TestTheComingAttention:
    @each_family
    @torch.no_grad()
    def test_it_is_that_of_the_block(self, family: Family) -> None:
        bound = backbone_for(family.backbone())
        tokens = bound.run(0, bound.embed(family.images()), keep_heads=True)
        if not bound.has_class_token:
            assert LookAhead(bound)._share(tokens) is None
            return
        if not bound.has_plain_products:  # then of the block before
            assert_agree(LookAhead(bound)._share(tokens), class_attention(tokens))
            return
        ran = bound.run(1, tokens, keep_heads=True)
        assert_agree(LookAhead(bound)._share(tokens), class_attention(ran))

    @pytest.mark.parametrize("family", [DEIT, *HF_FAMILIES[:1]], ids=lambda row: row.name)
    @torch.no_grad()
    def test_a_layer_that_can_not_be_taken_apart_is_called(self, family: Family) -> None:
        bound = backbone_for(family.backbone())
        block, x = bound.blocks[1], torch.randn(2, 9, bound.width)
        short = bound.first_products(block, x).softmax(dim=-1)
        for layer in block.modules():
            if isinstance(layer, nn.Linear):
                layer.register_forward_hook(lambda *_: None)
        assert_agree(bound.first_products(block, x).softmax(dim=-1), short)

    @torch.no_grad()
    def test_a_merged_token_counts_for_its_patches(self) -> None:
        bound = backbone_for(DEIT.backbone())
        tokens = bound.run(0, bound.embed(DEIT.images()))
        tokens.x[:, 2] = tokens.x[:, 1]
        twins = torch.tensor([[0]] * 2), torch.tensor([[1]] * 2)
        merged = LookAhead(bound)._share(merge(tokens, *twins))
        apart = LookAhead(bound)._share(tokens)
        assert_agree(merged[:, 0], apart[:, 0] + apart[:, 1])
        assert_agree(merged[:, 1:], apart[:, 2:])

    @torch.no_grad()
    def test_who_watches_a_norm_sees_it_called_once(self) -> None:
        model, calls = looking_ahead(), []
        model.blocks[1].norm1.register_forward_hook(lambda *_: calls.append(1))
        model(DEIT.images())
        assert calls == [1]

    @pytest.mark.parametrize("name", ["eva02_split", "beit"])
    def test_where_places_come_between_it_looks_back(self, name: str) -> None:
        assert all(stage.looks_back for stage in looking_ahead(BY_NAME[name]).methods)


class TestWhoMerges:
    def test_of_two_equal_pairs_the_one_that_is_worth_less(self) -> None:
        alike = torch.tensor([[[0.9, 0.1], [0.1, 0.9]]])
        worth = torch.tensor([[0.0, 5.0, -1.0, 5.0]])  # of positions 0 to 3
        merging, into = match(alike, 1, worth)
        assert (merging.tolist(), into.tolist()) == ([[2]], [[3]])

    def test_a_near_twin_merges_though_it_is_worth_more(self) -> None:
        alike = torch.tensor([[[0.99, 0.1], [0.1, 0.5]]])
        worth = torch.tensor([[1.0, 0.0, 0.0, 0.0]])  # e against (0.5 / 0.01)² = 2500
        assert match(alike, 1, worth)[0].tolist() == [[0]]

    @torch.no_grad()
    def test_a_merged_token_is_as_long_as_its_patches(self) -> None:
        torch.manual_seed(0)
        tokens = Tokens(torch.randn(2, 13, 4), 1, (3, 4))
        pairs = match(cosines(*halves(tokens.patches)), 5)
        long, mean = merge(tokens, *pairs, keep_length=True), merge(tokens, *pairs)
        assert_agree(torch.cosine_similarity(long.patches, mean.patches, dim=-1), torch.ones(2, 7))
        for image in range(2):
            for token in range(7):
                members = tokens.patches[image, long.groups[image] == token]
                assert_agree(long.patches[image, token].norm(), members.norm(dim=-1).mean())
                if len(members) == 1:
                    assert torch.equal(long.patches[image, token], members[0])

    @torch.no_grad()
    def test_in_a_mean_a_patch_counts_by_the_root_of_its_attention(self) -> None:
        bound = backbone_for(DEIT.backbone())
        tokens = bound.run(1, bound.run(0, bound.embed(DEIT.images())))
        method = LookAhead(bound)
        root, after = method._share(tokens).sqrt(), method.combine(tokens, 16)
        for image in range(2):
            for token in range(16):
                members = after.groups[image] == token
                mean = (root[image, members, None] * tokens.patches[image, members]).sum(0)
                alike = torch.cosine_similarity(mean, after.patches[image, token], dim=0)
                assert_agree(alike, torch.tensor(1.0))


@few_families
@torch.no_grad()
def test_both_paths_are_the_same(family: Family) -> None:
    model, images = looking_ahead(family), family.images(3)
    pruned, masked = model.forward_pruned(images), model.forward_masked(images)
    assert_agree(masked.logits, pruned.logits)
    assert [int(groups.max()) + 1 for groups in pruned.groups] == [14, 10, 6]
    assert all((groups >= 0).all() for groups in pruned.groups), "nothing is lost"
    for i in range(3):
        assert_agree(model(images[i : i + 1]), pruned.logits[i : i + 1])


@few_families_or_all
def test_macs_by_parts_are_those_counted(family: Family) -> None:
    model = looking_ahead(family)
    assert schedule_macs(model, model.schedule) == count_macs(model)


def test_its_own_stages() -> None:
    schedule = sparsify(DEIT.backbone(depth=12), 0.7, method="lookahead").schedule
    assert schedule.stages == tuple(range(2, 10))
    kept = [DEIT.num_patches, *schedule.kept(DEIT.num_patches)]
    assert all(after >= before // 2 for before, after in pairwise(kept))


def test_gradients_reach_the_backbone() -> None:
    model = looking_ahead().train()
    model(DEIT.images()).logits.square().sum().backward()
    for name, parameter in model.backbone.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_under_autocast() -> None:
    model, images = looking_ahead(), DEIT.images()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert model(images).isfinite().all()


@torch.no_grad()
def test_real_answers_change_far_less_than_by_merging_the_most_alike() -> None:
    real = ImageNet("deit", images=8)

    def moved(method: str) -> Tensor:
        model = at_macs(method, real.backbone, 0.48).eval()
        assert count_macs(model) / count_macs(real.backbone) == pytest.approx(0.48, abs=0.005)
        given, dense = model(real.images).log_softmax(1), real.dense.log_softmax(1)
        return (dense.exp() * (dense - given)).sum(1).mean()

    assert moved("lookahead") < 0.5 * moved("tome")
