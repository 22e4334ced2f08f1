"""Finds where and how much a model should drop, for a target, on images without labels."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from dynamicvit.checkpoints.loading import load
from dynamicvit.core.model import DynamicViT, or_untrained
from dynamicvit.core.networks import core_of, segments
from dynamicvit.costs import DENSE, ImageSize, resolve_image_size
from dynamicvit.data import ImageData
from dynamicvit.errors import InputError
from dynamicvit.evaluation.bench import available_cores, settings_of
from dynamicvit.evaluation.bench.plan import check_plan, check_weights
from dynamicvit.runtimes import RUNTIMES
from dynamicvit.sparsification import sparsify
from dynamicvit.tuning.block_times import Progress
from dynamicvit.tuning.clock import Clock
from dynamicvit.tuning.hunt import Hunt
from dynamicvit.tuning.judge import Judge, Notebook, read_images
from dynamicvit.tuning.judge import settings_of as identity_of
from dynamicvit.tuning.result import Tuned
from dynamicvit.tuning.space import Space
from dynamicvit.tuning.targets import Target
from dynamicvit.utils.words import inputs_called

#: The files in an output folder.
RECORD, SCHEDULE, PICTURE = "tried.json", "schedule.json", "frontier.png"


def tune(
    model: nn.Module | str | os.PathLike[str],
    images: str | os.PathLike[str] | ImageData | Tensor,
    *,
    macs: str | float | None = None,
    latency: str | float | None = None,
    throughput: float | None = None,
    max_drop: float | None = None,
    output: str | os.PathLike[str] | None = None,
    num_images: int = 400,
    evaluations: int = 80,
    seed: int = 0,
    runtime: str = "eager",
    precision: str = "fp32",
    batch_size: int | None = None,
    threads: int | None = None,
    seconds: float = 10.0,
    image_size: ImageSize = None,
    crop_pct: float | None = None,
    tell: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> Tuned:
    """Find a schedule for a target: which blocks drop tokens, and how many.

    The search starts from the method's own schedule at that cost, and moves tokens between stages
    while the answers on one half of the images come nearer to the dense network's (KL divergence).
    The other half decides: the method's own schedule is returned unless the found one is better
    there by two standard errors. No labels are needed, and the model is not changed:
    ``model.schedule = found.schedule``.

    Prediction modules stay where they were trained: of these only the ratios are tuned.

    Args:
        model: a :class:`~dynamicvit.DynamicViT`; a dense network, which look-ahead merging then
            sparsifies; or what :func:`~dynamicvit.load` takes.
        images: a source, as for :class:`~dynamicvit.data.ImageData`, whose labels are ignored; or
            ``(B, channels, height, width)``, normalized.
        macs: target: ``"60%"`` or 0.6 of the dense network's, or ``"0.8G"`` of an image.
        latency: target: ``"20ms"``, or seconds, of a batch.
        throughput: target: images a second.
        max_drop: target: points of answers that may differ from the dense network's, 0.5 for one in
            200; the cheapest schedule in MACs is looked for. On all images, those of the search
            too.
        output: folder for the schedule, the frontier as a picture, and a record of all that was
            measured, from which the same call goes on after it was stopped, and others of the same
            model and images start.
        num_images: that are drawn.
        evaluations: schedules to run in the search, at most.
        seed: of the draw.
        runtime: of the times, a key of :data:`~dynamicvit.runtimes.RUNTIMES`. In eager mode each
            kind of block is timed; in others whole models are.
        precision: of the times. Answers are compared in the model's own precision.
        batch_size: of the times; by default 1, for throughput 32.
        threads: CPU threads; by default all cores available.
        seconds: to measure for, each time that something is timed.
        image_size: side, or height and width, in pixels; by default the model's.
        crop_pct: as for :func:`~dynamicvit.evaluate`.
        tell: called with a line about each thing that was tried.
        progress: called with what is being timed, and the share done.

    Raises:
        InputError: for no target, several, or one that can't be met (the message says what can);
            too few images, or tensors of another size; a model whose scores are untrained, or that
            has no stages; a record of another model or other images; a runtime that is missing.
    """
    target = Target.of(macs, latency, throughput, max_drop)
    core = _sparse(model)
    size = resolve_image_size(core, image_size)
    threads = available_cores() if threads is None else threads
    batch_size = target.default_batch if batch_size is None else batch_size
    check_plan([batch_size], threads, seconds)
    if evaluations < 1:
        raise InputError(f"evaluations {evaluations}: give at least 1")
    device = next(core.parameters()).device
    [setting], _ = settings_of([runtime], [precision], device.type)
    if target.is_time:
        check_weights(core)
        RUNTIMES[runtime].ready(precision)
    space = Space.of(core, size)
    pictures, digest = read_images(
        core, images, num_images, seed, image_size=size, crop_pct=crop_pct
    )
    if target.kind == "max_drop" and target.value * len(pictures) < 100:
        raise InputError(
            f"{len(pictures)} {inputs_called(core.bound.frames)} are too few to see "
            f"{target.value:g} points: one of them is "
            f"{100 / len(pictures):.2g}"
        )
    folder = None if output is None else Path(output)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    record = None if folder is None else folder / RECORD
    notebook = Notebook(record, identity_of(core, space, digest, seed))
    judge = Judge(core, space, pictures, notebook)
    noise = torch.randn(batch_size, *core.bound.input_shape(size), device=device)
    clock = Clock(core, judge, noise, setting, threads, seconds, progress)
    found = Hunt(core, target, judge, clock, size, evaluations, tell or (lambda line: None)).found()
    if folder is not None:
        from dynamicvit.plots import style
        from dynamicvit.plots.frontier import plot_frontier

        found.save(folder / SCHEDULE)
        unit = "latency" if target.is_time else "MACs"
        chosen = found.best.cost / found.dense_cost, found.best.verdict.kl
        style.save(plot_frontier(found.lines, found.points, chosen, unit), folder / PICTURE)
    return found


def trained_or_lookahead(model: DynamicViT) -> DynamicViT:
    """The model, or if nobody has trained its scores one that merges by look-ahead instead."""
    _check_classes(model)
    dense = not model.schedule.stages and segments(model)  # one that was saved
    if not dense and not any(method.is_fresh for method in model.methods):
        return model
    whole = model.like(model.bound, DENSE) if segments(model) else model.backbone
    sparse = core_of(sparsify(whole, method="lookahead"))
    assert isinstance(sparse, DynamicViT)
    return sparse.train(model.training)


def _check_classes(model: DynamicViT) -> None:
    if model.num_classes < 1:
        raise InputError("the model has no classifier: tune takes classifiers and segmenters")


def _sparse(model: nn.Module | str | os.PathLike[str]) -> DynamicViT:
    if isinstance(model, str | os.PathLike):
        return trained_or_lookahead(load(os.fspath(model)))
    core = core_of(model)
    if isinstance(core, DynamicViT):
        _check_classes(core)
    if not isinstance(core, DynamicViT) or (segments(core) and not core.schedule.stages):
        core = core_of(sparsify(core, method="lookahead"))
    assert isinstance(core, DynamicViT)
    if any(method.is_fresh for method in core.methods):
        raise InputError(
            f"what chooses the tokens ({core.method.name}) is untrained, so no schedule is better "
            f"than another: train the model{or_untrained(core.policy)}"
        )
    return core
