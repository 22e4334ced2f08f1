"""Fit a dense model to the classes of images: its fresh classifier first, then all of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from dynamicvit.checkpoints.loading import set_drop_path
from dynamicvit.checkpoints.runs import holds_run
from dynamicvit.checkpoints.saving import save_as_it_came
from dynamicvit.core.model import DynamicViT
from dynamicvit.costs import DENSE
from dynamicvit.data import ImageData, Loader
from dynamicvit.training.held_out import HeldOut
from dynamicvit.training.log import TENSORBOARD_FOLDER, Progress, TensorBoard
from dynamicvit.training.loop import fit, total_steps
from dynamicvit.training.output import draw_run, write_report
from dynamicvit.training.plan import Plan, measured_plan
from dynamicvit.training.recipe import Recipe
from dynamicvit.training.recipe_parts import AugmentRecipe, LossRecipe, TeacherRecipe
from dynamicvit.training.state import TrainingReport
from dynamicvit.training.tasks import task_of
from dynamicvit.utils.distributed import Processes

#: Images of a run that are held out where a dense model is fitted and the recipe holds out none.
HOLD_OUT = 0.1

_PASSES, _IMAGES, _LEAST_PASSES = 20, 16_000, 3


def recipe_for(recipe: Recipe, images: int, fresh: Sequence[str]) -> Recipe:
    """The dense part of a run: labels alone teach it, by default under a mild augmentation.

    Args:
        recipe: of the whole run.
        images: how many there are to train on. Of few each is seen 20 times, of many, three times:
            16,000 are seen at most, or three times as many as there are.
        fresh: names of the new classifier's parameters in the backbone.
    """
    dense = recipe.dense
    seen = min(_PASSES * images, max(_IMAGES, _LEAST_PASSES * images))
    return Recipe(
        model=recipe.model,
        keep_ratio=1.0,
        epochs=None,
        images=dense.images or seen,
        batch_size=min(dense.batch_size, images),
        learning_rate=dense.learning_rate,
        backbone_lr_scale=dense.backbone_lr_scale,
        backbone_frozen=dense.head_alone if fresh else 0.0,
        optimizer=dense.optimizer,
        lr_decay=dense.lr_decay,
        weight_decay=dense.weight_decay,
        warmup=dense.warmup,
        drop_path=dense.drop_path,
        clip_grad=1.0,
        ema=None,
        task=recipe.task,
        segmentation=recipe.segmentation,
        losses=LossRecipe(classification=1, distillation=0, token=0, ratio=0),
        teacher=TeacherRecipe(),
        video=recipe.video,
        augment=recipe.augment if dense.augment == "full" else _mild(recipe.augment),
        frozen=(),
        fresh=tuple(fresh),
        hold_out=recipe.hold_out,
        seed=recipe.seed,
    )


def _mild(augment: AugmentRecipe) -> AugmentRecipe:
    """Crops and mirror images."""
    return AugmentRecipe(
        scale=(0.35, 1.0),
        hflip=augment.hflip,
        auto_augment=None,
        re_prob=0.0,
        mixup_prob=0.0,
        mixup=0.0,
        cutmix=0.0,
    )


def plan_dense(
    model: DynamicViT,
    images: ImageData,
    recipe: Recipe,
    *,
    fresh: Sequence[str],
    workers: int,
    processes: Processes,
    precision: torch.dtype | None = None,
    accumulate: int = 1,
) -> Plan:
    """What :func:`fit_dense` would do; the arguments are its own."""
    dense, values, loader = _parts(model, images, recipe, fresh, workers)
    return measured_plan(
        dense,
        values,
        total_steps(values, loader),
        images_a_step=math.ceil(values.batch_size / processes.count),
        accumulate=accumulate,
        loader=loader,
        device=processes.device,
        precision=precision,
    )


def _parts(
    model: DynamicViT, images: ImageData, recipe: Recipe, fresh: Sequence[str], workers: int
) -> tuple[DynamicViT, Recipe, Loader]:
    """The dense network inside a model, its recipe and its batches."""
    values = recipe_for(recipe, len(images), fresh)
    loader = Loader(
        task_of(recipe).for_training(images, model, values),
        values.batch_size,
        shuffle=True,
        seed=recipe.seed,
        num_workers=workers,
        drop_last=True,
    )
    return model.like(model.bound, DENSE), values, loader


def fit_dense(
    model: DynamicViT,
    images: ImageData,
    recipe: Recipe,
    folder: Path,
    *,
    fresh: Sequence[str],
    held_out: HeldOut | None,
    workers: int,
    processes: Processes,
    force: bool = False,
    precision: torch.dtype | None = None,
    accumulate: int = 1,
    compiled: bool = False,
    on_step: Callable[[Progress], None] | None = None,
) -> TrainingReport:
    """Fit the dense network inside a model to the classes of images, in place.

    Args:
        model: whose classifier is fresh.
        images: labeled by the model's classes.
        recipe: of the whole run.
        folder: of this part: what it holds is gone on with, and it gets the dense model.
        fresh: names of the classifier's parameters in the backbone.
        held_out: images to evaluate on.
        workers: processes that read images.
        processes: as for :func:`~dynamicvit.training.loop.fit`, like all that follow.
        force: likewise.
        precision: likewise.
        accumulate: likewise.
        compiled: likewise.
        on_step: likewise. A step of this part has no stage in ``kept``.

    Raises:
        InputError: as ``fit`` does.
        Interrupted: likewise.
    """
    dense, values, loader = _parts(model, images, recipe, fresh, workers)
    if values.drop_path or recipe.drop_path:
        set_drop_path(model, values.drop_path)
    with TensorBoard(folder / TENSORBOARD_FOLDER) as board:
        report = fit(
            dense,
            loader,
            values,
            folder,
            held_out=held_out,
            resume=holds_run(folder),
            force=force,
            processes=processes,
            precision=precision,
            accumulate=accumulate,
            compiled=compiled,
            on_step=board.after(on_step),
        )
    if values.drop_path or recipe.drop_path:
        set_drop_path(model, recipe.drop_path)
    if processes.is_main:
        save_as_it_came(dense, folder)
        write_report(report, dense, values, None, folder)
        draw_run(folder)
    return report
