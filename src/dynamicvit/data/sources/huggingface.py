"""Hugging Face data sets, from the Hub or from disk."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from timm.utils.misc import natural_key

from dynamicvit.data.decoding import one_line
from dynamicvit.data.sources.base import Source, class_numbers
from dynamicvit.errors import InputError
from dynamicvit.utils.connection import hub_if_reachable
from dynamicvit.utils.inputs import read_bytes
from dynamicvit.utils.optional import need


class HuggingFace(Source):
    """A split of a data set: its column of images, and its column of classes, if any.

    timm's reader needs columns named image and label and can't open a data set written by
    ``save_to_disk``, so ``datasets`` is called directly.

    Args:
        name: as the user wrote it.
        place: a name on the Hub, a folder for ``load_dataset``, or one written by ``save_to_disk``.
        split: ``train`` by default; from the Hub also a slice, ``train[:10%]``. It, or the place
            without one, may end in ``:COLUMN``, the column of classes.
    """

    #: The kind of its column.
    kind = "Image"

    def __init__(self, name: str, place: str, split: str | None) -> None:
        self.name = name
        datasets: Any = need("datasets", "data")
        place, split, column = split_column(name, place, split)
        with nullcontext() if Path(place).exists() else hub_if_reachable() as problem:
            try:
                data = _load(datasets, name, place, split)
            except InputError:
                raise
            # Of any kind: the library wraps only some errors of broken folders and the network.
            except Exception as error:
                reason = problem or one_line(error)
                raise InputError(f"{name} can't be opened ({reason})") from error
        self.data = data
        kind = getattr(datasets, self.kind)
        self.image = image = image_column(name, data.features, kind)
        label, self.class_problem = class_column(name, data.features, column, datasets)
        self.labeled = label is not None or self.class_problem is not None
        if label is not None:
            names = getattr(data.features[label], "names", None)
            self.classes, self.targets = classes_of(data[label][:], names)
        self._image = image
        self._data = data.select_columns([image]).cast_column(image, kind(decode=False))

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
        return image["bytes"] or read_bytes(image["path"])


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


def image_column(name: str, features: Any, kind: type) -> str:
    """The column of images, or of another kind.

    Raises:
        InputError: if there is none, or several and none is called as the kind is.
    """
    columns = [column for column, feature in features.items() if isinstance(feature, kind)]
    word = kind.__name__.lower()
    if word in columns:
        return word
    if len(columns) != 1:
        raise InputError(
            f"{name} has {len(columns)} columns of {word}s among {', '.join(features)}; "
            f"name one of them {word}"
        )
    return columns[0]


def split_column(name: str, place: str, split: str | None) -> tuple[str, str | None, str | None]:
    """Place, split and column of classes; the latter two None if not named.

    Raises:
        InputError: for a colon without a column.
    """
    if split is None and Path(place).exists():
        return place, None, None
    rest, colon, column = (place if split is None else split).rpartition(":")
    if not colon or "]" in column or "/" in column:  # of a slice, train[:10%], or of a URL
        return place, split, None
    if not column:
        raise InputError(f"{name} is incomplete: write hfds/PLACE@SPLIT:COLUMN")
    return (rest, None, column) if split is None else (place, rest or None, column)


def class_column(
    name: str, features: Any, wanted: str | None, datasets: Any
) -> tuple[str | None, str | None]:
    """The column of classes, if any, and why the data set's labels can't be used, if so.

    The wanted one; else the one named label or labels; else the only one of classes.

    Raises:
        InputError: if the wanted column is missing or holds something else.
    """

    def is_class(kind: Any) -> bool:
        is_value = isinstance(kind, datasets.Value)
        return isinstance(kind, datasets.ClassLabel) or (is_value and "float" not in kind.dtype)

    if wanted is not None:
        if wanted not in features:
            raise InputError(f"{name}: no column {wanted!r}; columns are {', '.join(features)}")
        if not is_class(features[wanted]):
            raise InputError(
                f"{name}: column {wanted!r} holds {_kind(features[wanted])}, not one class an image"
            )
        return wanted, None
    for column in ("label", "labels"):
        if column in features and is_class(features[column]):
            return column, None
    columns = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    if len(columns) > 1:
        example = f"{name}{'' if '@' in name else '@SPLIT'}:{columns[0]}"
        return None, f"several label columns, {', '.join(columns)}: name one, as {example}"
    if columns:
        return columns[0], None
    for column in ("label", "labels"):
        if column in features:
            return None, (
                f"{_kind(features[column])} in column {column!r}, which is not supported: give a "
                "column of one class an image, or use the images without labels"
            )
    return None, None


def _kind(feature: Any) -> str:
    """What a column holds that is not one class an image, in words."""
    dtype = getattr(getattr(feature, "feature", feature), "dtype", "")
    if "float" in str(dtype):
        return f"soft labels or numbers that are no classes ({feature})"
    if hasattr(feature, "feature"):
        return f"several labels an image ({feature})"
    return str(feature)


def classes_of(labels: list[Any], names: list[str] | None) -> tuple[tuple[str, ...], np.ndarray]:
    """Class names and targets; words are their own names."""
    if names is None and any(isinstance(label, str) for label in labels):
        names = sorted({label for label in labels if label is not None}, key=natural_key)
        position = {word: index for index, word in enumerate(names)}
        labels = [position.get(label) for label in labels]
    return tuple(names or ()), class_numbers(labels)
