"""Methods that make one token of several: exact where it must be, and led back to the image."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from dynamicvit import DynamicViT, InputError, Schedule
from dynamicvit.backbones import backbone_for
from dynamicvit.core.combination import match, merge
from dynamicvit.core.losses import token_loss
from dynamicvit.core.merging import cosines, halves
from dynamicvit.core.teacher import ask, dense_teacher
from dynamicvit.costs import DENSE, count_macs, schedule_macs
from dynamicvit.layers.attention import proportional, softmax_attention
from dynamicvit.layers.tokens import Heads, Tokens
from dynamicvit.methods import Downsampling, TokenMerging
from families import BY_NAME, DEIT, Family, assert_agree, few_families

RATIOS = (0.7, 0.5, 0.3)


def merging(family: Family = DEIT) -> DynamicViT:
    stages = [TokenMerging() for _ in RATIOS]
    return DynamicViT(family.backbone(), Schedule((1, 2, 3), RATIOS), stages).eval()


def downsampling(family: Family = DEIT, block: int = 2) -> DynamicViT:
    share = 6 / family.num_patches  # of 4 by 5 patches 2 by 3 cells
    return DynamicViT(family.backbone(), Schedule((block,), (share,)), [Downsampling()]).eval()


class TestSize:
    @pytest.mark.parametrize("with_bias", [False, True])
    def test_a_key_of_some_size_is_as_many_keys(self, with_bias: bool) -> None:
        torch.manual_seed(0)
        query, key, value = (torch.randn(2, 3, 5, 8) for _ in range(3))
        bias = torch.randn(1, 3, 5, 5) if with_bias else None
        size = torch.tensor([1, 3, 1, 2, 4])
        repeated = torch.repeat_interleave(torch.arange(5), size)
        expected = F.scaled_dot_product_attention(
            query,
            key[:, :, repeated],
            value[:, :, repeated],
            attn_mask=None if bias is None else bias[..., repeated],
        )
        bias = proportional(bias, size.float().expand(2, -1), query.dtype)
        actual = softmax_attention(query, key, value, bias=bias)
        assert_agree(actual, expected)

    def test_it_stays_with_the_fused_kernel(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[Tensor] = []
        kernel = F.scaled_dot_product_attention

        def spy(*inputs: Tensor, attn_mask: Tensor, **options: object) -> Tensor:
            calls.append(attn_mask)
            return kernel(*inputs, attn_mask=attn_mask, **options)

        monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
        with torch.no_grad():
            merging()(DEIT.images())
        assert [None if mask is None else tuple(mask.shape) for mask in calls] == [
            None, (2, 1, 1, 15), (2, 1, 1, 11), (2, 1, 1, 7),
        ]  # fmt: skip


class TestTokenMerging:
    def test_equal_tokens_merge_without_a_trace(self) -> None:
        """Whatever follows, at any place: the block gives what it gives for both of them."""
        bound = backbone_for(DEIT.backbone())
        torch.manual_seed(0)
        x = torch.randn(2, 1 + 8, 48)
        x[:, 2] = x[:, 1]  # positions 0 and 1 of the patches
        x[:, 7] = x[:, 8]
        tokens = Tokens(x, 1, (2, 4))
        merged = merge(tokens, torch.tensor([[0, 6]] * 2), torch.tensor([[1, 7]] * 2))
        assert merged.index.tolist() == [[1, 2, 3, 4, 5, 7]] * 2
        assert merged.size.tolist() == [[2, 1, 1, 1, 1, 2]] * 2
        whole, fewer = bound.run(1, tokens).x, bound.run(1, merged).x
        held = torch.tensor([0, 2, 3, 4, 5, 6, 8])
        assert_agree(fewer, whole[:, held])

    @pytest.mark.parametrize("pool", ["avg", "map"])
    def test_a_pool_counts_every_patch(self, pool: str) -> None:
        family = BY_NAME[{"avg": "siglip_gap", "map": "siglip"}[pool]]
        bound = backbone_for(family.backbone())
        torch.manual_seed(0)
        x = torch.randn(2, 8, 48)
        x[:, 1] = x[:, 0]
        x[:, 3] = x[:, 2]
        tokens = Tokens(x, 0, (2, 4))
        merged = merge(tokens, torch.tensor([[0, 2]] * 2), torch.tensor([[1, 3]] * 2))
        assert_agree(bound.head(merged), bound.head(tokens))

    def test_the_most_alike_pairs_are_found(self) -> None:
        torch.manual_seed(0)
        key = torch.randn(1, 10, 16)
        key[0, 4] = 3 * key[0, 7]  # alike in direction, whatever their lengths
        key[0, 0] *= 100  # long, and so large in every product
        key[0, 2] = key[0, 7] + 0.01 * torch.randn(16)
        leaving, into = match(cosines(*halves(key)), 2)
        assert sorted(leaving[0].tolist()) == [2, 4]
        assert into.tolist() == [[7, 7]]

    @torch.no_grad()
    def test_a_token_is_the_mean_of_its_patches(self) -> None:
        torch.manual_seed(0)
        tokens = Tokens(torch.randn(2, 13, 4), 1, (3, 4))
        once = merge(tokens, *match(torch.randn(2, 6, 6), 5))
        twice = merge(once, *match(torch.randn(2, 4, 3), 3))
        assert (once.num_patches, twice.num_patches) == (7, 4)
        for left in (once, twice):
            for image in range(2):
                for token in range(left.num_patches):
                    members = left.groups[image] == token
                    assert left.size[image, token] == members.sum()
                    assert members[left.index[image, token]], "its place is that of a member"
                    mean = tokens.patches[image, members].mean(dim=0)
                    torch.testing.assert_close(left.patches[image, token], mean)
        assert (twice.index.diff(dim=1) > 0).all(), "in image order"

    @few_families
    @torch.no_grad()
    def test_both_paths_are_the_same(self, family: Family) -> None:
        model, images = merging(family), family.images(3)
        pruned, masked = model.forward_pruned(images), model.forward_masked(images)
        assert_agree(masked.logits, pruned.logits)
        assert [int(groups.max()) + 1 for groups in pruned.groups] == [14, 10, 6]
        held = [kept.sum(dim=1).tolist() for kept in pruned.kept]
        assert held == [[14] * 3, [10] * 3, [6] * 3]
        assert pruned.keep_scores == masked.keep_scores == ()
        for decision, kept in zip(masked.decisions, pruned.kept, strict=True):
            assert torch.equal(decision > 0.5, kept)
        assert all((groups >= 0).all() for groups in pruned.groups), "nothing is lost"

    def test_fewer_than_half_are_left_by_several_rounds(self) -> None:
        torch.manual_seed(0)
        heads = Heads(*torch.randn(3, 1, 2, 9, 4).unbind(0))
        tokens = Tokens(torch.randn(1, 9, 4), 0, (3, 3), heads=heads)
        merged = TokenMerging().combine(tokens, 2)
        assert merged.num_patches == 2
        assert merged.size is not None
        assert merged.size.sum() == 9, "nothing is lost"

    def test_macs_by_parts_are_those_counted(self) -> None:
        model = merging()
        assert schedule_macs(model, model.schedule) == count_macs(model)
        gap = merging(BY_NAME["siglip_gap"])  # a mean over tokens of several sizes
        assert count_macs(gap) == schedule_macs(gap, gap.schedule)

    def test_under_autocast(self) -> None:
        model, images = merging(), DEIT.images()
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            assert model(images).isfinite().all()

    def test_it_takes_no_decisions(self) -> None:
        model, images = merging(), DEIT.images()
        for path in (model.forward_masked, model.forward_pruned):
            with pytest.raises(
                InputError, match="TokenMerging combines tokens: it takes no decisions"
            ):
                path(images, DEIT.decisions())

    def test_before_the_first_block(self) -> None:
        with pytest.raises(InputError, match="TokenMerging looks at the block before"):
            DynamicViT(DEIT.backbone(), Schedule((0,), (0.5,)), [TokenMerging()])


class TestDownsampling:
    def test_cells_are_means(self) -> None:
        tokens = Tokens(torch.randn(2, 1 + 15, 4), 1, (3, 5))
        left = Downsampling().combine(tokens, 0)
        image = tokens.patches.reshape(2, 3, 5, 4)
        assert left.num_patches == 6
        torch.testing.assert_close(left.x[:, 0], tokens.x[:, 0])
        torch.testing.assert_close(left.patches[:, 0], image[:, :2, :2].mean(dim=(1, 2)))
        torch.testing.assert_close(left.patches[:, 2], image[:, :2, 4].mean(dim=1))
        torch.testing.assert_close(left.patches[:, 5], image[:, 2, 4])
        assert left.index[0].tolist() == [0, 2, 4, 10, 12, 14]
        assert left.groups[0].tolist() == [0, 0, 1, 1, 2, 0, 0, 1, 1, 2, 3, 3, 4, 4, 5]

    @few_families
    @torch.no_grad()
    def test_both_paths_are_the_same(self, family: Family) -> None:
        model, images = downsampling(family), family.images()
        pruned = model.forward_pruned(images)
        assert_agree(model.forward_masked(images).logits, pruned.logits)
        assert (pruned.logits - family.dense(model.backbone, images)).abs().max() > 1e-3
        assert pruned.kept[0].sum(dim=1).tolist() == [6, 6]

    def test_macs_by_parts_are_those_counted(self) -> None:
        model = downsampling()
        assert schedule_macs(model, model.schedule) == count_macs(model)

    def test_the_macs_of_deit_tiny_by_block(self) -> None:
        with torch.device("meta"):
            backbone = timm.create_model("deit_tiny_patch16_224")
        dense = schedule_macs(backbone, DENSE)
        shares = []
        for block in range(3, 8):
            model = DynamicViT(backbone, Schedule((block,), (0.25,)), [Downsampling()])
            shares.append(schedule_macs(model, model.schedule) / dense)
        assert shares == pytest.approx([0.43, 0.50, 0.56, 0.62, 0.69], abs=0.006)

    def test_it_needs_the_whole_grid(self) -> None:
        schedule = Schedule((1, 2), (0.3, 0.1))
        model = DynamicViT(DEIT.backbone(), schedule, [Downsampling(), Downsampling()]).eval()
        with pytest.raises(InputError, match="must be the first stage"):
            model(DEIT.images())


@pytest.mark.parametrize("make", [merging, downsampling])
def test_the_token_loss_compares_with_the_mean_of_the_teachers(make) -> None:
    model, images = make(), DEIT.images()
    with torch.no_grad():
        output, dense = model.forward_masked(images), ask(dense_teacher(model), images)
    features = output.features
    distances = [
        (features.patches[i, j] - dense.features.patches[i, features.groups[i] == j].mean(dim=0))
        .square()
        .mean()
        for i in range(2)
        for j in range(features.num_patches)
    ]
    torch.testing.assert_close(token_loss(output, dense), torch.stack(distances).mean())


@pytest.mark.parametrize("make", [merging, downsampling])
def test_gradients_reach_the_backbone(make) -> None:
    model = make().train()
    model(DEIT.images()).logits.square().sum().backward()
    for name, parameter in model.backbone.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
