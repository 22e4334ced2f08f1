"""Methods that choose tokens: the law holds for each, and each chooses by what it says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dynamicvit import DynamicViT, InputError, Schedule
from dynamicvit.backbones.beit import pair_bias
from dynamicvit.core.decisions import best_k_sampler
from dynamicvit.core.method import Choice
from dynamicvit.costs import count_macs, schedule_macs
from dynamicvit.layers.tokens import Heads, Tokens
from dynamicvit.methods import TPS, ClassAttention, DiffRate, EViT, RandomScores, StaticRanking
from dynamicvit.methods.class_attention import class_attention
from families import BY_NAME, DEIT, Family, assert_agree, randomize

#: One for each way to know of places: added, rotary, relative; a second prefix token.
FAMILIES = [BY_NAME[name] for name in ("deit", "deit_distilled", "eva02_split", "beit", "lvvit")]

STAGES = {
    "random": lambda grid: RandomScores(),
    "static": lambda grid: randomize(StaticRanking(grid)),
    "class-attention": lambda grid: ClassAttention(),
    "evit": lambda grid: EViT(),
    "tps": lambda grid: TPS(),
    "diffrate": lambda grid: DiffRate(),
}
RATIOS = (0.7, 0.5, 0.3)

families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
methods = pytest.mark.parametrize("method", STAGES)


def model_of(method: str, family: Family = DEIT) -> DynamicViT:
    stages = [STAGES[method](family.grid) for _ in RATIOS]
    return DynamicViT(family.backbone(), Schedule((1, 2, 3), RATIOS), stages).eval()


class TestTheLaw:
    @families
    @methods
    @torch.no_grad()
    def test_for_any_decisions(self, method: str, family: Family) -> None:
        """Each image keeps another number; one all of them, one none at the end."""
        model, images = model_of(method, family), family.images(4)
        decisions = family.decisions(4, stages=3, share=0.6)
        decisions[0][0] = decisions[1][0] = decisions[2][0] = 1
        decisions[2][1] = 0
        masked = model.forward_masked(images, decisions)
        pruned = model.forward_pruned(images, decisions)
        assert_agree(masked.logits, pruned.logits)

    @families
    @pytest.mark.parametrize("method", [name for name in STAGES if name != "random"])
    @pytest.mark.parametrize("masking", ["full", "lagged", "compact"])
    @torch.no_grad()
    def test_for_its_own_choice(self, method: str, family: Family, masking: str) -> None:
        model, images = model_of(method, family), family.images(3)
        pruned = model.forward_pruned(images)
        masked = model.forward_masked(images, sampler=best_k_sampler, masking=masking)
        assert_agree(masked.logits, pruned.logits)
        for decision, kept in zip(masked.decisions, pruned.kept, strict=True):
            assert torch.equal(decision > 0.5, kept)

    @methods
    def test_macs_by_parts_are_those_counted(self, method: str) -> None:
        model = model_of(method)
        assert schedule_macs(model, model.schedule) == count_macs(model)


class TestStatic:
    @torch.no_grad()
    def test_the_same_places_for_every_image(self) -> None:
        stages = model_of("static").forward_pruned(DEIT.images(3)).kept
        assert all((kept == kept[:1]).all() for kept in stages)

    def test_the_highest_places_stay(self) -> None:
        ranking = StaticRanking((2, 3))
        ranking.places.data = torch.tensor([0.1, 0.6, -0.2, 0.5, 0.0, 0.3])
        left, score = ranking.prune(Tokens(torch.randn(2, 7, 4), 1, (2, 3)), 3)
        assert left.index.tolist() == [[1, 3, 5]] * 2
        again, _ = ranking.prune(left, 2)
        assert again.index.tolist() == [[1, 3]] * 2
        assert score.shape == (2, 6)

    def test_another_grid_is_interpolated(self) -> None:
        ranking = StaticRanking((2, 2))
        ranking.places.data = torch.tensor([1.0, 1.0, -1.0, -1.0])
        scores = ranking.keep_scores(Tokens(torch.randn(1, 16, 4), 0, (4, 4)))
        rows = scores[0].reshape(4, 4)
        assert (rows[:-1] > rows[1:]).all(), "from top to bottom less and less"

    def test_it_learns(self) -> None:
        model = model_of("static").train()
        model(DEIT.images()).logits.square().sum().backward()
        for stage in model.predictors:
            assert stage.places.grad.abs().sum() > 0


def seen(batch: int = 2, prefix: int = 1, patches: int = 6, width: int = 8) -> Tokens:
    """Tokens as they leave a block of two heads."""
    torch.manual_seed(0)
    length = prefix + patches
    query, key, value = (torch.randn(batch, 2, length, width // 2) for _ in range(3))
    return Tokens(torch.randn(batch, length, width), prefix, (2, 3), heads=Heads(query, key, value))


def whole_row(tokens: Tokens) -> Tensor:
    heads = tokens.heads
    weights = (heads.query @ heads.key.transpose(-2, -1) * heads.key.shape[-1] ** -0.5).softmax(-1)
    return weights.mean(dim=1)[:, 0, tokens.num_prefix :]


class TestClassAttention:
    def test_it_is_a_row_of_the_attention(self) -> None:
        tokens = seen(prefix=2)
        torch.testing.assert_close(class_attention(tokens), whole_row(tokens))

    def test_a_merged_token_gets_what_its_patches_get(self) -> None:
        tokens = seen()
        held = torch.tensor([0, 1, 1, 2, 2, 2, 3, 4, 5, 6])
        repeated = [part[:, :, held] for part in tokens.heads[:3]]
        apart = replace(tokens, x=tokens.x[:, held], heads=Heads(*repeated))
        size = torch.tensor([2.0, 3.0, 1.0, 1.0, 1.0, 1.0]).expand(2, -1)
        each = class_attention(apart)
        sums = [each[:, :2].sum(1), each[:, 2:5].sum(1), *each[:, 5:].unbind(1)]
        assert_agree(class_attention(replace(tokens, size=size)), torch.stack(sums, dim=1))

    def test_the_model_hands_it_what_the_block_saw(self) -> None:
        """Against timm's own attention, unfused, which passes its weights through a dropout."""
        model, images = model_of("class-attention"), DEIT.images()
        attn = model.blocks[0].attn
        weights: list[Tensor] = []
        attn.fused_attn = False
        attn.attn_drop.register_forward_hook(lambda *call: weights.append(call[-1]))
        model.backbone(images)
        scores = model.forward_pruned(images).keep_scores[0]
        torch.testing.assert_close(scores.sigmoid(), weights[0].mean(dim=1)[:, 0, 1:])

    def test_the_least_attended_are_dropped(self) -> None:
        tokens = seen()
        left, _ = ClassAttention().prune(tokens, 2)
        expected = whole_row(tokens).topk(2).indices.sort().values
        assert torch.equal(left.index, expected)
        assert left.num_prefix == 1

    def test_the_fused_token_is_the_sum_of_the_dropped_by_attention(self) -> None:
        tokens = seen()
        left, _ = EViT().prune(tokens, 2)
        row = whole_row(tokens)
        dropped = row.clone().scatter(1, left.index, 0.0)
        expected = torch.einsum("bm,bmc->bc", dropped, tokens.patches)
        assert left.num_prefix == 2
        torch.testing.assert_close(left.x[:, 1], expected)
        torch.testing.assert_close(left.x[:, 0], tokens.x[:, 0])
        torch.testing.assert_close(
            left.patches, tokens.patches.gather(1, left.index[..., None].expand(-1, -1, 8))
        )

    def test_the_fused_token_matters(self) -> None:
        model, images = model_of("evit"), DEIT.images()
        plain = DynamicViT(model.backbone, model.schedule, [ClassAttention() for _ in RATIOS])
        assert (model(images) - plain.eval()(images)).abs().max() > 1e-3

    def test_relative_positions_of_the_fused_token(self) -> None:
        """It lies nowhere, as the class token does, and takes that one's place."""
        bias = torch.randn(2, 1 + 6, 1 + 6)
        index = torch.tensor([[0, 2, 5]])
        plain = pair_bias(bias, Tokens(torch.randn(1, 4, 8), 1, (2, 3), index))
        fused = pair_bias(bias, Tokens(torch.randn(1, 5, 8), 2, (2, 3), index, added=1))
        without = [0, 2, 3, 4]
        assert torch.equal(fused[..., without, :][..., without], plain)
        assert torch.equal(fused[..., 1, :], fused[..., 0, :])
        assert torch.equal(fused[..., 1], fused[..., 0])

    @pytest.mark.parametrize("name", ["registers", "siglip"])
    def test_without_a_class_token(self, name: str) -> None:
        with pytest.raises(InputError, match="ClassAttention needs a class token"):
            model_of("class-attention", BY_NAME[name])

    def test_before_the_first_block(self) -> None:
        with pytest.raises(InputError, match="ClassAttention looks at the block before"):
            DynamicViT(DEIT.backbone(), Schedule((0,), (0.5,)), [ClassAttention()])

    @torch.no_grad()
    def test_shared_first_blocks_hand_it_on(self) -> None:
        model, images = model_of("class-attention"), DEIT.images()
        masked = model.forward_masked(model.first_blocks(images), sampler=best_k_sampler)
        assert_agree(masked.logits, model(images))

    def test_grad_checkpointing(self) -> None:
        model, images = model_of("evit").train(), DEIT.images()
        gradients = []
        for enable in (False, True):
            model.zero_grad()
            model.set_grad_checkpointing(enable)
            masked = model.forward_masked(images, sampler=best_k_sampler)
            masked.logits.square().sum().backward()
            gradients.append([p.grad.clone() for p in model.backbone.parameters()])
        for plain, again in zip(*gradients, strict=True):
            torch.testing.assert_close(plain, again)


class TestZeroed:
    """The paper's ablation: dropped tokens are zeros, and attention sees them."""

    def masked(self, masking: str) -> tuple[DynamicViT, Tensor, list[Tensor]]:
        model = DEIT.sparse(keep_ratio=0.5)
        entered: list[Tensor] = []
        for block in model.blocks:
            block.norm1.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
        decisions = DEIT.decisions(share=0.5)
        masked = model.forward_masked(DEIT.images(), decisions, masking=masking)
        return model, masked.logits, entered

    @torch.no_grad()
    def test_dropped_tokens_enter_every_block_as_zeros(self) -> None:
        model, _, entered = self.masked("zeroed")
        dropped = DEIT.decisions(share=0.5)[0] < 0.5
        for depth, x in enumerate(entered):
            zero = (x[:, 1:] == 0).all(dim=-1)
            assert zero[dropped].all() == (depth >= model.schedule.stages[0]), depth
            assert not zero[:, 0][~dropped[:, 0]].any() or depth > model.schedule.stages[0]

    @torch.no_grad()
    def test_they_are_still_seen(self) -> None:
        """So the law is broken, which is what the paper shows by it."""
        model, zeroed, _ = self.masked("zeroed")
        _, masked, _ = self.masked("full")
        pruned = model.forward_pruned(DEIT.images(), DEIT.decisions(share=0.5)).logits
        assert_agree(masked, pruned)
        assert (zeroed - pruned).abs().max() > 1e-3

    def test_only_the_scores_teach_the_predictors(self) -> None:
        """A gradient by way of zeros is 1/√ε times too large in each block, and drowns the rest."""
        model = DEIT.sparse().train()
        output = model.forward_masked(DEIT.images(), masking="zeroed")
        output.logits.square().sum().backward(retain_graph=True)
        assert all(p.grad is None for p in model.predictors.parameters())
        assert all(p.grad.isfinite().all() for p in model.blocks.parameters())
        sum(odds[odds.isfinite()].square().sum() for odds in output.keep_scores).backward()
        assert all(p.grad.abs().sum() > 0 for p in model.predictors.parameters())


def test_a_choice_of_ones_own() -> None:
    class First(Choice):
        def keep_scores(self, tokens: Tokens) -> Tensor:
            return torch.arange(tokens.num_patches, 0, -1.0).expand(len(tokens.x), -1)

    model = DynamicViT(DEIT.backbone(), Schedule((1,), (0.25,)), [First()]).eval()
    kept = model.forward_pruned(DEIT.images(1)).kept[0]
    assert kept[0].nonzero().flatten().tolist() == [0, 1, 2, 3, 4]
