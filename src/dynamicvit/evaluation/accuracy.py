"""Accuracy of a model: top-1, top-5, and agreement with its dense self."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dynamicvit.checkpoints.loading import load
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import DenseNetwork, core_of, eval_mode
from dynamicvit.data import (
    UNLABELED,
    Batch,
    ImageData,
    Loader,
    Views,
    check_data,
    class_map_for,
    data_for,
)
from dynamicvit.errors import InputError
from dynamicvit.evaluation.kept import KeptPatches
from dynamicvit.evaluation.views import over_views, views_of
from dynamicvit.utils.distributed import Processes
from dynamicvit.utils.precision import autocast
from dynamicvit.utils.words import percent


@dataclass(frozen=True)
class EvaluationResult:
    """Results of one pass over the images; each readable image is counted once.

    Attributes:
        top1: share of the labeled images whose highest logit is their class, in 0..1; ``None``
            without labels.
        top5: the same for the five highest logits, or for all if there are fewer classes.
        agreement: share of all images on which the dense model has the same highest logit;
            ``None`` without a dense model.
        divergence: KL divergence of the model's probabilities from the dense model's, in nats, mean
            of all images; 0 where they are the same, ``None`` without a dense model.
        dense_top1: top-1 of the dense model; ``None`` without one, or without labels.
        images: number of images counted.
        labeled: number of them with a label.
        skipped: paths of unreadable images, which are not counted.
        seconds: of the whole pass, reading images and the dense model included.
        views: of each video, whose answers were averaged; ``None`` for images.
    """

    top1: float | None
    top5: float | None
    agreement: float | None
    divergence: float | None
    dense_top1: float | None
    images: int
    labeled: int
    skipped: tuple[str, ...]
    seconds: float
    views: Views | None = None

    def rows(self) -> Iterator[tuple[str, str]]:
        """What a table shows: names and values."""
        for name, share in (
            ("top-1", self.top1),
            ("top-5", self.top5),
            ("dense top-1", self.dense_top1),
            ("agreement with dense", self.agreement),
        ):
            if share is not None:
                yield name, percent(share, 2)
        if self.divergence is not None:
            yield "KL divergence from dense", f"{self.divergence:.4f}"
        if self.views is not None:
            yield "views (clips × crops)", str(self.views)

    @property
    def images_per_second(self) -> float:
        """Images counted per second of the whole pass; `dynamicvit bench` times models alone."""
        return self.images / self.seconds


def evaluate(
    model: nn.Module | str | os.PathLike[str],
    data: str | os.PathLike[str] | ImageData | Iterable[Batch],
    *,
    dense: nn.Module | bool | None = None,
    class_map: Mapping[str, int] | str | os.PathLike[str] | None = None,
    image_size: int | tuple[int, int] | None = None,
    crop_pct: float | None = None,
    batch_size: int = 32,
    workers: int = 1,
    device: torch.device | str | None = None,
    amp_dtype: torch.dtype | None = None,
    progress: Callable[[int], None] | None = None,
    processes: Processes | None = None,
    save_kept: str | os.PathLike[str] | None = None,
) -> EvaluationResult:
    """Accuracy of a model, run in ``eval()`` mode; its own mode is restored afterwards.

    Args:
        model: gives logits ``(B, classes)`` for images ``(B, channels, H, W)`` or clips
            ``(B, T, channels, H, W)``; or what :func:`~dynamicvit.load` takes.
        data: a source of images, as for :class:`~dynamicvit.data.ImageData`, or of clips, one view
            of each, for a model of clips; an ``ImageData`` whose labels are the model's classes; a
            ``ClipData`` of such labels, whose views are averaged; or batches, which ignore the
            arguments from ``class_map`` to ``workers``.
        dense: a model to compare the answers with, such as the frozen original that this one was
            trained from; True for the model's own dense self.
        class_map: index of each class name, as for :func:`~dynamicvit.data.class_map_for`; by
            default the one that fits the model.
        image_size: side, or height and width, in pixels; the model's own by default.
        crop_pct: share of the short side that the center crop takes; the model's own by default.
        batch_size: images in a batch.
        workers: processes that read images; 0 reads in this one.
        device: to which the models are moved; by default the model's.
        amp_dtype: dtype of autocast (``torch.bfloat16``); by default the model's own dtype.
        progress: called after each batch with its number of images, skipped ones included.
        processes: that share the images: each reads its part of each batch, and all get the
            result. Batches then need ``set_share``, as a :class:`~dynamicvit.data.Loader` has.
        save_kept: a ``.npz`` or ``.parquet`` for the kept patches of each readable image; see
            :class:`~dynamicvit.evaluation.kept.KeptPatches`.

    Raises:
        InputError: without a readable image; for a label outside the model's classes; for logits
            that are not finite; for a model without a classifier, or without a dense self if
            ``dense`` is True; for unusable data; if a process that reads images died.
    """
    if isinstance(model, str | os.PathLike):
        model = load(model)
    if isinstance(getattr(model, "dynamicvit", None), DynamicViT):
        model = core_of(model)  # without the library around it, whose answers are no tensors
    if getattr(core_of(model), "task", "classification") != "classification":
        raise InputError("the model gives maps, not one class an image: evaluate_segmentation")
    if getattr(model, "num_classes", None) == 0:
        raise InputError("the model has no classifier to evaluate")
    if isinstance(dense, bool):
        dense = dense_self(model) if dense else None
    if device is None:
        own = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        device = own if processes is None else processes.device
    processes = Processes(device) if processes is None else processes
    saved = None if save_kept is None else KeptPatches(os.fspath(save_kept), model)
    if isinstance(data, str | os.PathLike):
        data = data_for(model, data)
        if data.labeled:
            data = data.with_class_map(class_map_for(data, model, class_map).index)
    if isinstance(data, ImageData):
        check_data(model, data)
        data = data.for_evaluation(model, image_size, crop_pct)
        data = Loader(data, batch_size, num_workers=workers)
    if processes.count > 1:
        data.set_share(processes.rank, processes.count)
    counts, views = _Counts(), views_of(data)
    if saved is not None and views is not None and views.total > 1:
        raise InputError(f"kept patches are saved of one view of each video, got {views}")
    models = [model] if dense is None else [model, dense]
    for each in models:
        each.to(device)
    amp = autocast(torch.device(device).type, amp_dtype)
    started = time.perf_counter()
    failure: InputError | None = None
    try:
        with eval_mode(*models), torch.inference_mode(), amp:
            for batch in data:
                counts.skipped += batch.skipped
                if len(batch):
                    held = batch.to(device)
                    dense_logits = None if dense is None else over_views(dense, held.images)
                    if saved is None:
                        logits = over_views(model, held.images)
                    else:
                        output = model.forward_pruned(held.images)
                        logits = output.logits
                        saved.add(batch, output)
                    counts.add(logits, held.labels, dense_logits)
                elif saved is not None:
                    saved.skip()
                if progress is not None:
                    progress(len(batch) + len(batch.skipped))
    except InputError as error:
        failure = error
    for each in processes.gather(failure):  # or the others would wait for this one
        if each is not None:
            raise each
    counts.add_up(processes)
    result = counts.result(time.perf_counter() - started, views)
    if saved is not None:
        saved.save(processes)
    return result


def dense_self(model: nn.Module) -> DenseNetwork:
    """The dense network inside a model.

    Raises:
        InputError: if there is none, as in an exported file.
    """
    if not isinstance(model, DynamicViT):
        raise InputError(
            f"{type(model).__name__} holds no dense network to compare with; give one (dense=, "
            "--dense-checkpoint)"
        )
    return DenseNetwork(model)


class _Counts:
    """Sums over the batches."""

    def __init__(self) -> None:
        self.images = self.labeled = self.top1 = self.top5 = self.dense_top1 = self.agreed = 0
        self.divergence, self.compared = 0.0, False
        self.skipped: tuple[str, ...] = ()

    def add(self, logits: Tensor, labels: Tensor, dense_logits: Tensor | None) -> None:
        """Count a batch: logits ``(B, classes)``, labels ``(B,)``."""
        check_finite(logits, "the model")
        _check_labels(labels, logits.shape[1])
        best = _best_first(logits)[:, :5]
        right = best == labels[:, None]  # UNLABELED is no class
        self.images += len(labels)
        self.labeled += int((labels != UNLABELED).sum())
        self.top1 += int(right[:, 0].sum())
        self.top5 += int(right.sum())
        if dense_logits is None:
            return
        if dense_logits.shape != logits.shape:
            raise InputError(
                f"the dense model has {dense_logits.shape[1]} classes, the model {logits.shape[1]}"
            )
        check_finite(dense_logits, "the dense model")
        self.compared = True
        dense_best = _best_first(dense_logits)[:, 0]
        self.agreed += int((dense_best == best[:, 0]).sum())
        self.dense_top1 += int((dense_best == labels).sum())
        self.divergence += float(kl_divergence(logits, dense_logits).sum())

    def add_up(self, processes: Processes) -> None:
        """Add the counts of the other processes."""
        names = ("images", "labeled", "top1", "top5", "dense_top1", "agreed")
        own = torch.tensor([getattr(self, name) for name in names], device=processes.device)
        for name, count in zip(names, processes.sum(own).tolist(), strict=True):
            setattr(self, name, count)
        self.divergence = sum(processes.gather(self.divergence))
        self.compared = any(processes.gather(self.compared))
        self.skipped = tuple(path for part in processes.gather(self.skipped) for path in part)

    def result(self, seconds: float, views: Views | None) -> EvaluationResult:
        """The shares."""
        if not self.images:
            raise InputError("no readable image to evaluate on")

        def share(count: int, of: int) -> float | None:
            return count / of if of else None

        return EvaluationResult(
            top1=share(self.top1, self.labeled),
            top5=share(self.top5, self.labeled),
            agreement=share(self.agreed, self.images) if self.compared else None,
            # Never negative, but by rounding.
            divergence=max(0.0, self.divergence / self.images) if self.compared else None,
            dense_top1=share(self.dense_top1, self.labeled) if self.compared else None,
            images=self.images,
            labeled=self.labeled,
            skipped=self.skipped,
            seconds=seconds,
            views=views,
        )


def kl_divergence(logits: Tensor, dense_logits: Tensor) -> Tensor:
    """``(B,)``: of the probabilities of logits ``(B, classes)`` from the dense ones, in nats."""
    given, dense = (each.double().log_softmax(dim=1) for each in (logits, dense_logits))
    return (dense.exp() * (dense - given)).sum(dim=1)


def _best_first(logits: Tensor) -> Tensor:
    """``(B, classes)``: the classes by falling logit, of equal ones the lower index first.

    In bf16 equal logits are common, and ``topk`` orders them differently for another k.
    """
    return logits.sort(dim=1, descending=True, stable=True).indices


def check_finite(logits: Tensor, whose: str) -> None:
    """Refuse logits ``(B, classes)`` that are not finite; NaN would be ranked like a number.

    Raises:
        InputError: saying whose they are.
    """
    broken = int((~logits.isfinite()).any(dim=1).sum())
    if broken:
        raise InputError(
            f"{whose} gives logits that are not finite for {broken} of {len(logits)} images of a "
            f"batch: weights are NaN, or overflow in this precision"
        )


def _check_labels(labels: Tensor, num_classes: int) -> None:
    outside = labels[(labels != UNLABELED) & ((labels < 0) | (labels >= num_classes))]
    if len(outside):
        raise InputError(
            f"label {int(outside[0])} is outside the model's {num_classes} classes; "
            "give a class map that fits the model"
        )
