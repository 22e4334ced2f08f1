"""One model for any budget: each training step has one of its own."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

import maps
from dynamicvit import InputError, Schedule, sparsify
from dynamicvit.checkpoints.addon import save_addon
from dynamicvit.core.decisions import best_k_sampler
from dynamicvit.core.losses import ratio_loss
from dynamicvit.training import (
    Progress,
    Recipe,
    Training,
    TrainingObjective,
    fit,
    load_recipe,
    loop,
)
from dynamicvit.training.budgets import Budgets
from dynamicvit.training.memory import estimate_memory
from dynamicvit.training.objective import objective_of
from families import DEIT
from memory import Memory, paper, shallow, small

WIDE = "budgets=[0.4, 0.9]"
PLAIN = ("augment.mixup=0", "augment.cutmix=0")


def test_any_few_steps_in_a_row_have_budgets_from_all_of_the_range() -> None:
    budgets = Budgets(DEIT.sparse(), 0.4, 0.9)
    for first in (0, 7, 1000, 12_345):
        ratios = sorted(budgets.at(step).keep_ratio or 0.0 for step in range(first, first + 10))
        edges = [0.4, *ratios, 0.9]
        gaps = [after - before for before, after in pairwise(edges)]
        assert min(gaps) >= 0
        assert max(gaps) < 0.1
    assert Budgets(DEIT.sparse(), 0.7, 0.7).at(3) == DEIT.sparse().schedule


def test_the_recipe_for_any_budget_trains_the_backbone_of_look_ahead_merging() -> None:
    recipe = load_recipe("any_budget", PLAIN)
    model = sparsify(DEIT.backbone(depth=6), recipe.keep_ratio, method=recipe.method).train()
    first, batch = min(model.schedule.stages), next(iter(Memory()))
    objective = objective_of(model, recipe)
    counts = set()
    for step in range(4):
        output, losses = objective.with_output(batch.images, batch.labels)
        schedule = objective.budgets.at(step)
        kept = [set(decision.sum(dim=1).tolist()) for decision in output.decisions]
        assert kept == [{count} for count in schedule.kept(DEIT.num_patches)]
        counts.add(schedule.kept(DEIT.num_patches))
        losses.total.backward()
        assert losses.guidance == 0  # there is no ranking to learn
    assert len(counts) == 4
    learns = [any(p.grad is not None for p in block.parameters()) for block in model.blocks]
    assert learns == [number >= first for number in range(6)]


def test_it_is_the_default_where_a_model_merges_by_look_ahead(tmp_path: Path) -> None:
    """What a dense network does; other methods, and what only they have, are trained for one."""
    look_ahead, addon = sparsify(DEIT.backbone(), 0.6), tmp_path / "addon.safetensors"
    look_ahead.save_pretrained(tmp_path / "looks_ahead")
    save_addon(DEIT.sparse(), addon)
    for model, arguments, method, budgets in (
        (DEIT.backbone(), {}, "lookahead", (0.4, 0.9)),
        (look_ahead, {}, "lookahead", (0.4, 0.9)),
        (tmp_path / "looks_ahead", {}, "lookahead", (0.4, 0.9)),
        (DEIT.backbone(), {"overrides": ["budgets=null"]}, "lookahead", None),
        (DEIT.backbone(), {"overrides": ["keep_ratio=0.99"]}, "lookahead", "alone"),
        (sparsify(DEIT.backbone(), 0.99), {}, "lookahead", "alone"),
        (DEIT.backbone(), {"overrides": ["method=dynamicvit"]}, "dynamicvit", None),
        (DEIT.backbone(), {"overrides": ["freeze_backbone=yes"]}, "dynamicvit", None),
        (DEIT.backbone(), {"recipe": "small_data"}, "dynamicvit", None),
        (DEIT.backbone(), {"addon": addon}, "dynamicvit", None),
        (DEIT.sparse(), {}, "dynamicvit", None),
        (maps.BY_NAME["swin"].backbone(), {}, "dynamicvit", None),
    ):
        run = Training(None, model, plan_only=True, **arguments)
        found = (run.model.method.name, run.recipe.budgets, run.recipe.interpolate)
        any_budget = method == "lookahead" and budgets != "alone"
        budgets = budgets if any_budget else None
        assert found == (method, budgets, 0.6 if any_budget else 1.0), arguments
    clips = Training(None, DEIT.model, plan_only=True, pretrained=False, frames=4)
    assert (clips.model.method.name, clips.recipe.images) == ("dynamicvit", 4000)
    outside = ["keep_ratio=0.99", "budgets=[0.4, 0.9]"]
    with pytest.raises(InputError, match="leave out the model's own"):
        Training(None, DEIT.backbone(), plan_only=True, overrides=outside)


@pytest.mark.parametrize("masking", ["full", "lagged", "compact"])
def test_a_step_keeps_what_its_budget_says_and_is_held_to_it(masking: str) -> None:
    recipe = small(WIDE, f"masking={masking}", "losses.ratio=1", *PLAIN)
    model, batch = DEIT.sparse(policy="merged").train(), next(iter(Memory()))
    objective = objective_of(model, recipe)
    reference = objective_of(model, small(WIDE, "losses.ratio=1", *PLAIN))
    seen = set()
    for step in range(4):
        schedule = objective.budgets.at(step)
        output, losses = objective.with_output(batch.images, batch.labels)
        kept = [set(decision.sum(dim=1).tolist()) for decision in output.decisions]
        assert kept == [{count} for count in schedule.kept(DEIT.num_patches)]
        expected = ratio_loss(output.decisions, schedule.keep_ratios)
        torch.testing.assert_close(losses.ratio, expected)
        assert losses.ratio < 1 / DEIT.num_patches**2  # less than a patch
        torch.testing.assert_close(
            losses.total, reference(batch.images, batch.labels).total, atol=1e-5, rtol=1e-4
        )
        seen.add(schedule)
    assert len(seen) == 4
    assert model.keep_ratio == 0.7


@pytest.mark.parametrize("recipe", [small(WIDE, steps=8), small(WIDE, "decisions=top-k", steps=8)])
def test_a_run_that_goes_on_has_the_budgets_that_it_would_have_had(
    recipe: Recipe, tmp_path: Path
) -> None:
    whole, kept = shallow(), []
    fit(whole, Memory(), recipe, tmp_path / "whole", on_step=lambda p: kept.append(p.kept))
    assert len(set(kept)) > 4

    def stop(progress: Progress) -> None:
        if progress.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(loop.Interrupted):
        fit(shallow(), Memory(), recipe, tmp_path / "halves", on_step=stop)
    resumed = shallow()
    fit(resumed, Memory(), recipe, tmp_path / "halves", resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    assert resumed.keep_ratio == 0.7


def test_a_schedule_that_no_ratio_gives_keeps_its_form() -> None:
    model = DEIT.sparse([0.9, 0.6, 0.5])
    assert model.keep_ratio is None
    budgets = Budgets(model, 0.4, 0.9)
    for ratio in (0.4, 0.6, 0.9):
        found, paper_has = budgets.schedule(ratio), Schedule.for_depth(4, ratio)
        assert found.stages == model.schedule.stages
        assert found.mean_kept(4) == pytest.approx(paper_has.mean_kept(4), abs=1e-6)
        powers = torch.tensor(found.keep_ratios).log() / torch.tensor(model.keep_ratios).log()
        torch.testing.assert_close(powers, powers[:1].expand(3), rtol=1e-4, atol=0)
    with pytest.raises(InputError, match=r"stages \(2, 3\) are too late"):
        Budgets(DEIT.sparse([0.5, 0.5], stages=(2, 3)), 0.4, 0.9)


def test_memory_is_that_of_the_greatest_budget() -> None:
    plain, wide = small("budgets=null", *PLAIN), small(WIDE, *PLAIN)
    model = DEIT.sparse(0.7)
    assert estimate_memory(model, wide, 4) == estimate_memory(DEIT.sparse(0.9), plain, 4)
    assert model.keep_ratio == 0.7


@pytest.mark.parametrize(
    ("budgets", "said"),
    [
        ("[0.9, 0.4]", r"\(0\.9, 0\.4\)"),
        ("[0, 0.5]", r"\(0\.0, 0\.5\)"),
        ("[0.5, 1.5]", r"\(0\.5, 1\.5\)"),
        ("[0.5]", "budgets"),
        ("0.5", "budgets"),
        ("[yes, no]", "budgets"),
        ("[.nan, 1]", "budgets"),
    ],
)
def test_budgets_that_can_not_be(budgets: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_recipe("small_data", [f"budgets={budgets}"])


def test_what_does_not_go_with_budgets(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="top-k or best-k, got independent"):
        paper(WIDE)
    with pytest.raises(InputError, match="best_k_sampler"):
        TrainingObjective(DEIT.sparse(), budgets=(0.4, 0.9))
    for model, said in (
        (DEIT.sparse(0.3), r"\[0\.4, 0\.9\] leave out the model's own, 0\.3: widen"),
        (DEIT.sparse(0.95), r"own, 0\.95"),
        (DEIT.sparse([0.9, 0.9, 0.9]), "own, 0.9, 0.9, 0.9"),
        (DEIT.sparse((), stages=()), "no stage"),
    ):
        with pytest.raises(InputError, match=said):
            TrainingObjective(model, sampler=best_k_sampler, budgets=(0.4, 0.9))
    with pytest.raises(InputError, match=r"\[0\.9, 0\.4\]"):
        TrainingObjective(DEIT.sparse(), sampler=best_k_sampler, budgets=(0.9, 0.4))
    with pytest.raises(InputError, match="--compile"):
        fit(DEIT.sparse(), Memory(), small(WIDE), tmp_path / "out", compiled=True)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="leave out"):  # before anything is read or fitted
        Training(None, DEIT.sparse(0.3), overrides=[WIDE])
