"""What `dynamicvit train --dry-run` says of a run before it."""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict

from rich.console import Console

from dynamicvit.cli.console import say
from dynamicvit.core.registry import fate
from dynamicvit.costs import count_macs
from dynamicvit.errors import UntrainedWarning
from dynamicvit.training import Training
from dynamicvit.training.memory import Memory, available_memory
from dynamicvit.training.objective import taught_by_dense_self
from dynamicvit.training.plan import Group, Plan
from dynamicvit.training.recipes import dump_recipe
from dynamicvit.utils.words import duration, percent


def describe_run(console: Console, training: Training) -> None:
    """Print the resolved recipe and what follows from it; nothing is written."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrainedWarning)  # said where the command begins
        plan = training.plan()
    say(console, dump_recipe(training.recipe))
    for title, lines in (
        ("data", _data(training)),
        ("method", [training.model.method.name]),
        ("schedule", _schedule(plan, training.model.method.name)),
        ("MACs", _macs(plan)),
        ("teacher", _teachers(training)),
        ("parameters", [*map(_group, plan.groups), f"{_count(plan.frozen)} never learn"]),
        ("length", _length(plan, training)),
        ("time", _time(plan)),
        ("memory", _memory(plan, training)),
    ):
        for place, line in enumerate(lines):
            say(console, f"{'' if place else title:<11}{line}")
    say(console, "dry run: nothing was trained or written")


def _data(training: Training) -> list[str]:
    losses, hold_out = training.recipe.losses, training.recipe.hold_out
    uses_labels = losses.classification > 0 or hold_out > 0
    lines = []
    for place, source in enumerate(training.sources):
        line = f"{source.root}: {len(source)} images"
        if source.labeled:
            line += f" in {len(source.classes)} classes"
        elif uses_labels:
            line += ", not labeled" if place == 0 else ", whose labels are not used"
        elif place == 0:
            line += "; this recipe uses no labels"
        lines.append(line)
    if training.held_out is not None:
        lines.append(f"{training.held_out.num_images} images of these are held out")
    return lines or ["none given"]


def _schedule(plan: Plan, method: str) -> list[str]:
    height, width = plan.image_size
    lines = [f"{plan.num_patches} patches of an image of {height}x{width}"]
    for stage, kept in zip(plan.schedule.stages, plan.kept, strict=True):
        lines.append(f"{kept} ({percent(kept / plan.num_patches)}) kept from block {stage} on")
    dropped = fate(method, plan.schedule.policy)
    return [*lines, f"the others {dropped}"] if plan.kept else lines


def _macs(plan: Plan) -> list[str]:
    share = 100 * plan.macs / plan.dense_macs
    return [f"{plan.dense_macs / 1e9:.2f} G dense, {plan.macs / 1e9:.2f} G pruned ({share:.0f} %)"]


def _teachers(training: Training) -> list[str]:
    """Each teacher and what it teaches; what the student itself costs dense stands above."""
    recipe, external, lines = training.recipe, training.teacher, []
    if external is not None:
        height, width = external.size
        parameters = sum(parameter.numel() for parameter in external.parameters())
        macs = count_macs(external.network, external.size)
        lines.append(
            f"{recipe.teacher.model}: {_count(parameters)} parameters, {macs / 1e9:.2f} G at "
            f"{height}x{width}, for distillation"
        )
    if taught := taught_by_dense_self(recipe, training.model):
        lines.append(f"the dense model, for {', '.join(taught)}")
    return lines or ["none is asked"]


def _group(group: Group) -> str:
    return (
        f"{group.name}: {_count(group.parameters)} in {group.tensors} tensors, "
        f"learning rate {group.learning_rate:g}, weight decay {group.weight_decay:g}"
    )


def _length(plan: Plan, training: Training) -> list[str]:
    first = plan.dense and plan.dense.steps
    if first:
        return [
            f"{first.total:,} steps that fit the dense model, in the first {first.frozen:,} its "
            "classifier alone",
            *_sparse_length(plan, training),
        ]
    return _sparse_length(plan, training)


def _sparse_length(plan: Plan, training: Training) -> list[str]:
    recipe, loader, steps = training.recipe, training.loader, plan.steps
    size = f"{recipe.batch_size} images"
    if steps is None:
        return [f"{recipe.epochs} epochs in steps of {size}; how many, the data will say"]
    lines = [f"{steps.total:,} steps of {size}"]
    if loader is not None:
        lines[0] += f", {steps.total / len(loader):.4g} epochs of {len(loader):,} steps"
        if left_out := len(loader.data) - loader.num_images:
            lines.append(
                f"an epoch leaves out {left_out:,} of the {len(loader.data):,} images, too few for "
                "a step; others each time"
            )
    if steps.warmup:
        lines.append(f"warm-up in the first {steps.warmup:,}")
    if steps.frozen:
        lines.append(f"backbone frozen in the first {steps.frozen:,}")
    return lines


def _time(plan: Plan) -> list[str]:
    pace, dense = plan.pace, plan.dense
    assert pace is not None
    timed = f"timed in {pace.steps} of {pace.images} images"
    lines = [f"{pace.step_seconds:.2f} s a step, {timed}"]
    if dense is not None and dense.pace is not None:
        lines[0] = f"{dense.pace.step_seconds:.2f} s a step of the dense model, then {lines[0]}"
    if plan.steps is not None:
        whole = _seconds(plan) + (_seconds(dense) if dense else 0.0)
        lines[0] = f"about {duration(whole)}, without evaluation: {lines[0]}"
    if pace.read_seconds is not None and pace.read_seconds > pace.step_seconds:
        lines.append(f"reading takes longer, {pace.read_seconds:.2f} s a step: more --workers")
    return lines


def _seconds(plan: Plan) -> float:
    """Of all steps of a plan."""
    return plan.steps.total * plan.pace.seconds if plan.steps and plan.pace else 0.0


def _memory(plan: Plan, training: Training) -> list[str]:
    if plan.dense is not None:  # the larger one, as one comes after the other
        plan = max(plan, plan.dense, key=lambda part: part.memory.total if part.memory else 0)
    memory, device, precision = plan.memory, training.processes.device, training.precision
    assert memory is not None
    kind = "fp32" if precision is None else str(precision).removeprefix("torch.")
    parts = ", ".join(f"{name} {_giga(size)}" for name, size in asdict(memory).items() if size)
    lines = [
        f"about {_giga(memory.total)} GB with {plan.images_at_a_time} images at a time ({kind}, "
        f"{device.type}; measured with two images)",
        parts,
    ]
    free = available_memory(device)
    if memory.total > free:
        lines.append(
            f"WARNING: only {_giga(free)} GB are free: take --accumulate "
            f"{_passes(memory, free, training)}, --grad-checkpointing, or a smaller batch_size"
        )
    return lines


def _passes(memory: Memory, free: int, training: Training) -> int:
    """Passes for a step that would fit, by what grows with the images at a time."""
    room = max(free - (memory.total - memory.activations), memory.activations // 64)
    return math.ceil(training.accumulate * memory.activations / max(1, room))


def _giga(size: float) -> str:
    return f"{size / 1e9:.2f}"


def _count(parameters: int) -> str:
    return f"{parameters / 1e6:.2f} M" if parameters >= 1e4 else f"{parameters:,}"
