"""Hugging Face data sets, from the Hub or from disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from timm.utils.misc import natural_key

from dynamicvit.data.decoding import one_line
from dynamicvit.data.sources.base import Source, class_numbers
from dynamicvit.errors import InputError
from dynamicvit.utils.optional import need


class HuggingFace(Source):
    """A split of a data set: its column of images, and its column of classes, if any.

    timm's reader needs columns named image and label and can't open a data set written by
    ``save_to_disk``, so ``datasets`` is called directly.

    Args:
        name: as the user wrote it.
        place: a name on the Hub, a folder for ``load_dataset``, or one written by ``save_to_disk``.
        split: ``train`` by default; from the Hub also a slice, ``train[:10%]``.
    """

    def __init__(self, name: str, place: str, split: str | None) -> None:
        self.name = name
        datasets: Any = need("datasets", "data")
        try:
            data = _load(datasets, name, place, split)
        except InputError:
            raise
        # Of any kind: the library wraps only some errors of broken folders and the network.
        except Exception as error:
            raise InputError(f"{name} can't be opened ({one_line(error)})") from error
        image = _image_column(name, data.features, datasets.Image)
        label = _class_column(data.features, datasets)
        self.labeled = label is not None
        if label is not None:
            names = getattr(data.features[label], "names", None)
            self.classes, self.targets = _classes(data[label][:], names)
        self._image = image
        self._data = data.select_columns([image]).cast_column(image, datasets.Image(decode=False))

    def __len__(self) -> int:
        return len(self._data)

    def path(self, row: int) -> str:
        """The row, and the image's file name if known."""
        try:
            path = self._data[row][self._image]["path"]
        except Exception:  # for a row that can't be read
            path = None
        return f"{self.name}#{row}" + (f" {path}" if path else "")

    def read(self, row: int) -> bytes:
        """The bytes of the image, from the row or the file that it names."""
        image = self._data[row][self._image]
        if image is None:
            raise ValueError("the row has no image")
        return image["bytes"] or Path(image["path"]).read_bytes()


def _load(datasets: Any, name: str, place: str, split: str | None) -> Any:
    saved = Path(place) / "dataset_dict.json"
    if not saved.exists() and not (Path(place) / "state.json").exists():
        return datasets.load_dataset(place, split=split or "train")
    data = datasets.load_from_disk(place)
    if not saved.exists():
        if split is not None:
            raise InputError(f"{name}: the folder holds one data set without splits")
        return data
    split = split or "train"
    if split not in data:
        raise InputError(f"{name}: no split {split!r}; splits are {', '.join(data)}")
    return data[split]


def _image_column(name: str, features: Any, kind: type) -> str:
    columns = [column for column, feature in features.items() if isinstance(feature, kind)]
    if "image" in columns:
        return "image"
    if len(columns) != 1:
        raise InputError(
            f"{name} has {len(columns)} columns of images among {', '.join(features)}; "
            "name one of them image"
        )
    return columns[0]


def _class_column(features: Any, datasets: Any) -> str | None:
    """The column named label or labels, if it can hold classes; else the only one of classes."""
    for column in ("label", "labels"):
        feature = features.get(column)
        is_value = isinstance(feature, datasets.Value)
        if isinstance(feature, datasets.ClassLabel) or (is_value and "float" not in feature.dtype):
            return column
    columns = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    return columns[0] if len(columns) == 1 else None


def _classes(labels: list[Any], names: list[str] | None) -> tuple[tuple[str, ...], np.ndarray]:
    """Class names and targets; words are their own names."""
    if names is None and any(isinstance(label, str) for label in labels):
        names = sorted({label for label in labels if label is not None}, key=natural_key)
        position = {word: index for index, word in enumerate(names)}
        labels = [position.get(label) for label in labels]
    return tuple(names or ()), class_numbers(labels)
