"""A whole run from names: load the model and its teachers, read the images, train, save, report."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import ConcatDataset

from dynamicvit.checkpoints.addon import ADDON_NAME, backbone_fingerprint, save_addon
from dynamicvit.checkpoints.loading import set_drop_path, set_image_size
from dynamicvit.checkpoints.runs import DENSE_FOLDER, holds_run
from dynamicvit.checkpoints.saving import save_as_it_came
from dynamicvit.core.networks import DenseNetwork
from dynamicvit.data import Loader, split
from dynamicvit.errors import InputError
from dynamicvit.training.dense import HOLD_OUT, fit_dense, plan_dense
from dynamicvit.training.external_teacher import teacher_for
from dynamicvit.training.held_out import HeldOut
from dynamicvit.training.log import TENSORBOARD_FOLDER, Progress, TensorBoard
from dynamicvit.training.loop import check_recipe, fit, total_steps
from dynamicvit.training.output import check_output, draw_run, take_back, write_report
from dynamicvit.training.plan import Plan, measured_plan
from dynamicvit.training.recipe import Recipe
from dynamicvit.training.recipes import resolved
from dynamicvit.training.state import TrainingReport
from dynamicvit.training.student import TRAINED_METHOD, student_for
from dynamicvit.training.tasks import default_recipe, serves_any_budget, task_of
from dynamicvit.utils.distributed import launched_precision, launched_processes
from dynamicvit.utils.lock import owned
from dynamicvit.utils.precision import autocast_dtype


def train(
    data: str | Path,
    output: str | Path,
    model: str | Path | nn.Module | None = None,
    *,
    resume: bool = False,
    force: bool = False,
    on_step: Callable[[Progress], None] | None = None,
    **settings: Any,
) -> TrainingReport:
    """Fine-tune a model on images and save it: what ``dynamicvit train`` does.

    Args:
        data: where the images are, see docs/data.md.
        output: folder of the trained model (``from_pretrained`` reads it), of log, curves,
            checkpoints and ``report.json``. A run that is there is gone on with.
        model: as for :class:`Training`.
        resume: refuse to start anew: there must be a run to go on with.
        force: go on with a run though the recipe differs.
        on_step: called after each step in the main process.
        settings: of :class:`Training`.

    Returns:
        What was done.

    Raises:
        InputError: as :class:`Training` and :meth:`Training.run`.
        Interrupted: on SIGINT (Ctrl-C) or SIGTERM, after saving; the same call goes on.
    """
    check_output(Path(output), resume)
    training = Training(data, model, **settings)
    return training.run(output, resume=resume, force=force, on_step=on_step)


class Training:
    """A run with all that it needs, before its first step: nothing has been written.

    Args:
        data: where the images are, see docs/data.md; ``None`` for a plan without.
        model: a name or folder as :func:`~dynamicvit.checkpoints.loading.load` takes it, by
            default the recipe's; a dense network; or a model that drops tokens, whose own budget,
            stages and policy then count.
        recipe: a built-in one, a YAML file, or its values. By default "segmentation" for images
            with masks, "video_small_data" for clips, "frozen" where the overrides freeze the
            backbone. Else "any_budget" for a model that merges by look-ahead, as a dense network
            then does (:func:`~dynamicvit.sparsify`), and "small_data" for other methods, and for
            a budget outside of that recipe's.
        overrides: of the recipe's values, as ``key=value``.
        checkpoint: a file of weights for the model.
        addon: prediction modules for the model, of an earlier run with a frozen backbone.
        pretrained: whether timm's names get timm's weights.
        teacher: a network by timm's name, whose logits are distilled; by default the recipe's,
            or the dense model.
        teacher_checkpoint: a file of its weights.
        unlabeled: more images, named as ``data`` is.
        class_map: "imagenet", or a file with one class name a line; see docs/data.md.
        num_classes: of the model. By default those of the images where they are labeled by other
            classes than the model's: the dense model is then fitted to them first
            (:mod:`dynamicvit.training.dense`). The model's own number keeps its classifier.
        class_names: a file with one name a line, in class order: the names that are saved with the
            model. By default those of the images' classes, if the model has none.
        frames: of a clip, for an image network's name, as for :func:`~dynamicvit.load`.
        tubelet: likewise.
        precision: "fp32", "bf16" or "fp16" (autocast).
        accumulate: passes in which a process works off its images of a step.
        grad_checkpointing: less memory, a third more computation.
        compiled: use ``torch.compile``.
        strict: an unreadable image is an error.
        dense: fit the dense model alone, by labels, and save that.
        workers: processes that read images.
        device: where to train; by default the GPU, if there is one.
        plan_only: load no weights but those of files; for :meth:`plan`.

    Attributes:
        recipe: as it is resolved.
        model: the student.
        teacher: the network to distil, if it is another than the dense model.
        sources: the images found.
        classes: of the model.
        class_map: how labels lead to them; ``None`` where no label is read.
        loader: the training batches; ``None`` without data.
        held_out: the images kept aside, if the recipe does.
        processes: that share the run.

    Raises:
        InputError: for a recipe, model, teacher or images that can't be had or don't fit together.
    """

    def __init__(
        self,
        data: str | Path | None,
        model: str | Path | nn.Module | None = None,
        *,
        recipe: str | Path | Recipe | None = None,
        overrides: Sequence[str] = (),
        checkpoint: str | Path | None = None,
        addon: str | Path | None = None,
        pretrained: bool = True,
        teacher: str | None = None,
        teacher_checkpoint: str | Path | None = None,
        unlabeled: Sequence[str | Path] = (),
        class_map: str | None = None,
        num_classes: int | None = None,
        class_names: str | Path | None = None,
        frames: int | None = None,
        tubelet: int | None = None,
        precision: str = "fp32",
        accumulate: int = 1,
        grad_checkpointing: bool = False,
        compiled: bool = False,
        strict: bool = False,
        dense: bool = False,
        workers: int = 1,
        device: torch.device | str | None = None,
        plan_only: bool = False,
    ) -> None:
        dtype = autocast_dtype(precision)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.processes = launched_processes(device)
        self.precision = launched_precision(dtype, self.processes.device)
        self.accumulate, self.compiled = accumulate, compiled
        self.data, self.dense_only = data, dense
        self.teacher_checkpoint = teacher_checkpoint
        default = default_recipe(data, overrides, frames) if recipe is None else None
        values = resolved(recipe if default is None else default, overrides, teacher)
        named = values.model if model is None else model
        if named is None:
            raise InputError("the recipe names no model: give one")
        self._task = task_of(values, dense)
        self.sources = [] if data is None else self._task.sources(data, values, unlabeled, strict)
        torch.manual_seed(values.seed)
        wanted = pretrained and (not plan_only or addon is not None)
        clip = {"frames": frames, "tubelet": tubelet}
        method = None if default == "small_data" else TRAINED_METHOD
        model, said = student_for(named, values, checkpoint, addon, wanted, method, **clip)
        if default == "small_data" and serves_any_budget(model, overrides):
            values = resolved("any_budget", overrides, teacher)
        values = values.model_copy(update=said)
        self.sources = [self._task.taken_by(model, each, values) for each in self.sources]
        images, given = self.sources[0] if self.sources else None, (num_classes, class_names)
        self.classes = self._task.classes(images, model, values, class_map, *given)
        self.model, self._fresh = self._task.give(self.classes, model, values)
        self.class_map = self.classes.class_map
        if dense and self.class_map is None and data is not None:
            raise InputError(f"{data}: a dense model is fitted by labels, and none are used here")
        fits_dense = self.classes.are_fitted or dense
        if fits_dense and "hold_out" not in values.model_fields_set:
            values = values.model_copy(update={"hold_out": HOLD_OUT})
        if not dense:
            check_recipe(values, self.model, compiled)
        self.recipe = values
        # Before its positions are resized: that can be repeated, but not everywhere to the bit.
        self._weights = backbone_fingerprint(self.model.backbone) if values.freeze_backbone else ""
        if values.image_size is not None:
            set_image_size(self.model, values.image_size)
        if values.drop_path:
            set_drop_path(self.model, values.drop_path)
        if grad_checkpointing:
            self.model.set_grad_checkpointing()
        self.teacher = teacher_for(self.model, values, teacher_checkpoint, not plan_only)
        self.loader: Loader | None = None
        self.held_out: HeldOut | None = None
        self._workers = workers
        if self.sources:
            self._read(workers)

    def _read(self, workers: int) -> None:
        """The training batches, and those held out."""
        images, *more = self.sources
        self.sources[0] = images = self._task.labeled(images, self.classes)
        if self.recipe.hold_out:
            images, kept_aside = split(images, self.recipe.hold_out, self.recipe.seed)
            self.held_out = self._task.held_out(kept_aside, self.model, self.recipe, workers)
        self._images = images
        augmented = [
            self._task.for_training(each, self.model, self.recipe) for each in (images, *more)
        ]
        self.loader = Loader(
            ConcatDataset(augmented),
            self.recipe.batch_size,
            shuffle=True,
            seed=self.recipe.seed,
            num_workers=workers,
            drop_last=True,
        )

    @property
    def fits_dense(self) -> bool:
        """Whether the dense model is fitted, before the sparse one or alone."""
        return self.dense_only or self.classes.are_fitted

    def plan(self) -> Plan:
        """What would be done, with a device's memory and a few timed steps; nothing is written."""
        known = self.loader is not None or self.recipe.images is not None
        steps = total_steps(self.recipe, self.loader) if known else None
        how: dict[str, Any] = {"accumulate": self.accumulate, "precision": self.precision}
        plan = measured_plan(
            self.model,
            self.recipe,
            steps,
            images_a_step=math.ceil(self.recipe.batch_size / self.processes.count),
            loader=self.loader,
            teacher=self.teacher,
            device=self.processes.device,
            **how,
        )
        if self.fits_dense:
            how |= {"fresh": self._fresh, "workers": self._workers, "processes": self.processes}
            plan = replace(plan, dense=plan_dense(self.model, self._images, self.recipe, **how))
        return plan

    def run(
        self,
        output: str | Path,
        *,
        resume: bool = False,
        force: bool = False,
        on_step: Callable[[Progress], None] | None = None,
    ) -> TrainingReport:
        """Train, and write model, log, curves and report.

        Args:
            output: as for :func:`train`.
            resume: likewise.
            force: likewise.
            on_step: likewise.

        Raises:
            InputError: for a folder that holds something else or in which another run is at work,
                images none of which can be read, and as
                :func:`~dynamicvit.training.loop.fit` does.
            Interrupted: as ``fit`` does.
        """
        if self.loader is None:
            raise InputError("there are no images to train on: give data")
        with owned(output, self.processes):
            return self._run(Path(output), self.loader, resume, force, on_step)

    def _run(
        self,
        output: Path,
        loader: Loader,
        resume: bool,
        force: bool,
        on_step: Callable[[Progress], None] | None,
    ) -> TrainingReport:
        check_output(output, resume)
        goes_on = holds_run(output)
        held_out = self.held_out
        dense, accuracy, report = None, None, None
        is_main = self.processes.is_main
        how: dict[str, Any] = {"force": force, "processes": self.processes}
        for name in ("precision", "accumulate", "compiled"):
            how[name] = getattr(self, name)
        try:
            if self.fits_dense:
                report = fit_dense(
                    self.model,
                    self._images,
                    self.recipe,
                    output if self.dense_only else output / DENSE_FOLDER,
                    fresh=self._fresh,
                    workers=self._workers,
                    held_out=held_out,
                    on_step=on_step,
                    **how,
                )
            if self.dense_only and report is not None:
                return report
            if held_out is not None:
                dense = DenseNetwork(self.model)
                dense = dense if self.recipe.freeze_backbone else copy.deepcopy(dense)
                dense.to(self.processes.device)
                if self.class_map is None:  # then the dense network, as it is now, is right
                    held_out = replace(held_out, dense=dense)
            with TensorBoard(output / TENSORBOARD_FOLDER) as board:
                report = fit(
                    self.model,
                    loader,
                    self.recipe,
                    output,
                    teacher=self.teacher,
                    held_out=held_out,
                    resume=goes_on,
                    on_step=board.after(on_step),
                    **how,
                )
            if not report.images:
                raise InputError(f"none of the images of {self.data} that were drawn can be read")
            if held_out is not None and dense is not None and held_out.dense is None:
                accuracy = held_out.evaluate(dense, self.processes, self.precision)
            report = replace(report, dense_held_out=accuracy)
        except InputError:
            # Found only while reading (an unreadable image with strict): no trace stays.
            if is_main and not holds_run(output):
                take_back(output)
            elif is_main:
                with suppress(InputError):  # they show what went wrong, which is to be said
                    draw_run(output)
            raise
        if is_main:
            save_as_it_came(self.model, output, report.held_out)
            if self.recipe.freeze_backbone:
                weights = None if self.classes.are_fitted else self._weights
                save_addon(self.model, output / ADDON_NAME, weights)
            write_report(report, self.model, self.recipe, self.teacher_checkpoint, output)
            draw_run(output)
        return report
