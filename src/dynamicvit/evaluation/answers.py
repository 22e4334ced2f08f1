"""What a model says of images, a row for each: classes, or a mask that is written as a file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor
from torch.utils.data import ConcatDataset

from dynamicvit.core.classifier import PrunedClassifier
from dynamicvit.core.outputs import PrunedOutput
from dynamicvit.core.segmenter import post_process_semantic_segmentation
from dynamicvit.costs import resolve_image_size
from dynamicvit.data import (
    Batch,
    ImageData,
    MaskData,
    class_names,
    joint_eval_transform,
    top_classes,
)
from dynamicvit.data.mask_files import write_mask
from dynamicvit.errors import InputError
from dynamicvit.evaluation.accuracy import check_finite
from dynamicvit.evaluation.views import mean_of_views
from dynamicvit.evaluation.windows import sliding_windows

Row = dict[str, Any]

#: Of a folder of masks: a row for each image.
TABLE = "predictions.csv"


class Classes:
    """The likeliest classes of images, and how many patches each stage kept.

    Args:
        model: in ``eval()``.
        top: classes of each image.
        image_size: of the model's input, or None.
        crop_pct: of the center crop, or None.
    """

    def __init__(
        self,
        model: PrunedClassifier,
        top: int,
        image_size: int | tuple[int, int] | None,
        crop_pct: float | None,
    ) -> None:
        self._model, self._top = model, top
        self._names = class_names(model)  # type: ignore[arg-type]
        self._size, self._crop_pct = image_size, crop_pct

    @property
    def columns(self) -> dict[str, str]:
        """The columns between image and error, and their kinds."""
        columns = {}
        for rank in range(1, min(self._top, len(self._names)) + 1):
            columns |= {f"class_{rank}": "string", f"index_{rank}": "int"}
            columns[f"probability_{rank}"] = "float"
        for stage in range(1, len(self._model.schedule.stages) + 1):
            columns[f"kept_{stage}"] = "float"
        return columns

    def prepared(self, data: Sequence[ImageData]) -> ConcatDataset:
        """The images as the model takes them."""
        return ConcatDataset(
            [part.for_evaluation(self._model, self._size, self._crop_pct) for part in data]  # type: ignore[arg-type]
        )

    def of(self, batch: Batch) -> Iterable[Row]:
        """The columns of each image of a batch, of a video over its views."""
        views = batch.images.unbind(1) if batch.images.ndim == 6 else [batch.images]
        outputs = [self._model.forward_pruned(view) for view in views]
        for output in outputs:
            check_finite(output.logits, "the model")
        return self._rows(mean_of_views([output.logits for output in outputs]), outputs)

    def _rows(self, logits_of: Tensor, outputs: Sequence[PrunedOutput]) -> Iterator[Row]:
        stages = zip(*(output.kept for output in outputs), strict=True)
        shares = [
            (sum(kept.float().mean(dim=1) for kept in stage) / len(outputs)).tolist()
            for stage in stages
        ]
        for index, logits in enumerate(logits_of):
            row: Row = {}
            for rank, guess in enumerate(top_classes(logits, self._names, self._top), start=1):
                row |= {f"class_{rank}": guess.name, f"index_{rank}": guess.index}
                row[f"probability_{rank}"] = round(guess.probability, 6)
            for stage, share in enumerate(shares, start=1):
                row[f"kept_{stage}"] = round(share[index], 6)
            yield row


class Masks:
    """A mask for each image, of its own size and name.

    Args:
        model: a segmentation model in ``eval()``, or a file of one.
        folder: to write the masks into.
        image_size: of the window, or None.
        stride: from window to window, or None.
    """

    columns: ClassVar = {"mask": "string"}

    def __init__(
        self,
        model: Any,
        folder: Path,
        image_size: int | tuple[int, int] | None,
        stride: int | None,
    ) -> None:
        self._model, self._folder, self._stride = model, folder, stride
        self._window = resolve_image_size(model, image_size)
        self._first = int(model.labels.reduce_labels)
        self._names: dict[str, str] = {}

    def prepared(self, data: Sequence[ImageData]) -> ConcatDataset:
        """The images as windows take them."""
        transform = joint_eval_transform(self._model, self._window)
        images = [MaskData.alone(part).with_joint_transform(transform) for part in data]
        self._names = mask_names(images)
        return ConcatDataset(images)

    def of(self, batch: Batch) -> Iterator[Row]:
        """Writes the mask of a batch's only image."""
        for image, size, path in zip(batch.images, batch.labels, batch.paths, strict=True):
            logits = sliding_windows(self._model, image, self._window, self._stride)[None]
            check_finite(logits.flatten(1), "the model")
            [mask] = post_process_semantic_segmentation(logits, [(size.shape[0], size.shape[1])])
            name = self._names[path]
            write_mask(self._folder / name, mask, first=self._first)
            yield {"mask": name}


def mask_names(data: Sequence[ImageData]) -> dict[str, str]:
    """The file of each image's mask, by the image's path: as the image, below its source.

    Two of one name get numbers, in order.
    """
    found: dict[str, str] = {}
    taken: set[str] = set()
    for part in data:
        root = os.fspath(part.root)
        for index in range(len(part)):
            path = part.path(index)
            inside = Path(path).is_relative_to(root) and Path(root).is_dir()
            place = Path(path).relative_to(root) if inside else Path(Path(path).name)
            stem = re.sub(r'[<>:"|?*\\]', "_", str(place.with_suffix("")))
            name, number = f"{stem}.png", 1
            while name.casefold() in taken:  # on some file systems Cat.png and cat.png are one
                number += 1
                name = f"{stem}-{number}.png"
            taken.add(name.casefold())
            found[path] = name
    return found


def table_of(output: str | os.PathLike[str] | None, gives_maps: bool) -> Path | None:
    """The table that an output names: itself, or the one in a folder of masks.

    Raises:
        InputError: for a table of a segmentation model, or a folder of a classifier.
    """
    if not gives_maps:
        return None if output is None else Path(output)
    if output is None:
        raise InputError("a segmentation model writes masks: give a folder as output")
    path = Path(output)
    if path.is_file() or (path.suffix and not path.is_dir()):
        raise InputError(f"{output}: a segmentation model writes masks: give a folder")
    path.mkdir(parents=True, exist_ok=True)
    return path / TABLE
