"""TPS, DiffRate and MCTF: what each paper says of who goes, and what becomes of them."""

from __future__ import annotations

import math

import pytest
import timm
import torch

from dynamicvit import DynamicViT, Schedule, count_macs
from dynamicvit.backbones import backbone_for
from dynamicvit.core.combination import merge
from dynamicvit.core.merging import likeness
from dynamicvit.costs import schedule_macs
from dynamicvit.layers.tokens import Heads, Tokens
from dynamicvit.methods import MCTF, TPS, DiffRate
from dynamicvit.methods.class_attention import class_attention
from dynamicvit.methods.diffrate import LEAST_SIZE, PRUNED, RATES
from dynamicvit.methods.mctf import match_both_ways
from families import BY_NAME, DEIT, Family, assert_agree, each_family, few_families


def seen(patches: int = 8, width: int = 8) -> Tokens:
    """Tokens as they leave a block of two heads."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 2, 1 + patches, width // 2) for _ in range(3))
    x = torch.randn(2, 1 + patches, width)
    return Tokens(x, 1, (2, patches // 2), heads=Heads(query, key, value))


class TestTPS:
    def test_a_host_is_a_mean_by_the_exponentials_of_cosines(self) -> None:
        tokens = seen()
        left, _ = TPS().prune(tokens, 3)
        cosines = likeness(tokens)
        for image in range(2):
            kept = left.index[image].tolist()
            hosts = {i: max(kept, key=lambda k: cosines[image, i, k]) for i in range(8)}
            for place, host in enumerate(kept):
                weights = {host: math.e}
                for i in set(range(8)) - set(kept):
                    if hosts[i] == host:
                        weights[i] = math.exp(cosines[image, i, host])
                mean = sum(w * tokens.patches[image, i] for i, w in weights.items())
                assert_agree(left.patches[image, place], mean / sum(weights.values()))
                members = (left.groups[image] == place).nonzero().flatten().tolist()
                assert members == sorted(weights)

    def test_it_keeps_what_the_class_token_attends_to_and_counts_it_once(self) -> None:
        tokens = seen()
        left, _ = TPS().prune(tokens, 3)
        assert torch.equal(left.index, class_attention(tokens).topk(3).indices.sort().values)
        assert left.size is None


class TestDiffRate:
    def test_the_least_attended_are_pruned_and_the_next_merge(self) -> None:
        tokens = seen()
        left, _ = DiffRate().prune(tokens, 3)
        worst_first = class_attention(tokens).argsort(dim=1)
        cosines = likeness(tokens)
        for image in range(2):
            number = round(PRUNED * 5)
            pruned, merged = worst_first[image, :number], worst_first[image, number:5]
            assert (left.groups[image, pruned] == -1).all()
            for place, host in enumerate(left.index[image].tolist()):
                joins = [i for i in merged.tolist() if left.groups[image, i] == place]
                assert all(cosines[image, i, left.index[image]].argmax() == place for i in joins)
                mean = tokens.patches[image, [host, *joins]].mean(dim=0)
                assert_agree(left.patches[image, place], mean)
                size = 1 + sum(max(cosines[image, i, host].item(), LEAST_SIZE) for i in joins)
                assert left.size[image, place].item() == pytest.approx(size, abs=1e-5)

    def test_the_published_rates_are_among_its_schedules(self) -> None:
        with torch.device("meta"):
            bound = backbone_for(timm.create_model("deit_tiny_patch16_224"))
        kept = {schedule.kept(196) for schedule in DiffRate.schedules(bound)}
        for rates in RATES:
            assert tuple(left - 1 for left in rates[1:]) in kept
        assert all(schedule.stages == tuple(range(2, 12)) for schedule in DiffRate.schedules(bound))

    @pytest.mark.parametrize("depth", [2, 3, 8, 24])
    def test_other_depths_are_read_at_the_same_share(self, depth: int) -> None:
        schedules = DiffRate.schedules(backbone_for(DEIT.backbone(depth=depth)))
        assert schedules[0].mean_kept(depth) == 1
        assert schedules[-1].keep_ratios[-1] <= 0.1


def merging(family: Family = DEIT) -> DynamicViT:
    return DynamicViT(family.backbone(), Schedule((1, 2, 3), (0.7, 0.5, 0.3)), MCTF).eval()


class TestMCTF:
    @each_family
    @torch.no_grad()
    def test_what_a_token_receives_is_the_attention_of_the_block(self, family: Family) -> None:
        bound = backbone_for(family.backbone())
        tokens = bound.run(0, bound.embed(family.images()))
        heads = bound.run(1, tokens, keep_heads=True).heads
        logits = heads.query @ heads.key.transpose(-2, -1) * heads.key.shape[-1] ** -0.5
        weights = (logits if heads.bias is None else logits + heads.bias).softmax(-1)
        received = weights.mean(dim=(1, 2))[:, tokens.num_prefix :]
        assert_agree(MCTF(bound)._received(tokens), received)

    @torch.no_grad()
    def test_a_token_is_a_mean_by_what_its_patches_receive(self) -> None:
        bound = backbone_for(DEIT.backbone())
        tokens = bound.run(0, bound.embed(DEIT.images()))
        received, left = MCTF(bound)._received(tokens), MCTF(bound).combine(tokens, 12)
        for image in range(2):
            for place in range(12):
                members = left.groups[image] == place
                share = received[image, members] / received[image, members].sum()
                mean = (share[:, None] * tokens.patches[image, members]).sum(dim=0)
                assert_agree(left.patches[image, place], mean)
                assert left.size[image, place] == members.sum()

    @torch.no_grad()
    def test_small_and_unattended_tokens_merge_first(self) -> None:
        bound = backbone_for(DEIT.backbone())
        tokens = bound.run(0, bound.embed(DEIT.images(1)))
        tokens.x[:, 1:] = tokens.x[:, 1:2]  # all alike: the other criteria decide
        big = torch.tensor([[0, 2, 4]]), torch.tensor([[1, 3, 5]])
        tokens = merge(tokens, *big)
        left = MCTF(bound).combine(tokens, tokens.num_patches - 2)
        assert left.size[0, :3].tolist() == [2, 2, 2]

    def test_both_ways(self) -> None:
        """0 joins 1, which then joins 2 with it; 2 and 3 could join no one of theirs better."""
        attraction = torch.tensor([[[0.9, 0.0, 0.1], [0.8, 0.2, 0.3], [0.0, 0.4, 0.5]]])
        merging, into = match_both_ways(attraction, 2)
        assert merging.tolist() == [[0, 1]]
        assert into.tolist() == [[2, 2]]

    @few_families
    @torch.no_grad()
    def test_both_paths_are_the_same(self, family: Family) -> None:
        model, images = merging(family), family.images(3)
        pruned, masked = model.forward_pruned(images), model.forward_masked(images)
        assert_agree(masked.logits, pruned.logits)
        assert [int(groups.max()) + 1 for groups in pruned.groups] == [14, 10, 6]
        assert all((groups >= 0).all() for groups in pruned.groups), "nothing is lost"
        for i in range(3):
            assert_agree(model(images[i : i + 1]), pruned.logits[i : i + 1])

    @pytest.mark.parametrize("name", ["deit", "beit", "siglip"])
    def test_macs_by_parts_are_those_counted(self, name: str) -> None:
        model = merging(BY_NAME[name])
        assert schedule_macs(model, model.schedule) == count_macs(model)

    def test_gradients_reach_the_backbone(self) -> None:
        model = merging().train()
        model(DEIT.images()).logits.square().sum().backward()
        for name, parameter in model.backbone.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name

    def test_under_autocast(self) -> None:
        model, images = merging(), DEIT.images()
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            assert model(images).isfinite().all()
