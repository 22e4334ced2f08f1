"""What a recipe will do to a model, before it does it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from dynamicvit.core.model import DynamicViT
from dynamicvit.core.schedule import Schedule
from dynamicvit.costs import DENSE, meta_copy, resolve_image_size, schedule_macs
from dynamicvit.data import Loader
from dynamicvit.training.external_teacher import ExternalTeacher
from dynamicvit.training.memory import Memory, estimate_memory
from dynamicvit.training.optimizer import LearningRate, create_optimizer
from dynamicvit.training.pace import Pace, time_steps
from dynamicvit.training.recipe import Recipe


@dataclass(frozen=True)
class Group:
    """Parameters that learn alike.

    Attributes:
        name: of the part they belong to.
        tensors: how many.
        parameters: how many numbers those hold.
        learning_rate: at its peak.
        weight_decay: of AdamW.
    """

    name: str
    tensors: int
    parameters: int
    learning_rate: float
    weight_decay: float


@dataclass(frozen=True)
class Steps:
    """The length of a run in optimizer steps.

    Attributes:
        total: of the whole run.
        warmup: those in which the learning rate rises.
        frozen: those in which the backbone does not learn.
    """

    total: int
    warmup: int
    frozen: int


@dataclass(frozen=True)
class Plan:
    """What follows from model, recipe and the number of steps; memory and pace are measured.

    Attributes:
        image_size: height and width in pixels.
        num_patches: N.
        schedule: where and how much is dropped.
        kept: patches left after each stage.
        dense_macs: of one image through the backbone alone.
        macs: of one image at inference, prediction modules included.
        groups: the optimizer's parameter groups.
        frozen: numbers in parameters that never learn.
        steps: ``None`` where the data, and so their number, is not known.
        images_at_a_time: on one device; ``None`` with the memory.
        memory: that a device will need, where it was measured.
        pace: of its steps, likewise.
        dense: the plan of the dense part before it, where there is one.
    """

    image_size: tuple[int, int]
    num_patches: int
    schedule: Schedule
    kept: tuple[int, ...]
    dense_macs: int
    macs: int
    groups: tuple[Group, ...]
    frozen: int
    steps: Steps | None
    images_at_a_time: int | None = None
    memory: Memory | None = None
    pace: Pace | None = None
    dense: Plan | None = None


def plan_of(model: DynamicViT, recipe: Recipe, steps: int | None) -> Plan:
    """The plan of a run, without its memory and pace.

    Args:
        model: what will be trained; not touched.
        recipe: what will be done.
        steps: of the whole run, or ``None`` where that is not known.
    """
    twin = meta_copy(model)
    optimizer = create_optimizer(twin, recipe)
    groups = tuple(
        Group(
            name=group["name"],
            tensors=len(group["params"]),
            parameters=sum(p.numel() for p in group["params"]),
            learning_rate=recipe.learning_rate * group["lr_scale"],
            weight_decay=group["weight_decay"],
        )
        for group in optimizer.param_groups
    )
    image_size = resolve_image_size(model)
    num_patches = math.prod(model.bound.grid(*image_size))
    length = None
    if steps is not None:
        rate = LearningRate(optimizer, recipe, steps)
        length = Steps(steps, rate.decay.warmup_t, rate.frozen_steps)
    return Plan(
        image_size=image_size,
        num_patches=num_patches,
        schedule=model.schedule,
        kept=model.schedule.kept(num_patches),
        dense_macs=schedule_macs(model, DENSE),
        macs=schedule_macs(model, model.schedule),
        groups=groups,
        frozen=sum(p.numel() for p in twin.parameters() if not p.requires_grad),
        steps=length,
    )


def measured_plan(
    model: DynamicViT,
    recipe: Recipe,
    steps: int | None,
    *,
    images_a_step: int,
    accumulate: int = 1,
    loader: Loader | None = None,
    teacher: ExternalTeacher | None = None,
    device: torch.device | str = "cpu",
    precision: torch.dtype | None = None,
) -> Plan:
    """The plan of a run, with the memory that a device will need and a few timed steps.

    Args:
        model: what will be trained; moved to the device.
        recipe: what will be done.
        steps: of the whole run, or ``None`` where that is not known.
        images_a_step: of one device.
        accumulate: passes in which it works them off.
        loader: of the training images, if there are any.
        teacher: the network that the recipe names, if it does.
        device: where training will run.
        precision: dtype of autocast, or none for full precision.
    """
    at_a_time = math.ceil(images_a_step / accumulate)
    where = {"teacher": teacher, "device": device, "precision": precision}
    memory = estimate_memory(model, recipe, at_a_time, **where)
    pace = time_steps(model, recipe, images_a_step, at_a_time=at_a_time, loader=loader, **where)
    plan = plan_of(model, recipe, steps)
    return replace(plan, images_at_a_time=at_a_time, memory=memory, pace=pace)
