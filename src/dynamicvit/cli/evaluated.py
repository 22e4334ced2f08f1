"""What `dynamicvit eval` evaluates on, by what the images are labeled with."""

from __future__ import annotations

from typing import Any

from torch import nn

from dynamicvit.core.networks import segments
from dynamicvit.costs import count_macs
from dynamicvit.data import ImageData, MaskData, class_map_for, has_masks
from dynamicvit.errors import InputError
from dynamicvit.evaluation import (
    EvaluationResult,
    SegmentationResult,
    evaluate,
    evaluate_segmentation,
)
from dynamicvit.evaluation.segmentation import masks_for
from dynamicvit.runtimes import ExportedModel


class Classified:
    """Images with or without a class each.

    Args:
        data: as the user named it.
        unlabeled: leave classes aside.
        strict: an unreadable image ends the run.
    """

    #: Options of the command that are for these images alone, by their Python names, and those that
    #: are for the others.
    takes: tuple[str, ...] = ("crop_pct", "batch_size", "save_kept")
    #: Images at a time where nobody says.
    batch_size = 32
    not_for: tuple[str, ...] = ("stride",)

    def __init__(self, data: str, unlabeled: bool, strict: bool) -> None:
        self.data, self.strict = data, strict
        self.images: Any = ImageData(data, labeled=False if unlabeled else None, strict=strict)

    def fit(self, model: Any, class_map: str | None) -> str | None:
        """Label the images by the model's classes; the class map in a line."""
        if not self.images.labeled:
            return None
        chosen = class_map_for(self.images, model, class_map)
        self.images = self.images.with_class_map(chosen.index)
        return chosen.origin

    def evaluate(self, model: nn.Module, **how: Any) -> EvaluationResult | SegmentationResult:
        """Top-1, top-5, agreement."""
        return evaluate(model, self.images, **how)

    def cost(self, model: nn.Module, size: tuple[int, int]) -> dict[str, int]:
        """Of an image, where it is told, for the JSON."""
        del model, size
        return {}

    def rows(self, model: nn.Module, size: tuple[int, int]) -> list[tuple[str, str]]:
        """The same for the table."""
        del model, size
        return []


class Segmented(Classified):
    """Images with a mask each, or for a segmentation model without."""

    takes = ("stride",)
    batch_size = 1
    not_for = ("class_map", "crop_pct", "batch_size", "save_kept", "dense_checkpoint")

    def __init__(self, data: str, unlabeled: bool, strict: bool) -> None:
        self.data, self.strict = data, strict
        self.images = MaskData(data, labeled=not unlabeled and has_masks(data), strict=strict)

    def fit(self, model: Any, class_map: str | None) -> str | None:
        """Read masks as the model does."""
        del class_map
        if self.images.labeled:
            self.images = masks_for(self.data, model, self.strict)
        return None

    def evaluate(self, model: Any, **how: Any) -> EvaluationResult | SegmentationResult:
        """mIoU, IoU of each class, agreement."""
        return evaluate_segmentation(model, self.images, **how)

    def cost(self, model: nn.Module, size: tuple[int, int]) -> dict[str, int]:
        """MACs of a window; a file does not tell."""
        return {} if isinstance(model, ExportedModel) else {"macs": count_macs(model, size)}

    def rows(self, model: nn.Module, size: tuple[int, int]) -> list[tuple[str, str]]:
        """Likewise."""
        name = f"GMACs a window, {size[0]}x{size[1]}"
        return [(name, f"{macs / 1e9:.2f}") for macs in self.cost(model, size).values()]


def evaluated_for(
    data: str, unlabeled: bool, strict: bool, options: dict[str, Any]
) -> Classified | Segmented:
    """What to evaluate on.

    Args:
        data: as the user named it.
        unlabeled: leave classes or masks aside.
        strict: an unreadable image ends the run.
        options: of the command, by their Python names, as far as they were given.

    Raises:
        InputError: for images that can't be had, or an option that is not for them.
    """
    kind = Segmented if has_masks(data) else Classified
    _refuse(kind, options, data)
    return kind(data, unlabeled, strict)


def for_model(
    found: Classified, model: nn.Module, name: str, options: dict[str, Any]
) -> Classified | Segmented:
    """The same images as this model sees them: a segmentation model gives maps without masks too.

    Raises:
        InputError: for masks and a classifier, or a segmentation model without masks if they are
            needed.
    """
    if isinstance(found, Segmented) == segments(model):
        return found
    if not segments(model):
        raise InputError(f"{found.data} has a mask for each image, and {name} classifies images")
    if not options.get("compare_dense"):
        raise InputError(
            f"{found.data} has no masks, and {name} is for segmentation: give a folder that holds "
            "images and masks, or add --compare-dense, for agreement"
        )
    _refuse(Segmented, options, found.data)
    return Segmented(found.data, True, found.strict)


def _refuse(kind: type[Classified], options: dict[str, Any], data: str) -> None:
    for name in kind.not_for:
        if options.get(name) is not None:
            masks = "with masks" if kind is Segmented else "without masks"
            option = name.replace("_", "-")
            raise InputError(f"--{option} {options[name]} is not for images {masks}, as in {data}")
