"""What is said of a run before it is what the run then does."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path

import pytest
import timm
import torch

from dynamicvit import sparsify
from dynamicvit.core.schedule import Policy
from dynamicvit.costs import count_macs
from dynamicvit.training import Recipe, load_recipe
from dynamicvit.training.memory import _held, estimate_memory
from dynamicvit.training.objective import objective_of
from dynamicvit.training.optimizer import LearningRate, create_optimizer
from dynamicvit.training.plan import Plan, plan_of
from families import BY_NAME, DEIT, Family
from memory import shallow
from processes import in_fork

STEPS = 40


def paper(*overrides: str) -> Recipe:
    return load_recipe("deit_small", ["batch_size=4", *overrides])


def planned(recipe: Recipe, family: Family = DEIT) -> Plan:
    return plan_of(shallow(family), recipe, STEPS)


def test_schedule_and_macs() -> None:
    model = shallow(keep_ratio=0.5)
    plan = plan_of(model, paper(), None)
    assert (plan.num_patches, plan.image_size) == (DEIT.num_patches, DEIT.size)
    assert plan.kept == tuple(
        int(kept.sum(1)[0]) for kept in model.forward_pruned(DEIT.images()).kept
    )
    assert (plan.macs, plan.dense_macs) == (count_macs(model), count_macs(model.backbone))
    assert plan.steps is None


def test_groups_hold_every_parameter_once_at_the_rates_that_the_run_reaches() -> None:
    recipe = paper()
    plan, model = planned(recipe), shallow()
    total = sum(p.numel() for p in model.parameters())
    frozen = sum(p.numel() for n, p in model.backbone.named_parameters() if n in recipe.frozen)
    assert plan.frozen == frozen > 0
    assert sum(group.parameters for group in plan.groups) == total - frozen
    optimizer = create_optimizer(model, recipe)
    rate = LearningRate(optimizer, recipe, STEPS)
    peaks = [0.0] * len(plan.groups)
    for step in range(STEPS):
        rate.set(step)
        peaks = [max(p, g["lr"]) for p, g in zip(peaks, optimizer.param_groups, strict=True)]
    assert [group.learning_rate for group in plan.groups] == pytest.approx(peaks, rel=0.02)
    decays = [g["weight_decay"] for g in optimizer.param_groups]
    assert [group.weight_decay for group in plan.groups] == decays
    assert {group.name for group in plan.groups} == {"backbone", "predictors"}


def test_the_model_is_not_touched() -> None:
    model = shallow()
    plan_of(model, paper(), STEPS)
    assert all(p.requires_grad and p.device.type == "cpu" for p in model.parameters())


def test_warm_up_and_frozen_start() -> None:
    steps = planned(paper("warmup=0.25", "backbone_frozen=0.1")).steps
    assert steps is not None
    assert (steps.total, steps.warmup, steps.frozen) == (STEPS, 10, 4)


# ---------------------------------------------------------------- memory


def resident(kind: str) -> int:
    """Bytes of this process, as Linux counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(kind))


def peak(name: str, batch: int = 6) -> tuple[int, int]:
    """What a step by a recipe was estimated to add, and what it added."""
    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 65536)  # gives back what is not in use
    recipe = load_recipe(name)
    backbone = timm.create_model("deit_tiny_patch16_224", depth=4, num_classes=10)
    model = sparsify(backbone, policy=recipe.policy or "removed", method="dynamicvit")
    memory = estimate_memory(model, recipe, batch)
    objective = objective_of(model.train(), recipe)
    images, labels = torch.randn(batch, 3, 224, 224), torch.zeros(batch, dtype=torch.long)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident("VmRSS")
    objective(images, labels).total.backward()
    return memory.activations + memory.gradients, resident("VmHWM") - before


M_MMAP_THRESHOLD = -3


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.extended
@pytest.mark.parametrize("name", ["deit_small", "small_data"])
def test_the_process_peaks_where_it_was_said(name: str) -> None:
    expected, measured = in_fork(peak, name)
    assert expected == pytest.approx(measured, rel=0.2)


@pytest.mark.parametrize(("name", "policy"), [("deit_small", "removed"), ("small_data", "merged")])
def test_memory_grows_by_the_same_for_every_image(name: str, policy: Policy) -> None:
    """Two images tell what five need."""
    recipe, model = load_recipe(name), shallow(policy=policy).train()
    expected = estimate_memory(model, recipe, 5).activations
    objective = objective_of(model, recipe)
    _, held = (_held(objective, n, "cpu", None) for n in (5, 5))
    assert expected == pytest.approx(held, rel=0.05)


def test_weights_are_counted_for_what_holds_them() -> None:
    model = DEIT.sparse()
    size = sum(4 * p.numel() for p in model.parameters())
    memory = estimate_memory(model, paper("ema=0.99"))
    assert (memory.weights, memory.averaged, memory.gradients) == (size, size, size)
    assert memory.optimizer == 2 * size
    assert memory.teacher == sum(4 * p.numel() for p in model.backbone.parameters())
    assert memory.total == 5 * size + memory.teacher + memory.activations
    assert estimate_memory(model, paper("ema=null")).averaged == 0


def test_a_shared_stem_has_no_gradients() -> None:
    model = DEIT.sparse()
    memory = estimate_memory(model, load_recipe("small_data", []))
    stem = [model.backbone.patch_embed, *model.blocks[: model.schedule.stages[0]]]
    spared = [*(p for m in stem for p in m.parameters())]
    spared += [model.backbone.pos_embed, model.backbone.cls_token]
    assert memory.weights - memory.gradients == sum(4 * p.numel() for p in spared)


def test_less_is_held_when_tokens_leave_in_half_precision_and_with_checkpointing() -> None:
    def activations(*overrides: str, precision: torch.dtype | None = None) -> int:
        recipe = paper("decisions=best-k", *overrides)
        return estimate_memory(DEIT.sparse(), recipe, precision=precision).activations

    never = activations()
    assert activations("masking=lagged") < never
    assert activations(precision=torch.bfloat16) < never
    model = DEIT.sparse()
    model.set_grad_checkpointing()
    recipe = paper("decisions=best-k")
    assert estimate_memory(model, recipe).activations < 0.8 * never


def test_guidance_and_student_do_not_add_up() -> None:
    """The graph behind the guidance is gone before the student's begins."""
    base = ("losses.guidance=1", "decisions=best-k", "masking=compact")
    model = DEIT.sparse()
    with_guidance = estimate_memory(model, paper(*base)).activations
    never = estimate_memory(model, paper("decisions=best-k")).activations
    assert with_guidance < 1.5 * never


@pytest.mark.parametrize("family", [DEIT, BY_NAME["lvvit"]], ids=["deit", "lvvit"])
def test_estimating_leaves_the_model_as_it_was(family: Family) -> None:
    model = family.sparse()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    estimate_memory(model, load_recipe("small_data", []))
    assert not model.training
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
