"""What a run does for segmentation: masks, joint augmentation, a fresh head, mIoU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from dynamicvit.core.model import DynamicViT
from dynamicvit.core.segmenter import Labels, Segmenter, segmenter
from dynamicvit.data import ClassMap, MaskData, has_masks, joint_train_transform, read_class_names
from dynamicvit.data.class_names import check_class_names
from dynamicvit.errors import InputError
from dynamicvit.evaluation.segmentation import SegmentationResult, evaluate_segmentation, prepared
from dynamicvit.training.classes import Classes, check_num_classes
from dynamicvit.training.held_out import HeldOut, Measure
from dynamicvit.training.recipe import Recipe
from dynamicvit.training.tasks import Task
from dynamicvit.utils.distributed import Processes
from dynamicvit.utils.optional import need


@dataclass(frozen=True)
class HeldOutMaps(HeldOut):
    """Images and masks that are not trained on; ``batches`` is a ``MaskData``.

    Attributes:
        stride: from window to window, in pixels, or the window's side.
        workers: processes that read images.
    """

    batches: Any
    stride: int | None = None
    workers: int = 1

    @property
    def measure(self) -> Measure:
        """mIoU, or the share of pixels with the dense network's class."""
        return "miou" if self.dense is None else "agreement"

    def evaluate(
        self, model: nn.Module, processes: Processes, precision: torch.dtype | None
    ) -> SegmentationResult:
        """How right the maps are."""
        return evaluate_segmentation(
            cast(Segmenter, model),
            self.batches,
            dense=self.dense,
            stride=self.stride,
            workers=self.workers,
            amp_dtype=precision,
            processes=processes,
        )


class Segmentation(Task):
    """One class a pixel."""

    def sources(
        self, root: str | Path, recipe: Recipe, unlabeled: Sequence[str | Path], strict: bool
    ) -> list[MaskData]:
        """Images and masks, if there are any."""
        how = recipe.segmentation.model_dump(include={"ignore_index", "reduce_labels"})
        needed = _uses_masks(recipe) or has_masks(root)
        images = MaskData(root, **how, labeled=needed, strict=strict)
        more = [MaskData(path, labeled=False, strict=strict) for path in unlabeled]
        return [images, *more]

    def classes(
        self,
        images: MaskData | None,
        model: DynamicViT,
        recipe: Recipe,
        class_map: str | None,
        num_classes: int | None,
        class_names: str | Path | None,
    ) -> Classes:
        """The model's own, if it segments by as many and by these names; else the masks'."""
        need("torchmetrics", "segmentation")
        if class_map is not None:
            raise InputError(f"class map {class_map}: masks name classes by index; leave it out")
        if recipe.freeze_backbone:
            raise InputError("freeze_backbone: segmentation models learn as a whole; leave it out")
        check_num_classes(num_classes)
        labels = images is not None and images.labeled
        if images is not None and not labels and not _segments(model):
            raise InputError(f"{images.root} has no masks, which a fresh head needs")
        names = () if images is None else images.classes
        if class_names is not None:
            names = tuple(read_class_names(class_names))
        count = num_classes or len(names) or (model.num_classes if _segments(model) else 0)
        if not count:
            raise InputError(
                f"{'the images' if images is None else images.root}: nobody says how many classes "
                "there are; write their names into classes.txt, or give --num-classes"
            )
        if names:
            check_class_names(names, count)
        is_fresh = not _segments(model) or not _has(model, names, count)
        if is_fresh and images is not None and not labels:
            raise InputError(f"{images.root} has no masks, which {count} fresh classes need")
        origin = ClassMap({name: i for i, name in enumerate(names)}, f"{count} classes of masks")
        read = labels and (is_fresh or self.dense or _uses_masks(recipe))
        return Classes(count, origin if read else None, tuple(names) or None, is_fresh)

    def give(
        self, classes: Classes, model: DynamicViT, recipe: Recipe
    ) -> tuple[DynamicViT, tuple[str, ...]]:
        """The model with a head; the names of a fresh one's parameters."""
        values = recipe.segmentation
        if not classes.is_fresh:
            if classes.names is not None:
                model.set_class_names(classes.names)
            return model, ()
        made = segmenter(model, classes.count, values.head)
        made.labels = Labels(classes.names, values.ignore_index, values.reduce_labels)
        return made, tuple(f"decode_head.{name}" for name, _ in made.decode_head.named_parameters())

    def labeled(self, images: MaskData, classes: Classes) -> MaskData:
        """With masks that name no other class."""
        return images.for_classes(classes.count) if classes.class_map else images.without_labels()

    def for_training(self, images: MaskData, model: DynamicViT, recipe: Recipe) -> MaskData:
        """Under torchvision's transforms of both."""
        values = recipe.segmentation.model_dump(include={"scale", "hflip", "photometric"})
        return images.with_joint_transform(joint_train_transform(model, **values))

    def held_out(
        self, images: MaskData, model: DynamicViT, recipe: Recipe, workers: int
    ) -> HeldOutMaps:
        """Images whose mIoU counts."""
        return HeldOutMaps(
            prepared(images, model),
            num_images=len(images),
            stride=recipe.segmentation.stride,
            workers=workers,
        )


def _uses_masks(recipe: Recipe) -> bool:
    return recipe.losses.classification > 0 or recipe.hold_out > 0


def _segments(model: DynamicViT) -> bool:
    return isinstance(model, Segmenter)


def _has(model: DynamicViT, names: Sequence[str], count: int) -> bool:
    """Whether a segmentation model has these classes, as far as it names them."""
    assert isinstance(model, Segmenter)
    own = model.labels.class_names
    return model.num_classes == count and (own is None or not names or own == tuple(names))
