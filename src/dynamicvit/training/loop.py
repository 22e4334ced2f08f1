"""Fine-tuning a sparsified backbone against its own dense self (Section 3.3), top to bottom."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from timm.data import Mixup
from timm.utils import ModelEmaV3

from dynamicvit.data import UNLABELLED, Batch
from dynamicvit.decisions import (
    Sampler,
    best_k_sampler,
    gumbel_sampler,
    gumbel_top_k_sampler,
)
from dynamicvit.errors import InputError
from dynamicvit.losses import Losses, dynamicvit_loss
from dynamicvit.model import DynamicViT, MaskedOutput
from dynamicvit.teacher import dense_teacher, weigh_patches
from dynamicvit.training.finite import MAX_BAD_STEPS, not_finite, what_to_try, whose_answer
from dynamicvit.training.log import LOG_NAME
from dynamicvit.training.optimizer import LearningRate, create_optimizer
from dynamicvit.training.recipe import Recipe, dump_recipe
from dynamicvit.training.state import Progress, RunState, TrainingReport

_log = logging.getLogger(__name__)

SAMPLERS: dict[str, Sampler] = {
    "independent": gumbel_sampler,
    "top-k": gumbel_top_k_sampler,
    "best-k": best_k_sampler,
}

#: How often a run is saved: what a crash can cost.
SAVE_SECONDS = 300.0


class Batches(Protocol):
    """What training reads: :class:`~dynamicvit.data.Loader`, or anything like it."""

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Begin the next iteration at batch ``start`` of an epoch."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during training; the state has been saved."""


def train(
    model: DynamicViT,
    loader: Batches,
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool = False,
    device: torch.device | str = "cpu",
    precision: torch.dtype | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> TrainingReport:
    """Fine-tune a model in place, and leave a log and a checkpoint to go on from.

    The teacher is the dense backbone as it is when this is called, copied and frozen.

    Args:
        model: a sparsified backbone with its pretrained weights.
        loader: the training images; shuffled.
        recipe: what to do.
        folder: gets ``recipe.yaml``, ``log.jsonl`` and ``checkpoint.pt``; created if missing.
        resume: go on from the folder's checkpoint.
        device: where to train.
        precision: dtype of autocast, or none for full precision.
        on_step: called after each step.

    Returns:
        What was done. The model then holds the final weights (averaged ones with ``ema``).

    Raises:
        InputError: for unlabelled images with a classification loss, or a checkpoint that does not
            fit.
        InputError: if the loss stays non-finite, with what to try.
        Interrupted: on Ctrl-C, after saving.
    """
    if not model.schedule.stages:
        raise InputError("there is nothing to train: the schedule has no stage")
    device = torch.device(device)
    model.to(device).train()
    teacher = dense_teacher(model)
    was = model.sampler, model.leave
    model.sampler, model.leave = SAMPLERS[recipe.decisions], recipe.leave
    optimizer = create_optimizer(model, recipe)
    steps = total_steps(recipe, loader)
    rate = LearningRate(optimizer, recipe, steps)
    ema = ModelEmaV3(model, decay=recipe.ema) if recipe.ema else None
    mixup = _mixup(recipe, model.num_classes)

    folder.mkdir(parents=True, exist_ok=True)
    run = RunState(folder, model, optimizer, ema, teacher)
    if resume:
        run.restore(recipe)
    else:
        (folder / "recipe.yaml").write_text(dump_recipe(recipe))
        (folder / LOG_NAME).write_text("")

    began, images_before = time.perf_counter(), run.images
    saved = began
    try:
        for batch in batches(loader, run.step, steps):
            rate.set(run.step)
            run.skipped.extend(batch.skipped)
            if not len(batch):  # every image of it was unreadable
                run.step += 1
                continue
            batch = batch.to(device)
            seed_everything(recipe.seed, run.step)
            output, losses = step_losses(model, teacher, batch, recipe, precision, mixup)
            norm = run.update(losses.total, recipe.clip_grad)
            run.seconds += time.perf_counter() - began
            run.images += len(batch)
            began, elapsed = time.perf_counter(), run.seconds - run.seconds_before
            progress = Progress(
                step=run.step,
                steps=steps,
                images=run.images,
                images_per_second=(run.images - images_before) / elapsed,
                losses={name: float(part.detach()) for name, part in vars(losses).items()},
                kept=tuple(float(d.detach().mean()) for d in output.decisions),
                learning_rates={str(g["name"]): float(g["lr"]) for g in optimizer.param_groups},
                gradient_norm=norm,
                kept_by_score=tuple(float((o > 0).float().mean()) for o in output.log_odds),
                kept_at_inference=_shares_at_inference(model, output),
                not_finite=not_finite(vars(losses), norm),
            )
            run.step += 1
            run.log(progress)
            if progress.not_finite:
                _report_left_out(progress, output)
            if run.bad_in_a_row == MAX_BAD_STEPS:
                run.bad_in_a_row = 0  # whoever goes on has as many again
                run.save(recipe)
                raise InputError(what_to_try(progress.step, progress.not_finite, folder))
            if time.perf_counter() - saved > SAVE_SECONDS:
                run.save(recipe)
                saved = time.perf_counter()
            if on_step is not None:
                on_step(progress)
    except KeyboardInterrupt:
        run.save(recipe)
        raise Interrupted from None
    finally:
        model.sampler, model.leave = was
    if run.images:  # else no image could be read, and there is nothing to go on from
        run.save(recipe)
    if ema is not None:
        model.load_state_dict(ema.module.state_dict())
    model.eval()
    return run.report()


def step_losses(
    model: DynamicViT,
    teacher: DynamicViT,
    batch: Batch,
    recipe: Recipe,
    precision: torch.dtype | None,
    mixup: Mixup | None = None,
) -> tuple[MaskedOutput, Losses]:
    """Teacher, student under its decisions, and the losses (Eq. 12-16) of one batch."""
    images, labels = batch.images, batch.labels
    if recipe.losses.classification and (labels == UNLABELLED).any():
        raise InputError(
            "some images have no label, which the classification loss needs: set "
            "losses.classification=0 to learn from the dense network alone"
        )
    if mixup is not None:
        if len(images) % 2:  # timm's mixup pairs images: one of them is its own partner
            images, labels = torch.cat([images, images[:1]]), torch.cat([labels, labels[:1]])
        images, labels = mixup(images, labels)
    with torch.autocast(images.device.type, precision, enabled=precision is not None):
        with torch.no_grad():
            # The teacher's stem serves both: the student's is never trained, so it is the same.
            depth = model.schedule.stages[0]
            start = teacher.stem(images, depth) if recipe.share_stem else images
            dense = (
                weigh_patches(teacher, start)
                if recipe.losses.guidance
                else teacher.forward_dense(start)
            )
        output = model.forward_masked(start)
        losses = dynamicvit_loss(
            output,
            model.schedule.keep_ratios,
            labels=labels,
            teacher=dense,
            label_smoothing=recipe.augment.smoothing,
            weights=recipe.losses.weights(),
        )
    return output, losses


def _shares_at_inference(model: DynamicViT, output: MaskedOutput) -> tuple[float, ...]:
    rows, columns = output.grid
    return tuple(k / (rows * columns) for k in model.schedule.kept(rows * columns))


def _report_left_out(progress: Progress, output: MaskedOutput) -> None:
    _log.warning(
        "step %d left out: %s not finite (%s)",
        progress.step,
        " and ".join(progress.not_finite),
        whose_answer(output.logits),
    )


def seed_everything(seed: int, step: int) -> None:
    """Seed what a step draws from, so that a run that goes on draws what it would have drawn.

    torch draws decisions and dropped paths, numpy timm's mixup.
    """
    draw = int(np.random.SeedSequence((seed, step)).generate_state(1)[0])
    torch.manual_seed(draw)
    np.random.seed(draw)  # noqa: NPY002 - timm's mixup uses the global generator


def total_steps(recipe: Recipe, loader: Batches) -> int:
    """Optimiser steps of a run."""
    if recipe.images is not None:
        return max(1, math.ceil(recipe.images / recipe.batch_size))
    assert recipe.epochs is not None  # the recipe has one of the two
    return recipe.epochs * len(loader)


def batches(loader: Batches, start: int, stop: int) -> Iterator[Batch]:
    """Batches ``start`` to ``stop`` of an endless row of epochs; unreadable ones are passed on."""
    step = start
    while step < stop:
        epoch, done = divmod(step, len(loader))
        loader.set_epoch(epoch, done)
        for batch in loader:
            yield batch
            step += 1
            if step == stop:
                return


def _mixup(recipe: Recipe, num_classes: int) -> Mixup | None:
    augment = recipe.augment
    if not recipe.losses.classification or not (augment.mixup or augment.cutmix):
        return None
    return Mixup(
        mixup_alpha=augment.mixup,
        cutmix_alpha=augment.cutmix,
        label_smoothing=augment.smoothing,
        num_classes=num_classes,
    )
