"""How right a model is: top-1, top-5, and how often it agrees with its dense self."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import DenseNetwork, eval_mode
from dynamicvit.data import (
    UNLABELED,
    Batch,
    ImageData,
    Loader,
    class_map_for,
    eval_transform,
)
from dynamicvit.errors import InputError
from dynamicvit.utils.distributed import Processes


@dataclass(frozen=True)
class EvaluationResult:
    """What one pass over the images measured; every readable image is counted once.

    Attributes:
        top1: share of the labeled images whose highest logit is their class, in 0..1; None when
            no image has a label.
        top5: the same for the five highest logits (for all, when there are fewer classes).
        agreement: share of all images on which the dense model's highest logit is the same one;
            None without a dense model.
        dense_top1: the dense model's own top-1 on the same images; None without one, or labels.
        images: how many were counted.
        labeled: how many of them have a label.
        skipped: paths of the images that could not be read, counted nowhere.
        seconds: for the whole pass, with reading images and, if there is one, the dense model.
    """

    top1: float | None
    top5: float | None
    agreement: float | None
    dense_top1: float | None
    images: int
    labeled: int
    skipped: tuple[str, ...]
    seconds: float

    @property
    def images_per_second(self) -> float:
        """Images counted in a second of the whole pass; `dynamicvit bench` times models alone."""
        return self.images / self.seconds


def evaluate(
    model: nn.Module,
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
) -> EvaluationResult:
    """Accuracy of a model, run in ``eval()`` mode; its own mode is put back afterwards.

    Args:
        model: gives logits ``(B, classes)`` for images ``(B, channels, H, W)``.
        data: where the images are, as for :class:`~dynamicvit.data.ImageData`; or an ``ImageData``
            whose labels are the model's classes; or batches that are made already, for which the
            arguments from ``class_map`` to ``workers`` mean nothing.
        dense: a model to compare the answers with, such as the frozen original that this one was
            trained from; True for the model's own dense self.
        class_map: index of each class name, as for :func:`~dynamicvit.data.class_map_for`; by
            default the one that suits the model.
        image_size: side, or height and width, in pixels; the model's own by default.
        crop_pct: share of the short side that the center crop takes; the model's own by default.
        batch_size: images in a batch.
        workers: processes that read images; 0 reads in this one.
        device: where to run, and where the models stay; by default where the model is.
        amp_dtype: run under autocast in this dtype (``torch.bfloat16``); by default in the
            model's own.
        progress: called after each batch with the number of images done, skipped ones included.
        processes: that share the images: each reads its part of each batch, and all get the
            result. Batches then need ``set_share``, as a :class:`~dynamicvit.data.Loader` has.

    Raises:
        InputError: if there is no readable image, a label is outside the model's classes, or a
            model's logits are not finite; for a model without a classifier, or without a dense
            self to compare with; for data that can't be used.
    """
    if getattr(model, "num_classes", None) == 0:
        raise InputError("the model has no classifier, so there is no answer to evaluate")
    if isinstance(dense, bool):
        dense = dense_self(model) if dense else None
    if device is None:
        device = _device_of(model) if processes is None else processes.device
    processes = Processes(device) if processes is None else processes
    if isinstance(data, str | os.PathLike):
        data = ImageData(data)
        if data.labeled:
            data = data.with_class_map(class_map_for(data, model.num_classes, class_map).index)
    if isinstance(data, ImageData):
        data = data.with_transform(eval_transform(model, image_size, crop_pct))
        data = Loader(data, batch_size, num_workers=workers)
    if processes.count > 1:
        data.set_share(processes.rank, processes.count)
    counts = _Counts()
    started = time.perf_counter()
    with _evaluating(model, dense, device=device, amp_dtype=amp_dtype):
        for batch in data:
            counts.skipped += batch.skipped
            if len(batch):
                held = batch.to(device)
                dense_logits = None if dense is None else dense(held.images)
                counts.add(model(held.images), held.labels, dense_logits)
            if progress is not None:
                progress(len(batch) + len(batch.skipped))
    counts.add_up(processes)
    return counts.result(time.perf_counter() - started)


def dense_self(model: nn.Module) -> DenseNetwork:
    """The dense network inside a model.

    Raises:
        InputError: if there is none inside, as in an exported file.
    """
    if not isinstance(model, DynamicViT):
        raise InputError(
            f"{type(model).__name__} holds no dense network to compare with; give the network that "
            "it was made from (dense=, --dense-checkpoint)"
        )
    return DenseNetwork(model)


def _device_of(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


class _Counts:
    """Sums over the batches; whole numbers, so their order can't matter."""

    def __init__(self) -> None:
        self.images = self.labeled = self.top1 = self.top5 = self.dense_top1 = self.agreed = 0
        self.compared = False
        self.skipped: tuple[str, ...] = ()

    def add(self, logits: Tensor, labels: Tensor, dense_logits: Tensor | None) -> None:
        """Count a batch: logits ``(B, classes)``, labels ``(B,)``."""
        _check_finite(logits, "the model")
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
        _check_finite(dense_logits, "the dense model")
        self.compared = True
        dense_best = _best_first(dense_logits)[:, 0]
        self.agreed += int((dense_best == best[:, 0]).sum())
        self.dense_top1 += int((dense_best == labels).sum())

    def add_up(self, processes: Processes) -> None:
        """Take in what the other processes have counted."""
        names = ("images", "labeled", "top1", "top5", "dense_top1", "agreed")
        own = torch.tensor([getattr(self, name) for name in names], device=processes.device)
        for name, count in zip(names, processes.sum(own).tolist(), strict=True):
            setattr(self, name, count)
        self.compared = any(processes.gather(self.compared))
        self.skipped = tuple(path for part in processes.gather(self.skipped) for path in part)

    def result(self, seconds: float) -> EvaluationResult:
        """The shares."""
        if not self.images:
            raise InputError("no readable image to evaluate on")

        def share(count: int, of: int) -> float | None:
            return count / of if of else None

        return EvaluationResult(
            top1=share(self.top1, self.labeled),
            top5=share(self.top5, self.labeled),
            agreement=share(self.agreed, self.images) if self.compared else None,
            dense_top1=share(self.dense_top1, self.labeled) if self.compared else None,
            images=self.images,
            labeled=self.labeled,
            skipped=self.skipped,
            seconds=seconds,
        )


def _best_first(logits: Tensor) -> Tensor:
    """``(B, classes)``: the classes by falling logit, the first of equal ones first.

    In bf16 equal logits are common, and ``topk`` orders them differently for another k.
    """
    return logits.sort(dim=1, descending=True, stable=True).indices


def _check_finite(logits: Tensor, whose: str) -> None:
    # NaN would be ranked like a number, and the answer counted.
    broken = int((~logits.isfinite()).any(dim=1).sum())
    if broken:
        raise InputError(
            f"{whose} gives logits that are not finite for {broken} of {len(logits)} images of a "
            f"batch; its weights hold NaN, or overflow in this precision"
        )


def _check_labels(labels: Tensor, num_classes: int) -> None:
    outside = labels[(labels != UNLABELED) & ((labels < 0) | (labels >= num_classes))]
    if len(outside):
        raise InputError(
            f"label {int(outside[0])} is outside the model's {num_classes} classes; "
            "give a class map that fits the model"
        )


@contextmanager
def _evaluating(
    model: nn.Module,
    dense: nn.Module | None,
    *,
    device: torch.device | str,
    amp_dtype: torch.dtype | None,
) -> Iterator[None]:
    """Without gradients, in ``eval()``, under autocast; each module's own mode comes back."""
    models = [model] if dense is None else [model, dense]
    for each in models:
        each.to(device)
    autocast = torch.autocast(
        torch.device(device).type, dtype=amp_dtype, enabled=amp_dtype is not None
    )
    with eval_mode(*models), torch.inference_mode(), autocast:
        yield
