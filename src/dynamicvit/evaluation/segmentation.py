"""How right a segmentation model's maps are: mIoU, IoU of each class, agreement with the dense."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamicvit.checkpoints.loading import load
from dynamicvit.core.networks import DenseNetwork, core_of, eval_mode, segments
from dynamicvit.core.segmenter import Segmenter
from dynamicvit.costs import resolve_image_size
from dynamicvit.data import UNLABELED, Loader, MaskData, class_names, joint_eval_transform
from dynamicvit.errors import InputError
from dynamicvit.evaluation.accuracy import check_finite
from dynamicvit.evaluation.windows import sliding_windows
from dynamicvit.utils.distributed import Processes
from dynamicvit.utils.optional import need
from dynamicvit.utils.precision import autocast
from dynamicvit.utils.words import percent


@dataclass(frozen=True)
class SegmentationResult:
    """Results of one pass over the images, at their own resolution.

    Attributes:
        miou: mean of the classes' IoU, in 0..1; of those that a mask or the model names. ``None``
            without masks.
        iou: IoU of each class by name; ``None`` for a class that nobody names. Empty without masks.
        agreement: share of the pixels that the dense model gives the same class; ``None`` without
            a dense model.
        dense_miou: mIoU of the dense model; ``None`` without one, or without masks.
        images: number of images counted.
        labeled: number of them with a mask.
        skipped: paths of unreadable images, which are not counted.
        seconds: of the whole pass, reading images and the dense model included.
    """

    miou: float | None
    iou: dict[str, float | None]
    agreement: float | None
    dense_miou: float | None
    images: int
    labeled: int
    skipped: tuple[str, ...]
    seconds: float

    def rows(self) -> Iterator[tuple[str, str]]:
        """What a table shows: names and values."""
        for name, share in (
            ("mIoU", self.miou),
            ("dense mIoU", self.dense_miou),
            ("agreement with dense", self.agreement),
        ):
            if share is not None:
                yield name, percent(share, 2)
        for name, share in self.iou.items():
            yield f"  {name}", "-" if share is None else percent(share, 2)

    @property
    def images_per_second(self) -> float:
        """Images counted per second of the whole pass."""
        return self.images / self.seconds


def evaluate_segmentation(
    model: Segmenter | DenseNetwork | nn.Module | str | os.PathLike[str],
    data: str | os.PathLike[str] | MaskData,
    *,
    dense: nn.Module | None = None,
    image_size: int | tuple[int, int] | None = None,
    stride: int | tuple[int, int] | None = None,
    workers: int = 1,
    device: torch.device | str | None = None,
    amp_dtype: torch.dtype | None = None,
    progress: Callable[[int], None] | None = None,
    processes: Processes | None = None,
) -> SegmentationResult:
    """mIoU of a model, run in ``eval()`` mode by sliding windows; its own mode is restored.

    Each image is resized until it just fills the model's window, and the logits to the image's own
    size: single-scale evaluation as in Segmenter's Section 4.1.

    Args:
        model: as :func:`~dynamicvit.segmenter` makes it, the dense network inside one, what
            ``load_exported`` gives of its file, or what :func:`~dynamicvit.load` takes.
        data: a source of images and masks, or :class:`~dynamicvit.data.MaskData`.
        dense: a model to compare the maps with.
        image_size: of the window; the model's own by default.
        stride: from window to window, in pixels; by default the window's side.
        workers: processes that read images; 0 reads in this one.
        device: to which the models are moved; by default the model's.
        amp_dtype: dtype of autocast; by default the model's own dtype.
        progress: called after each image with 1.
        processes: that share the images; all get the result.

    Raises:
        InputError: without torchmetrics or a readable image; for classes that are none of the
            model's, logits that are not finite, or masks none of whose pixels are labeled.
    """
    model = _segmenting(load(model) if isinstance(model, str | os.PathLike) else model)
    weight = next(model.parameters(), torch.empty(0))  # an exported file has none
    own = weight.device if processes is None else processes.device
    device = own if device is None else device
    processes = Processes(device) if processes is None else processes
    data = prepared(data, model) if isinstance(data, MaskData) else masks_for(data, model)
    if data.labeled:
        need("torchmetrics", "segmentation")
    window = resolve_image_size(model, image_size)
    data = data.with_joint_transform(joint_eval_transform(model, window))
    mine = data.subset(np.arange(processes.rank, len(data), processes.count))
    models = [model] if dense is None else [model, dense]
    counts = [_Counts(model.num_classes, device) for _ in models if data.labeled]
    agreed = pixels = images = labeled = 0
    skipped: tuple[str, ...] = ()
    amp = autocast(torch.device(device).type, amp_dtype)
    started = time.perf_counter()
    failure: InputError | None = None
    try:
        with eval_mode(*(each.to(device) for each in models)), torch.inference_mode(), amp:
            for batch in Loader(mine, 1, num_workers=workers) if len(mine) else ():
                skipped += batch.skipped
                if len(batch):
                    held = batch.to(device)
                    maps = [
                        _map(each, held.images[0], held.labels, window, stride) for each in models
                    ]
                    for count, found in zip(counts, maps, strict=False):
                        count.add(found, held.labels)
                    agreed += int((maps[0] == maps[-1]).sum())
                    pixels += maps[0].numel()
                    images += 1
                    labeled += bool((held.labels != UNLABELED).any())
                if progress is not None:
                    progress(1)
    except InputError as error:
        failure = error
    for each in processes.gather(failure):  # or the others would wait for this one
        if each is not None:
            raise each
    counted = processes.sum(torch.tensor([agreed, pixels, images, labeled], device=device)).tolist()
    agreed, pixels, images, labeled = counted
    skipped = tuple(path for part in processes.gather(skipped) for path in part)
    if not images:
        raise InputError("no readable image to evaluate on")
    found = [count.result(processes) for count in counts]
    return SegmentationResult(
        miou=found[0][0] if labeled else None,
        iou=dict(zip(class_names(model), found[0][1], strict=True)) if labeled else {},
        agreement=agreed / pixels if dense is not None else None,
        dense_miou=found[1][0] if dense is not None and labeled else None,
        images=images,
        labeled=labeled,
        skipped=skipped,
        seconds=time.perf_counter() - started,
    )


def _segmenting(model: Any) -> Any:
    """The model, if it gives maps.

    Raises:
        InputError: if it does not.
    """
    if not segments(model):
        raise InputError("the model classifies images: give a segmenter, or take evaluate")
    return model


def masks_for(root: str | os.PathLike[str], model: nn.Module, strict: bool = False) -> MaskData:
    """Images and masks whose classes are the model's.

    Args:
        root: as for :class:`~dynamicvit.data.MaskData`.
        model: a :class:`~dynamicvit.Segmenter`; it knows how masks name its classes.
        strict: an unreadable image ends the run.

    Raises:
        InputError: for a model without a map of classes, or other classes.
    """
    core: Any = core_of(model)
    if not segments(model):
        raise InputError(f"{root} has masks, and the model classifies images: give a segmenter")
    labels = core.labels
    data = MaskData(
        root, ignore_index=labels.ignore_index, reduce_labels=labels.reduce_labels, strict=strict
    )
    return prepared(data, model)


def prepared(data: MaskData, model: Any) -> MaskData:
    """The same images and masks, after a look at whether the classes are the model's.

    Raises:
        InputError: for other names, or another number of them.
    """
    names, own = list(data.classes), (model.pretrained_cfg or {}).get("label_names")
    if names and len(names) != model.num_classes:
        raise InputError(
            f"{data.root} has {len(names)} {data.class_word}, and the model {model.num_classes} "
            "classes"
        )
    if names and own and names != list(own):
        place = next(i for i, (a, b) in enumerate(zip(names, own, strict=True)) if a != b)
        raise InputError(
            f"{data.root}: class {place} is {names[place]!r}, and the model's is {own[place]!r}"
        )
    return data.for_classes(model.num_classes)


def _map(
    model: nn.Module, image: Tensor, mask: Tensor, window: tuple[int, int], stride: Any
) -> Tensor:
    """``(1, H, W)`` classes at the mask's size."""
    logits = sliding_windows(model, image, window, stride)[None]
    check_finite(logits.flatten(1), "the model")
    return F.interpolate(logits, mask.shape[1:], mode="bilinear").argmax(dim=1)


class _Counts:
    """torchmetrics' confusion of classes, added up over processes."""

    def __init__(self, num_classes: int, device: torch.device | str) -> None:
        kinds = need("torchmetrics.classification", "segmentation")
        self.metric = kinds.MulticlassJaccardIndex(
            num_classes,
            average="none",
            ignore_index=UNLABELED,
            zero_division=math.nan,
            validate_args=False,
            sync_on_compute=False,  # by processes.sum, as everything else
        ).to(device)

    def add(self, found: Tensor, mask: Tensor) -> None:
        """Count the pixels of ``(1, H, W)``."""
        self.metric.update(found, mask)

    def result(self, processes: Processes) -> tuple[float, list[float | None]]:
        """The mean of the classes that there are, and each class."""
        self.metric.confmat = processes.sum(self.metric.confmat)
        each = self.metric.compute()
        return float(each.nanmean()), [None if math.isnan(one) else one for one in each.tolist()]
