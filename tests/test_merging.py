"""Merging: which token a dropped one joins, what it becomes, and what that makes a token worth."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dynamicvit.backbones import backbone_for
from dynamicvit.core.decisions import best_k_sampler
from dynamicvit.core.merging import discounted, has_better, join, likeness, most_alike
from dynamicvit.core.method import Masking
from dynamicvit.core.model import DynamicViT
from dynamicvit.layers.tokens import Tokens, top_k
from dynamicvit.methods.tome import TokenMerging
from families import DEIT, POLICIES, Family, assert_agree, few_families


def some(held: int = 6, width: int = 48, batch: int = 2, prefix: int = 1) -> Tokens:
    random = torch.Generator().manual_seed(0)
    return Tokens(torch.randn(batch, prefix + held, width, generator=random), prefix, (held,))


def merged(family: Family = DEIT, **changes: object) -> DynamicViT:
    return family.sparse(0.5, policy="merged", **changes)


class TestLikeness:
    def test_it_is_the_cosine(self) -> None:
        tokens = Tokens(torch.tensor([[[9.0, 9.0], [2.0, 0.0], [0.0, 3.0], [1.0, 1.0]]]), 1, (3,))
        half = 0.5**0.5
        expected = torch.tensor([[[1.0, 0.0, half], [0.0, 1.0, half], [half, half, 1.0]]])
        torch.testing.assert_close(likeness(tokens), expected)

    def test_the_most_alike_is_one_that_stays(self) -> None:
        alike = torch.tensor([[[1.0, 0.9, 0.1], [0.9, 1.0, 0.5], [0.1, 0.5, 1.0]]])
        stays = torch.tensor([[False, True, True]])
        assert most_alike(alike, stays).tolist() == [[1, 1, 2]]
        assert most_alike(alike, torch.tensor([[False, False, True]])).tolist() == [[2, 2, 2]]

    def test_autocast_does_not_make_it_coarse(self) -> None:
        tokens = some()
        tokens.x[:, 2] = tokens.x[:, 1] + 0.02 * tokens.x[:, 3]
        exact = likeness(tokens)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(likeness(tokens), exact)

    def test_nothing_of_it_is_learned(self) -> None:
        tokens = some()
        tokens = tokens.with_x(tokens.x.requires_grad_())
        assert not likeness(tokens).requires_grad


class TestWorth:
    def alike(self, pairs: dict[tuple[int, int], float], held: int = 3) -> torch.Tensor:
        matrix = torch.eye(held)
        for (one, other), value in pairs.items():
            matrix[one, other] = matrix[other, one] = value
        return matrix[None]

    def test_a_token_that_has_a_twin_is_the_first_to_leave(self) -> None:
        worth = discounted(torch.tensor([[3.0, 2.0, -2.0]]), self.alike({(0, 1): 0.999}))
        assert worth[0].argsort().tolist() == [1, 2, 0]

    def test_of_twins_the_better_one_is_worth_what_it_was(self) -> None:
        odds = torch.tensor([[3.0, 2.0, -2.0]])
        alone, twins = (
            discounted(odds, self.alike({})),
            discounted(odds, self.alike({(0, 1): 0.999})),
        )
        torch.testing.assert_close(alone[0, 0], twins[0, 0])

    def test_a_token_that_is_gone_is_nobodys_twin(self) -> None:
        alike, odds = self.alike({(0, 1): 0.999}), torch.tensor([[3.0, 2.0, -2.0]])
        without = discounted(odds, alike, torch.tensor([[False, True, True]]))
        torch.testing.assert_close(without[0, 1:], discounted(odds[:, 1:], alike[:, 1:, 1:])[0])

    @pytest.mark.parametrize("rounding", [-1e-3, 0.0, 1e-3])
    def test_of_twins_with_equal_odds_the_second_leaves(self, rounding: float) -> None:
        odds = torch.tensor([[3.0, 3.0 + rounding, -2.0]])
        worth = discounted(odds, self.alike({(0, 1): 1.0}))
        assert top_k(worth, 2).tolist() == [[0, 2]]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_of_a_thousand_equals_the_first_is_better(self, dtype: torch.dtype) -> None:
        better = has_better(torch.zeros(1, 1500, dtype=dtype))
        assert torch.equal(better[0], torch.ones(1500, 1500).tril(-1).bool())

    def test_they_are_finite(self) -> None:
        worth = discounted(torch.tensor([[30.0, 30.0, -30.0]]), torch.ones(1, 3, 3))
        assert worth.isfinite().all()


class TestJoining:
    def test_a_token_is_the_mean_of_its_patches_and_counts_for_them(self) -> None:
        tokens = some()
        gone = torch.tensor([[1.0, 0.0, 1.0, 0.0, 0.0, 0.0]] * 2)
        once = join(tokens, gone, torch.tensor([[3] * 6] * 2))
        torch.testing.assert_close(once.patches[:, 3], tokens.patches[:, [0, 2, 3]].mean(dim=1))
        assert once.size is not None
        assert once.groups is not None
        assert once.size[:, [1, 3, 4, 5]].tolist() == [[1, 3, 1, 1]] * 2
        assert once.groups.tolist() == [[3, 1, 3, 3, 4, 5]] * 2
        # Whole groups go on to others, from the places where they are then.
        left = once.keep(torch.tensor([[1, 3, 4, 5]] * 2))
        gone = torch.tensor([[0.0, 1.0, 0.0, 0.0]] * 2)
        twice = join(left, gone, torch.tensor([[3] * 4] * 2))
        torch.testing.assert_close(twice.patches[:, 3], tokens.patches[:, [0, 2, 3, 5]].mean(dim=1))
        assert twice.size is not None
        assert twice.groups is not None
        assert twice.size[:, 3].tolist() == [4, 4]
        assert twice.groups.tolist() == [[3, 0, 3, 3, 2, 3]] * 2

    def test_nothing_else_is_touched(self) -> None:
        tokens = some().with_x(some().x.bfloat16())
        gone = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0, 0.0]] * 2)
        after = join(tokens, gone, torch.tensor([[2] * 6] * 2))
        others = [0, 1, 3, 4, 5]
        assert torch.equal(after.x[:, :1], tokens.x[:, :1])
        assert torch.equal(after.patches[:, others], tokens.patches[:, others]), "not one rounding"

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_a_large_group_is_a_mean_in_half_precision_too(self, dtype: torch.dtype) -> None:
        tokens = Tokens(torch.ones(1, 600, 4, dtype=dtype), 0, (600,))
        gone = torch.ones(1, 600).index_fill(1, torch.tensor([0]), 0.0)
        left = join(tokens, gone, torch.zeros(1, 600, dtype=torch.long))
        assert left.patches[0, 0].tolist() == [1.0] * 4

    def test_the_decision_has_a_gradient(self) -> None:
        """More of a token that leaves moves the one that it joins towards it."""
        tokens, into = some(), torch.tensor([[2] * 6] * 2)
        tokens = tokens.with_x(tokens.x.double())
        gone = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0, 0.0]] * 2, dtype=torch.float64)
        assert torch.autograd.gradcheck(
            lambda gone: join(tokens, gone, into).x, gone.requires_grad_()
        )

    def test_an_equal_token_leaves_no_trace(self) -> None:
        """The block after it gives what it gives for both of them."""
        bound = backbone_for(DEIT.backbone())
        tokens = some()
        tokens.x[:, 3] = tokens.x[:, 5]  # patches 2 and 4
        gone = torch.zeros(2, 6).index_fill(1, torch.tensor([2]), 1.0)
        into = most_alike(likeness(tokens), gone < 0.5)
        assert into[:, 2].tolist() == [4, 4]
        stays = torch.tensor([[0, 1, 3, 4, 5]] * 2)
        fewer = join(tokens, gone, into).keep(stays)
        with torch.no_grad():
            whole = bound.run(1, tokens).x
            without = bound.run(1, fewer).x
            lost = bound.run(1, replace(fewer, size=None)).x
        held = torch.tensor([0, 1, 2, 4, 5, 6])
        assert_agree(without, whole[:, held])
        assert (lost - whole[:, held]).abs().max() > 1e-3, "or the count would not matter"


@pytest.mark.parametrize("masking", ["full", "lagged", "compact"])
@few_families
@torch.no_grad()
def test_the_masked_path_chooses_as_inference_does(family: Family, masking: Masking) -> None:
    model, images = merged(family), family.images()
    pruned = model.forward_pruned(images)
    masked = model.forward_masked(images, sampler=best_k_sampler, masking=masking)
    for decision, survived in zip(masked.decisions, pruned.kept, strict=True):
        assert torch.equal(decision > 0.5, survived)
    assert_agree(masked.logits, pruned.logits)


@torch.no_grad()
def test_what_is_learned_is_the_odds_before_likeness_counts() -> None:
    """The teacher says what a patch is worth if it is lost, and that is what is compared."""
    model, images = merged(), DEIT.images()
    masked = model.forward_masked(images, sampler=best_k_sampler, masking="compact")
    first = masked.keep_scores[0]
    own = model.predictors[0](model.first_blocks(images).patches)
    torch.testing.assert_close(first, own)
    scores = model.forward_pruned(images).keep_scores[0]
    kept = model.schedule.kept(DEIT.num_patches)[0]
    assert not torch.equal(top_k(scores, kept), top_k(own, kept)), "likeness changes the choice"


@torch.no_grad()
def test_every_patch_is_part_of_a_token() -> None:
    output = merged().forward_pruned(DEIT.images())
    for groups, survived in zip(output.groups, output.kept, strict=True):
        assert (groups >= 0).all()
        for image in range(2):
            assert groups[image].unique().numel() == survived[image].sum()
            own = groups[image][survived[image]]
            assert own.tolist() == list(range(len(own))), "a kept patch is part of its own token"


@torch.no_grad()
def test_a_dropped_patch_lives_on() -> None:
    """Changing it changes the answer, though it is not kept: where tokens are gone it would not."""
    images = DEIT.images(1)
    keep_most = [torch.ones(1, DEIT.num_patches) for _ in range(3)]
    for decision in keep_most:
        decision[0, 7] = 0
    other = images.clone()
    other[0, :, 16:32, 32:48] += 1.0  # patch 7 of 4 × 5
    for dropped in POLICIES:
        back = 3 if dropped == "bypassed" else None
        model = DEIT.sparse(0.9, stages=(0, 1, 2), policy=dropped, restore_before=back)
        before, after = (model.forward_pruned(x, keep_most).logits for x in (images, other))
        assert torch.allclose(before, after) == (dropped == "removed")


@pytest.mark.parametrize("masking", ["full", "lagged", "compact"])
@torch.no_grad()
def test_the_loss_is_told_what_each_token_is_made_of(masking: Masking) -> None:
    model, images = merged(), DEIT.images()
    pruned = model.forward_pruned(images)
    masked = model.forward_masked(images, sampler=best_k_sampler, masking=masking)
    first, *later = masked.places
    assert first is None, "nothing has merged before the first stage"
    for places, survived, groups in zip(later, pruned.kept, pruned.groups, strict=False):
        held = survived.nonzero()[:, 1].reshape(2, -1)  # the patch whose place each token has
        assert torch.equal(places, held.gather(1, groups))


@torch.no_grad()
def test_after_tokens_that_were_combined_in_another_way() -> None:
    model = merged()
    stages = [TokenMerging(), *list(model.predictors)[1:]]
    model = DynamicViT(model.backbone, replace(model.schedule), stages).eval()
    images = DEIT.images()
    pruned = model.forward_pruned(images)
    masked = model.forward_masked(images, sampler=best_k_sampler, masking="compact")
    assert_agree(masked.logits, pruned.logits)
    for groups, kept in zip(pruned.groups, model.schedule.kept(DEIT.num_patches), strict=True):
        assert sorted(groups[0].unique().tolist()) == list(range(kept))
