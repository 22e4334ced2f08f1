"""What `dynamicvit train --dry-run` says of a run before it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict

import torch
from rich.console import Console

from dynamicvit.cli.console import say
from dynamicvit.core.model import DynamicViT
from dynamicvit.costs import count_macs
from dynamicvit.data import ImageData, Loader
from dynamicvit.training import Recipe
from dynamicvit.training.external_teacher import ForeignTeacher
from dynamicvit.training.loop import total_steps
from dynamicvit.training.memory import Memory, estimate_memory
from dynamicvit.training.plan import Group, Plan, plan_of
from dynamicvit.training.recipe import dump_recipe
from dynamicvit.utils.distributed import Processes


def describe_run(
    console: Console,
    model: DynamicViT,
    teacher: ForeignTeacher | None,
    recipe: Recipe,
    sources: Sequence[ImageData],
    loader: Loader | None,
    held_out: Loader | None,
    processes: Processes,
    accumulate: int,
    precision: torch.dtype | None,
) -> None:
    """Print the resolved recipe and what follows from it; nothing is written.

    Args:
        console: where.
        model: what would be trained.
        teacher: whose logits it would learn from, if not its own dense self's.
        recipe: what would be done.
        sources: the images found, as they lie there.
        loader: of the training images, if there are any.
        held_out: of those kept aside.
        processes: that would share the run.
        accumulate: passes in which each works off its images of a step.
        precision: dtype of autocast.
    """
    known = loader is not None or recipe.images is not None
    steps = total_steps(recipe, loader) if known else None
    plan = plan_of(model, recipe, steps)
    at_a_time = math.ceil(recipe.batch_size / processes.count / accumulate)
    device = processes.device
    memory = estimate_memory(
        model, recipe, at_a_time, teacher=teacher, device=device, precision=precision
    ).spread(processes.holders)
    say(console, dump_recipe(recipe))
    for title, lines in (
        ("data", _data(sources, loader, held_out)),
        ("schedule", _schedule(plan)),
        ("MACs", _macs(plan)),
        ("teacher", _teachers(recipe, teacher)),
        ("parameters", [*map(_group, plan.groups), f"{_count(plan.frozen)} never learn"]),
        ("length", _length(plan, recipe, loader)),
        ("memory", _memory(memory, at_a_time, device, precision)),
    ):
        for place, line in enumerate(lines):
            say(console, f"{'' if place else title:<11}{line}")
    say(console, "dry run: nothing was trained or written")


def _data(
    sources: Sequence[ImageData], loader: Loader | None, held_out: Loader | None
) -> list[str]:
    if loader is None:
        return ["none given"]
    lines = [
        f"{source.root}: {len(source)} images"
        + (f" in {len(source.classes)} classes" if source.labeled else " without labels")
        for source in sources
    ]
    if held_out is not None:
        lines.append(f"{held_out.num_images} images of these are held out")
    return lines


def _schedule(plan: Plan) -> list[str]:
    height, width = plan.image_size
    lines = [f"{plan.num_patches} patches of an image of {height}x{width}"]
    for stage, kept in zip(plan.schedule.stages, plan.kept, strict=True):
        lines.append(f"{kept} ({100 * kept / plan.num_patches:.1f} %) left before block {stage}")
    return [*lines, f"the others {plan.schedule.fate}"] if plan.kept else lines


def _macs(plan: Plan) -> list[str]:
    share = 100 * plan.macs / plan.dense_macs
    return [f"{plan.dense_macs / 1e9:.2f} G dense, {plan.macs / 1e9:.2f} G pruned ({share:.0f} %)"]


def _teachers(recipe: Recipe, foreign: ForeignTeacher | None) -> list[str]:
    """Each teacher and what it teaches; what the student itself costs dense stands above."""
    lines = []
    if foreign is not None:
        height, width = foreign.size
        parameters = sum(parameter.numel() for parameter in foreign.parameters())
        macs = count_macs(foreign.network, foreign.size)
        lines.append(
            f"{recipe.teacher.model}: {_count(parameters)} parameters, {macs / 1e9:.2f} G at "
            f"{height}x{width}, for distillation"
        )
    if recipe.taught_by_dense_self:
        lines.append(f"its own dense self, for {', '.join(recipe.taught_by_dense_self)}")
    return lines or ["none is asked"]


def _group(group: Group) -> str:
    return (
        f"{group.name}: {_count(group.parameters)} in {group.tensors} tensors, "
        f"learning rate {group.learning_rate:g}, weight decay {group.weight_decay:g}"
    )


def _length(plan: Plan, recipe: Recipe, loader: Loader | None) -> list[str]:
    size = f"{recipe.batch_size} images"
    if plan.steps is None:
        return [f"{recipe.epochs} epochs in steps of {size}; how many, the data will say"]
    steps = plan.steps
    lines = [f"{steps.total:,} steps of {size}"]
    if loader is not None:
        lines[0] += f", {steps.total / len(loader):.4g} epochs of {len(loader):,}"
    if steps.warmup:
        lines.append(f"warm-up in the first {steps.warmup:,}")
    if steps.frozen:
        lines.append(f"backbone frozen in the first {steps.frozen:,}")
    return lines


def _memory(
    memory: Memory, images: int, device: torch.device, precision: torch.dtype | None
) -> list[str]:
    kind = "fp32" if precision is None else str(precision).removeprefix("torch.")
    parts = ", ".join(f"{name} {_giga(size)}" for name, size in asdict(memory).items() if size)
    return [
        f"about {_giga(memory.total)} GB with {images} images at a time ({kind}, {device.type}; "
        "measured with two images)",
        parts,
    ]


def _giga(size: float) -> str:
    return f"{size / 1e9:.2f}"


def _count(parameters: int) -> str:
    return f"{parameters / 1e6:.2f} M" if parameters >= 1e4 else f"{parameters:,}"
