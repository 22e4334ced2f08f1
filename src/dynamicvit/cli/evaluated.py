"""What `dynamicvit eval` evaluates on: images or clips, by what they are labeled with."""

from __future__ import annotations

from typing import Any

from torch import nn

from dynamicvit.core.networks import segments
from dynamicvit.costs import count_macs
from dynamicvit.data import (
    ONE_VIEW,
    ClipData,
    MaskData,
    Views,
    class_map_for,
    has_masks,
    open_data,
    taken_by,
)
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
    """Images or clips, with or without a class each.

    Args:
        data: as the user named it.
        unlabeled: leave classes aside.
        strict: an unreadable image ends the run.
        views: of clips.
    """

    #: Options of the command that are for these images alone, by their Python names, and those that
    #: are for the others.
    takes: tuple[str, ...] = ("crop_pct", "batch_size", "save_kept")
    not_for: tuple[str, ...] = ()

    def __init__(self, data: str, unlabeled: bool, strict: bool, views: Views) -> None:
        self.data, self.strict = data, strict
        labeled = False if unlabeled else None
        self.images: Any = open_data(data, views=views, labeled=labeled, strict=strict)

    @property
    def batch_size(self) -> int:
        """Inputs at a time where nobody says."""
        return self.images.usual_batch

    def fit(self, model: Any, class_map: str | None) -> str | None:
        """Label the images by the model's classes; the class map in a line."""
        if not self.images.labeled:
            return None
        chosen = class_map_for(self.images, model, class_map)
        self.images = self.images.with_class_map(chosen.index)
        return chosen.origin

    def evaluate(self, model: nn.Module, **how: Any) -> EvaluationResult | SegmentationResult:
        """Top-1, top-5, agreement."""
        return evaluate(model, self.images, **{"batch_size": self.batch_size, **how})

    def cost(self, model: nn.Module, size: tuple[int, int]) -> dict[str, int]:
        """MACs of a video's views, for the JSON; images, and a file, are told none."""
        if not isinstance(self.images, ClipData) or isinstance(model, ExportedModel):
            return {}
        return {"macs": count_macs(model, size) * self.images.views.total}

    def rows(self, model: nn.Module, size: tuple[int, int]) -> list[tuple[str, str]]:
        """The same for the table."""
        return [
            (self._cost_name(size), f"{macs / 1e9:.2f}") for macs in self.cost(model, size).values()
        ]

    def _cost_name(self, size: tuple[int, int]) -> str:
        del size
        total = self.images.views.total
        return f"GMACs a video, {total} view{'s' if total > 1 else ''}"


class Segmented(Classified):
    """Images with a mask each, or for a segmentation model without."""

    takes = ("stride",)
    batch_size = 1  # type: ignore[assignment]
    not_for = ("class_map", "crop_pct", "batch_size", "save_kept", "dense_checkpoint", "views")

    def __init__(self, data: str, unlabeled: bool, strict: bool, views: Views = ONE_VIEW) -> None:
        del views
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

    def _cost_name(self, size: tuple[int, int]) -> str:
        return f"GMACs a window, {size[0]}x{size[1]}"


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
    return kind(data, unlabeled, strict, options["views"] or ONE_VIEW)


def for_model(
    found: Classified, model: nn.Module, name: str, options: dict[str, Any]
) -> Classified | Segmented:
    """The same images as this model sees them: a segmentation model gives maps without masks too,
    clips get its number of frames.

    Raises:
        InputError: for masks and a classifier, or a segmentation model without masks if they are
            needed; for clips and a model of images, or the reverse.
    """
    if isinstance(found, Segmented) == segments(model):
        if not isinstance(found, Segmented):
            found.images = taken_by(model, found.images, options["stride"])
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
