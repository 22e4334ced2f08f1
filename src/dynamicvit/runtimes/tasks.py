"""What a file is compared on, by the task of its model: classes of images, or of pixels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dynamicvit.core.model import DynamicViT
from dynamicvit.core.segmenter import Segmenter
from dynamicvit.data import (
    Batch,
    ImageData,
    Loader,
    MaskData,
    class_map_for,
    has_masks,
    open_data,
    taken_by,
)
from dynamicvit.errors import InputError
from dynamicvit.evaluation.segmentation import evaluate_segmentation, masks_for
from dynamicvit.runtimes.comparison import Agreement, Reference
from dynamicvit.runtimes.images import Transform


class Classified:
    """Files of classifiers.

    Args:
        model: that the file is made from.
        transform: of its images.
    """

    def __init__(self, model: Any, transform: Transform) -> None:
        self.model, self.transform = model, transform

    def images(self, source: str) -> ImageData:
        """The images or clips of a source, their labels left aside."""
        return taken_by(self.model, open_data(source, labeled=False))

    def labeled(self, source: str, class_map: str | None) -> ImageData:
        """Images with the model's classes.

        Raises:
            InputError: for images without classes, or with others.
        """
        data = taken_by(self.model, open_data(source))
        if not data.labeled:
            raise InputError(f"{source} has no labels: give labeled images to compare int8 on")
        return data.with_class_map(class_map_for(data, self.model, class_map).index)

    def reference(self, held_out: Any) -> Reference:
        """The model's answers on images, in batches already or not."""
        return Reference(self.model, self._batches(held_out))

    def _batches(self, data: ImageData | list[Batch]) -> Any:
        return data if isinstance(data, list) else Loader(data.with_transform(self.transform), 32)


class Segmented(Classified):
    """Files of segmentation models, which are run window by window on images of any size."""

    def images(self, source: str) -> MaskData:
        """Likewise."""
        return MaskData(source, labeled=False)

    def labeled(self, source: str, class_map: str | None) -> MaskData:
        """Images with masks of the model's classes; images alone do, for agreement."""
        if class_map is not None:
            raise InputError(f"class_map {class_map}: masks name classes by index; leave it out")
        return masks_for(source, self.model) if has_masks(source) else self.images(source)

    def reference(self, held_out: Any) -> Reference:
        """The model's maps."""
        if isinstance(held_out, list):
            return Reference(self.model, held_out)
        return MapReference(self.model, held_out, self._batches(held_out))


class MapReference(Reference):
    """A segmentation model's maps, to compare those of files with pixel by pixel.

    Args:
        model: in ``eval()``.
        data: images, with masks or without.
        windows: their centers, where kept patches are compared.
    """

    def __init__(self, model: Segmenter, data: MaskData, windows: Loader) -> None:
        super().__init__(model, windows)
        self._model, self._data = model, data

    def agreement(self, exported: Any) -> Agreement:
        """Pixels and mIoU at the images' own size, kept patches of their centers."""
        found = evaluate_segmentation(exported, self._data, dense=self._model)
        assert found.agreement is not None
        return replace(
            super().agreement(exported),
            images=found.images,
            answers=found.agreement,
            labeled=found.labeled,
            miou=found.miou,
            model_miou=found.dense_miou,
        )


def compared_for(model: DynamicViT, transform: Transform) -> Classified:
    """What the files of a model are compared on."""
    return (Segmented if isinstance(model, Segmenter) else Classified)(model, transform)
