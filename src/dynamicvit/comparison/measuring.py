"""What a row is measured by: the classes of images, or of pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from dynamicvit.comparison.remembered import Remembered
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import segments
from dynamicvit.data import (
    ClipData,
    ImageData,
    Loader,
    MaskData,
    Views,
    has_masks,
    open_data,
    taken_by,
)
from dynamicvit.errors import InputError
from dynamicvit.evaluation.accuracy import evaluate
from dynamicvit.evaluation.segmentation import evaluate_segmentation, masks_for


class Measured(NamedTuple):
    """How right a model is; the values of a :class:`~dynamicvit.comparison.Row`."""

    top1: float | None
    miou: float | None
    agreement: float
    divergence: float | None
    evaluated: int
    views: str = ""


def clips_of(data: ImageData) -> str:
    """What tells clips that are evaluated from others of the same videos; empty for images."""
    return f" {data.sampling}, {data.views} views" if isinstance(data, ClipData) else ""


def passes(data: ImageData) -> int:
    """Forward passes for one image, or for all views of one video."""
    return data.views.total if isinstance(data, ClipData) else 1


def measure(
    model: DynamicViT,
    data: Any,
    dense: Remembered,
    *,
    batch_size: int,
    workers: int,
    crop_pct: float | None,
    **how: Any,
) -> Measured:
    """Evaluate a model beside the dense one.

    Args:
        model: of the row.
        data: images, labeled or not.
        dense: the dense network's answers.
        batch_size: of images that are classified; of videos a quarter.
        workers: processes that read images.
        crop_pct: of the center crop of images that are classified.
        **how: further arguments of both evaluations.
    """
    dense = dense.from_the_start()
    if segments(model):
        maps = evaluate_segmentation(model, data, dense=dense, workers=workers, **how)
        assert maps.agreement is not None
        return Measured(None, maps.miou, maps.agreement, None, maps.images)
    images = data.for_evaluation(model, None, crop_pct)
    if isinstance(data, ClipData):
        batch_size = max(1, batch_size // 4)
    batches = Loader(images, batch_size, num_workers=workers)
    result = evaluate(model, batches, dense=dense, **how)
    assert result.agreement is not None
    return Measured(
        result.top1,
        None,
        result.agreement,
        result.divergence,
        result.images,
        str(result.views or ""),
    )


def images_for(
    model: nn.Module,
    root: str | Path,
    *,
    labeled: bool | None = None,
    strict: bool = False,
    views: Views | None = None,
    stride: int | None = None,
) -> ImageData:
    """The images or clips of a source, with the labels that the model's task has.

    Raises:
        InputError: for masks and a classifier, clips and a model of images, or the reverse.
    """
    masks = has_masks(root)
    if not segments(model):
        if masks:
            raise InputError(f"{root} has masks, and the model classifies images")
        data = open_data(root, views=views or Views(), labeled=labeled, strict=strict)
        return taken_by(model, data, stride)
    if masks and labeled is None:
        return masks_for(root, model, strict)
    return MaskData(root, labeled=False, strict=strict)
