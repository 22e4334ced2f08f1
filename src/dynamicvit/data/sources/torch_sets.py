"""torchvision's data sets, those that timm names."""

from __future__ import annotations

from typing import Any

from PIL import Image
from timm.data import create_dataset

from dynamicvit.data.decoding import one_line
from dynamicvit.data.sources.base import Source, class_numbers
from dynamicvit.errors import InputError


class TorchSet(Source):
    """A split of a data set of torchvision, as timm's ``create_dataset`` opens it.

    Args:
        name: as the user wrote it.
        place: timm's name for the set, a slash, and the folder it lies in.
        split: ``train`` by default.
    """

    def __init__(self, name: str, place: str, split: str | None) -> None:
        self.name = name
        kind, _, root = place.partition("/")
        if not root:
            raise InputError(f"{name} names no folder: write torch/{kind}/FOLDER")
        try:
            data: Any = create_dataset(f"torch/{kind}", root=root, split=split or "train")
        # Missing or damaged files raise what each of the sets likes to raise.
        except Exception as error:
            raise InputError(f"{name} can't be opened ({one_line(error)})") from error
        self._data = data
        # ImageNet's names are tuples of synonyms, and class maps go by WordNet ids; iNaturalist
        # calls both by names of its own.
        names = getattr(data, "wnids", None) or getattr(data, "all_categories", None)
        self.classes = tuple(names or data.classes)
        targets = getattr(data, "targets", None)
        self.targets = class_numbers([c for c, _ in data.index] if targets is None else targets)

    def __len__(self) -> int:
        return len(self._data)

    def path(self, row: int) -> str:
        """The image's file, or its number where the set keeps all in one."""
        samples = getattr(self._data, "samples", None)
        return f"{self.name}#{row}" if samples is None else str(samples[row][0])

    def read(self, row: int) -> Image.Image:
        """The image as torchvision decodes it."""
        return self._data[row][0]
