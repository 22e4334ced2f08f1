"""MACs: the counter against published numbers, the sum of parts against the counter, budgets."""

from functools import partial

import pytest
import timm
import torch
from torch import nn

import dynamicvit
from dynamicvit import DynamicViT, InputError, Schedule
from dynamicvit.budgets import Budget, keep_ratio_for, parse_budget
from dynamicvit.costs import (
    DENSE,
    Costs,
    costs_of,
    count_macs,
    executed_macs,
    meta_copy,
    schedule_macs,
)
from families import few_families, kinds_or_all

sparsify = partial(dynamicvit.sparsify, policy="removed")  # as published numbers count


@pytest.fixture(scope="module")
def deit_small() -> nn.Module:
    with torch.device("meta"):
        return sparsify(timm.create_model("deit_small_patch16_224"), 0.7, method="dynamicvit")


@pytest.fixture(scope="module")
def deit_small_costs(deit_small) -> Costs:
    return costs_of(deit_small, 3)


def tiny(**arguments) -> nn.Module:
    return timm.create_model(
        "deit_tiny_patch16_224",
        **{"depth": 4, "embed_dim": 32, "num_heads": 2, "num_classes": 5, **arguments},
    )


class TestCounted:
    def test_deit_small_dense_is_the_published_number(self, deit_small):
        assert count_macs(deit_small.backbone) == pytest.approx(4.60e9, rel=0.005)

    def test_deit_small_at_07_with_prediction_modules(self, deit_small):
        """The released code's 2.98 G, less what its modules compute anew for every token."""
        kept = deit_small.schedule.kept(196)
        spared = (384 // 2) ** 2 * sum(patches - 1 for patches in (196, *kept[:2]))
        assert count_macs(deit_small) == pytest.approx(2.98e9 - spared, rel=1e-3)

    @pytest.mark.parametrize(("keep_ratio", "giga"), [(0.7, 9.605), (0.5, 7.150)])
    def test_deit_small_at_384_pixels(self, keep_ratio, giga):
        with torch.device("meta"):
            backbone = timm.create_model("deit_small_patch16_224", img_size=384)
            model = sparsify(backbone, keep_ratio, method="dynamicvit")
        assert count_macs(backbone) == pytest.approx(15.49e9, rel=0.005)
        assert count_macs(model) == pytest.approx(giga * 1e9, rel=0.005)

    @pytest.mark.parametrize(
        ("name", "dense", "pruned"),
        [
            ("lvvit_s", 6.55, {0.9: 5.857, 0.7: 4.634, 0.5: 3.778}),
            ("lvvit_m", 12.68, {0.9: 11.172, 0.7: 8.565}),
        ],
    )
    def test_lvvit(self, name, dense, pruned):
        with torch.device("meta"):
            model = sparsify(timm.create_model(name), method="dynamicvit")
        assert count_macs(model.backbone) == pytest.approx(dense * 1e9, rel=0.005)
        for keep_ratio, giga in pruned.items():
            model.keep_ratio = keep_ratio
            assert count_macs(model) == pytest.approx(giga * 1e9, rel=0.005)

    def test_follows_the_budget_of_the_moment(self):
        model = sparsify(tiny(), 0.9, method="dynamicvit")
        before = count_macs(model)
        model.keep_ratio = 0.5
        assert count_macs(model) < before

    def test_leaves_the_model_alone(self):
        model = sparsify(tiny(), method="dynamicvit").train()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        count_macs(model)
        assert model.training
        assert all(p.device.type == "cpu" and p.requires_grad for p in model.parameters())
        assert all(p.grad is None for p in model.parameters())
        assert all(value.equal(before[name]) for name, value in model.state_dict().items())

    def test_in_other_modes(self):
        model = sparsify(tiny(), method="dynamicvit")
        expected = count_macs(model)
        with torch.inference_mode():
            assert count_macs(model) == expected
        assert count_macs(torch.compile(model, backend="eager")) == expected
        assert count_macs(model.to(torch.bfloat16)) == expected

    def test_any_module(self):
        assert count_macs(nn.Conv2d(3, 8, 3, padding=1), 10) == 8 * 3 * 9 * 100

    def test_size_the_backbone_refuses(self):
        with pytest.raises(InputError, match=r"384x384.*224x224"):
            count_macs(sparsify(tiny(), method="dynamicvit"), 384)

    def test_meta_copy_keeps_ties_and_holds_no_weights(self):
        module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        module[1].weight = module[0].weight
        twin = meta_copy(module)
        assert twin[1].weight is twin[0].weight
        assert twin[0].weight.is_meta
        assert not module[0].weight.is_meta


class TestExecuted:
    """The last block is run for the class token alone, where the head reads no other."""

    def test_deit_small(self, deit_small):
        dense = DynamicViT(deit_small.backbone, DENSE, [])
        assert executed_macs(deit_small) == pytest.approx(2.86e9, rel=0.005)
        assert executed_macs(dense) == pytest.approx(4.28e9, rel=0.005)

    @pytest.mark.parametrize("stages", [(), (1,), (2, 3)])
    def test_what_is_left_out(self, stages):
        model = sparsify(tiny(), 0.5, stages, method="dynamicvit")
        width, held = 32, int(196 * 0.5 ** len(stages)) + 1
        linear, pairs = (12 - 2) * width**2, 2 * width * held  # keys and values are for all
        spared = (linear + pairs) * (held - 1)
        assert count_macs(model) - executed_macs(model) == spared

    @pytest.mark.parametrize("pool", ["avg", "map"])
    def test_a_head_that_reads_everything(self, pool):
        model = sparsify(tiny(global_pool=pool, class_token=False), 0.7, method="dynamicvit")
        assert executed_macs(model) == count_macs(model)

    def test_any_module(self):
        assert executed_macs(nn.Conv2d(3, 8, 3, padding=1), 10) == 8 * 3 * 9 * 100


class TestByParts:
    @pytest.mark.parametrize(
        ("stages", "keep_ratio"),
        [([0], 0.5), ([3], 0.1), ([1, 2], [0.6, 0.6]), ([0, 1, 2, 3], 0.8), ([1, 3], 1.0)],
    )
    def test_any_schedule(self, stages, keep_ratio):
        model = sparsify(tiny(), keep_ratio, stages, method="dynamicvit")
        counted = count_macs(model)
        assert schedule_macs(model, model.schedule) == counted
        assert schedule_macs(model.backbone, model.schedule) == counted

    @pytest.mark.parametrize("pool", ["avg", "avgmax", "map", "token"])
    def test_any_pool(self, pool):
        model = sparsify(
            tiny(global_pool=pool, class_token=pool == "token"), 0.7, method="dynamicvit"
        )
        assert schedule_macs(model, model.schedule) == count_macs(model)

    def test_another_size_and_shape(self):
        model = sparsify(tiny(dynamic_img_size=True), 0.7, method="dynamicvit")
        assert schedule_macs(model, model.schedule, (160, 320)) == count_macs(model, (160, 320))

    @pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "lvvit_t"])
    def test_padded_images(self, name):
        with torch.device("meta"):
            backbone = timm.create_model(name, depth=4, dynamic_img_size=True, dynamic_img_pad=True)
            model = sparsify(backbone, 0.7, method="dynamicvit")
        assert schedule_macs(model, model.schedule, (165, 170)) == count_macs(model, (165, 170))

    def test_a_stage_outside_the_depth(self):
        with pytest.raises(InputError, match="stage 4"):
            schedule_macs(tiny(), Schedule((4,), (0.5,)))


@kinds_or_all
def test_the_parts_add_up_to_what_is_counted(family):
    model = family.sparse(0.5, depth=2, stages=[1])
    assert schedule_macs(model, DENSE) == count_macs(model.backbone)
    assert schedule_macs(model, model.schedule) == count_macs(model)


@few_families
def test_comparing_tokens_is_counted(family):
    """Also where nothing is dropped: who is most like whom is asked before."""
    model = family.sparse(policy="merged")
    costs = costs_of(model, 3)
    for keep_ratio in (0.5, [0.6, 0.6, 0.1], 1.0):
        model.policy, model.keep_ratio = "removed", keep_ratio
        removed = count_macs(model)
        model.policy = "merged"
        assert costs.total(model.schedule) == count_macs(model)
        assert count_macs(model) > removed


class TestBudget:
    @pytest.mark.parametrize("budget", [{"macs": 3.0e9}, {"fraction": 0.6}, {"fraction": 1.0}])
    def test_the_largest_that_fits(self, deit_small, deit_small_costs, budget):
        limit = Budget(**budget).of(count_macs(deit_small.backbone))
        rho = keep_ratio_for(deit_small, **budget)
        assert deit_small_costs.total(Schedule.for_depth(12, rho)) <= limit
        assert deit_small_costs.total(Schedule.for_depth(12, rho + 1e-3)) > limit

    def test_what_people_ask_for(self, deit_small):
        assert keep_ratio_for(deit_small, macs=3.0e9) == pytest.approx(0.7, abs=0.01)

    def test_above_dense(self, deit_small):
        assert keep_ratio_for(deit_small, fraction=1.1) == 1.0

    def test_dense_does_not_pay_for_the_prediction_modules(self, deit_small):
        assert keep_ratio_for(deit_small, fraction=1.0) < 1.0

    def test_own_stages(self):
        model = sparsify(tiny(), 0.7, stages=[1], method="dynamicvit")
        rho = keep_ratio_for(model, fraction=0.8)
        assert rho == keep_ratio_for(model.backbone, fraction=0.8, stages=[1])
        assert rho != keep_ratio_for(model.backbone, fraction=0.8)
        model.keep_ratio = rho
        assert count_macs(model) <= 0.8 * count_macs(model.backbone)

    def test_comparing_tokens_is_paid_from_it(self):
        gone, merged = (
            sparsify(tiny(), 0.7, policy=dropped, method="dynamicvit")
            for dropped in ("removed", "merged")
        )
        rho = keep_ratio_for(merged, fraction=0.8)
        assert rho < keep_ratio_for(gone, fraction=0.8)
        dense = count_macs(merged.backbone)
        merged.keep_ratio = rho
        assert merged.schedule.policy == "merged"
        assert count_macs(merged) <= 0.8 * dense
        merged.keep_ratio = rho + 0.01
        assert count_macs(merged) > 0.8 * dense

    def test_less_than_one_token_costs(self):
        model = sparsify(tiny(), 0.7, method="dynamicvit")
        least = schedule_macs(model, Schedule.for_depth(4, 1e-4))
        with pytest.raises(InputError, match=f"still costs {least / 1e9:.3g} GMACs"):
            keep_ratio_for(model, macs=least - 1)
        assert keep_ratio_for(model, macs=least) < 0.1

    @pytest.mark.parametrize("budget", [{}, {"macs": 1e9, "fraction": 0.5}])
    def test_one_budget(self, budget):
        with pytest.raises(InputError, match="give one"):
            keep_ratio_for(tiny(), **budget)

    @pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf")])
    def test_positive(self, value):
        with pytest.raises(InputError, match=f"positive, got macs={value}"):
            keep_ratio_for(tiny(), macs=value)

    @pytest.mark.parametrize(
        ("text", "budget"),
        [
            ("3.0G", Budget(macs=3e9)),
            ("3 GMACs", Budget(macs=3e9)),
            ("900m", Budget(macs=9e8)),
            ("60%", Budget(fraction=0.6)),
            ("0.6", Budget(fraction=0.6)),
            (0.6, Budget(fraction=0.6)),
            ("1", Budget(fraction=1.0)),
        ],
    )
    def test_as_people_write_it(self, text, budget):
        assert parse_budget(text) == budget

    @pytest.mark.parametrize("text", ["", "G", "abc", "3", "-3G", "0%", "nan", "infG", "3GG", 3])
    def test_unreadable(self, text):
        with pytest.raises(InputError, match=r"3\.0G, 900M or 60%"):
            parse_budget(text)
