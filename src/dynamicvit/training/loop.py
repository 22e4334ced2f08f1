"""Fine-tuning a sparsified backbone against its teachers (Section 3.3), top to bottom."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch

from dynamicvit.checkpoints.runs import holds_run
from dynamicvit.core.model import DynamicViT
from dynamicvit.costs import resolve_image_size
from dynamicvit.data import Batch, ReaderError
from dynamicvit.errors import InputError
from dynamicvit.training.budgets import Budgets
from dynamicvit.training.external_teacher import ExternalTeacher
from dynamicvit.training.finite import (
    MAX_BAD_STEPS,
    not_finite,
    report_left_out,
    suspects,
    what_to_try,
)
from dynamicvit.training.held_out import Best, HeldOut, is_due
from dynamicvit.training.log import Progress
from dynamicvit.training.objective import TrainingObjective, objective_of
from dynamicvit.training.optimizer import LearningRate, create_optimizer
from dynamicvit.training.recipe import Recipe
from dynamicvit.training.saved_weights import check_interpolates, saved_weights
from dynamicvit.training.state import RunState, TrainingReport
from dynamicvit.training.step import Split, Step
from dynamicvit.utils.distributed import Processes, launched_precision
from dynamicvit.utils.lock import owned
from dynamicvit.utils.signals import Interrupted, stop_requests

#: How often a run is saved: what a crash can cost.
SAVE_SECONDS = 300.0


class Batches(Protocol):
    """What training reads: :class:`~dynamicvit.data.Loader`, or anything like it.

    Where several processes share a run, it also has ``set_share``. With an ``images_digest`` (text)
    a run is not gone on with on other images.
    """

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Begin the next iteration at batch ``start`` of an epoch."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...


def fit(
    model: DynamicViT,
    loader: Batches,
    recipe: Recipe,
    folder: Path,
    *,
    teacher: ExternalTeacher | None = None,
    held_out: HeldOut | None = None,
    resume: bool = False,
    force: bool = False,
    device: torch.device | str = "cpu",
    processes: Processes | None = None,
    precision: torch.dtype | None = None,
    accumulate: int = 1,
    compiled: bool = False,
    on_step: Callable[[Progress], None] | None = None,
) -> TrainingReport:
    """Fine-tune a model in place, and leave a log and a checkpoint to go on from.

    :func:`~dynamicvit.training.train` does it from the names of a model and of images. The dense
    teacher is the backbone as it is when this is called, copied and frozen.

    Args:
        model: a sparsified backbone with its pretrained weights; without a stage only under
            another network's teaching, or to fit a fresh classifier.
        loader: the training images; shuffled. Its batches are those of one optimizer step, over
            all processes and passes.
        recipe: what to do.
        folder: gets ``recipe.yaml``, ``log.jsonl`` and ``checkpoint*.pt``; created if missing.
            Several processes share it.
        teacher: the network that ``recipe.teacher.model`` names, if it does: it gives the logits to
            distil, in place of the dense backbone. It is moved to the device.
        held_out: images to evaluate on at the end of each epoch (in long runs of some) and of the
            run. The best checkpoint is the one that does best on them; without them, the one before
            which the mean training loss was lowest.
        resume: go on from the folder's newest checkpoint.
        force: go on even where the checkpoint's recipe differs.
        device: where to train.
        processes: that share the run, of
            :func:`~dynamicvit.utils.distributed.launched_processes`; this one alone by default.
            They say where to train.
        precision: dtype of autocast, or none for full precision.
        accumulate: passes in which each process works off its images of a step, to save memory.
        compiled: run student and teachers through ``torch.compile``.
        on_step: called after each step in the main process.

    Returns:
        What was done. The model then holds the final weights: averaged ones with ``ema``,
        some on the way to them with ``interpolate``.

    Raises:
        InputError: for a checkpoint that does not fit.
        InputError: if another process is at work in the folder.
        InputError: if the loss stays non-finite, with what to try.
        InputError: if the disk is full; the last checkpoint is whole.
        ReaderError: if a process that reads images died, after saving.
        Interrupted: on SIGINT (Ctrl-C) or SIGTERM, after saving.
    """
    by_labels = recipe.fresh or recipe.losses.classification
    if not model.schedule.stages and teacher is None and not by_labels:
        raise InputError("there is nothing to train: the schedule has no stage")
    if not len(loader):
        raise InputError("there is nothing to train on: the loader has no batch of images")
    if accumulate < 1:
        raise InputError(f"accumulate is at least 1 pass, got {accumulate}")
    check_recipe(recipe, model, compiled)
    # The model has the say, and the run's recipe tells what was done.
    says = {"policy": model.policy, "method": model.method.name or None}
    recipe = recipe.model_copy(update=says)
    processes = Processes(device) if processes is None else processes
    precision = launched_precision(precision, processes.device)
    model.to(processes.device).train()
    processes.equalize(model)
    objective = objective_of(model, recipe, teacher, processes.device).to(processes.device)
    if objective.external_teacher is not None:
        processes.equalize(objective.external_teacher)
    optimizer = create_optimizer(model, recipe)
    steps = total_steps(recipe, loader)
    rate = LearningRate(optimizer, recipe, steps)
    weights = saved_weights(model, objective.dense_teacher, recipe)
    if processes.count > 1:
        loader.set_share(processes.rank, processes.count)

    with owned(folder, processes), _compiled(compiled, objective), stop_requests() as stop:
        step = Step(objective, recipe, processes, precision=precision, accumulate=accumulate)
        run = RunState(
            folder,
            recipe,
            objective,
            optimizer=optimizer,
            saved=weights,
            scaler=step.scaler,
            steps=steps,
            epoch_steps=len(loader),
            images_digest=getattr(loader, "images_digest", None),
            processes=processes,
            best=Best() if held_out is None else Best(held_out.measure),
        )
        if resume:
            run.restore(force=force)
        if processes.is_main and (force or not resume):
            run.write_recipe()
        if processes.is_main and not resume:
            run.start_log()
        num_patches = math.prod(model.bound.grid(*resolve_image_size(model)))
        at_inference = tuple(k / num_patches for k in model.schedule.kept(num_patches))
        began = saved = time.perf_counter()
        first, images_before = run.step, run.images
        result = None  # on the held-out images, of the weights as they are
        failure: str | None = None
        for batch, problem in until_reader_dies(batches(loader, run.step, steps)):
            # Everything that all processes must agree on, in one exchange.
            is_late = time.perf_counter() - saved > SAVE_SECONDS
            everyone = processes.gather((len(batch), batch.skipped, is_late, stop.signum, problem))
            failure = next((each for *_, each in everyone if each is not None), None)
            if failure is not None or any(signum for *_, signum, _ in everyone):
                break
            counts = [count for count, *_ in everyone]
            run.skipped.extend(path for _, skipped, *_ in everyone for path in skipped)
            if not sum(counts):  # every image of it was unreadable
                run.step += 1
                continue
            rate.set(run.step)
            split = Split(run.step, sum(counts[: processes.rank]), sum(counts))
            measured = step.backward(batch.to(processes.device), split)
            norm = run.update(measured.losses["total"], recipe.clip_grad)
            run.seconds += time.perf_counter() - began
            run.images += split.total
            began, elapsed = time.perf_counter(), run.seconds - run.seconds_before
            progress = Progress(
                step=run.step,
                steps=steps,
                images=run.images,
                images_per_second=(run.images - images_before) / elapsed,
                losses=measured.losses,
                kept=measured.kept,
                learning_rates={str(g["name"]): float(g["lr"]) for g in optimizer.param_groups},
                gradient_norm=norm,
                kept_by_score=measured.kept_by_score if recipe.scores_are_probabilities else (),
                kept_at_inference=at_inference,
                not_finite=not_finite(measured.losses, norm),
            )
            if progress.not_finite:
                names = suspects(processes, batch.paths, measured)
                progress = replace(progress, suspects=names)
                report_left_out(run.step, progress.not_finite, measured, split.total, names)
            run.count(progress)
            run.step += 1
            result = None
            if held_out is not None and is_due(run.step, steps, len(loader)):
                try:
                    result = held_out.evaluate(run.network, processes, precision)
                    progress = replace(progress, held_out=held_out.score(result))
                    run.score = progress.held_out.get(held_out.measure)
                except ReaderError as error:
                    failure = str(error)
                began = time.perf_counter()  # it is no part of the speed of training
            if processes.is_main:
                run.log(progress)
            if run.bad_in_a_row == MAX_BAD_STEPS:
                run.bad_in_a_row = 0  # whoever goes on has as many again
                run.save()
                raise InputError(what_to_try(progress.step, progress.not_finite, folder))
            found_best = result is not None and run.is_best
            if found_best or any(late for _, _, late, *_ in everyone):
                run.save()
                saved = time.perf_counter()
            if processes.is_main and on_step is not None:
                try:
                    on_step(progress)
                except KeyboardInterrupt:
                    stop.signum = signal.SIGINT
            if failure is not None:
                break
        # Without a step there is nothing new; without an image, nothing to go on from.
        if run.step > first and run.images:
            run.save()
        signum = max(processes.gather(stop.signum))
    if failure is not None:
        what = "is saved, the same command resumes" if holds_run(folder) else "has no checkpoint"
        raise ReaderError(f"{failure}; {folder} {what}")
    if signum:
        raise Interrupted(signum)
    if run.saved is not None:
        model.load_state_dict(run.network.state_dict())
    model.eval()
    if held_out is not None and result is None:  # a run that had ended, or with an unreadable batch
        result = held_out.evaluate(model, processes, precision)
    return run.report(result)


def total_steps(recipe: Recipe, loader: Batches) -> int:
    """Optimizer steps of a run."""
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


def until_reader_dies(found: Iterator[Batch]) -> Iterator[tuple[Batch, str | None]]:
    """Batches; in the end an empty one and the problem, if there is one to tell others about."""
    try:
        for batch in found:
            yield batch, None
    except ReaderError as error:
        yield Batch(torch.empty(0, 3, 0, 0), torch.empty(0, dtype=torch.int64)), str(error)


def check_recipe(recipe: Recipe, model: DynamicViT, compiled: bool) -> None:
    """Refuse a recipe that the model can't be trained by.

    Raises:
        InputError: for budgets that it can't have or that would be compiled, and weights between
            the dense ones and its own without the dense ones.
    """
    check_interpolates(recipe, model)
    if recipe.budgets is None:
        return
    Budgets(model, *recipe.budgets)
    if compiled:
        raise InputError(
            f"budgets {list(recipe.budgets)}: every budget would be compiled anew; leave --compile "
            "out, or set budgets=null"
        )


@contextmanager
def _compiled(wanted: bool, objective: TrainingObjective) -> Iterator[None]:
    """The paths that training takes, compiled; of the instances, so that all comes off again."""
    ours = [each for each in (objective.model, objective.dense_teacher) if each is not None]
    paths = [(each, name) for each in ours for name in ("forward_masked", "forward_dense")]
    if objective.external_teacher is not None:
        paths.append((objective.external_teacher.network, "forward"))
    for module, name in paths if wanted else ():
        setattr(module, name, torch.compile(getattr(module, name)))
    try:
        yield
    finally:
        for module, name in paths if wanted else ():
            delattr(module, name)
