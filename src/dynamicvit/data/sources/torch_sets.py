"""torchvision's data sets, as timm names them."""

from __future__ import annotations

from typing import Any

from PIL import Image
from timm.data import create_dataset

from dynamicvit.data.decoding import one_line
from dynamicvit.data.sources.base import Source, class_numbers
from dynamicvit.errors import InputError


class TorchSet(Source):
    """A split of a torchvision data set, opened by timm's ``create_dataset``.

    Args:
        name: as the user wrote it.
        place: ``NAME/FOLDER``, with timm's name of the set.
        split: ``train`` by default.
    """

    def __init__(self, name: str, place: str, split: str | None) -> None:
        self.name = name
        kind, _, root = place.partition("/")
        if not root:
            raise InputError(f"{name} has no folder: write torch/{kind}/FOLDER")
        try:
            data: Any = create_dataset(f"torch/{kind}", root=root, split=split or "train")
        # Of any kind: the sets raise different errors for missing or damaged files.
        except Exception as error:
            raise InputError(f"{name} can't be opened ({one_line(error)})") from error
        self._data = data
        # Class maps use ImageNet's WordNet ids, not its tuples of synonyms; iNaturalist has
        # attributes of its own.
        names = getattr(data, "wnids", None) or getattr(data, "all_categories", None)
        self.classes = tuple(names or data.classes)
        targets = getattr(data, "targets", None)
        self.targets = class_numbers([c for c, _ in data.index] if targets is None else targets)

    def __len__(self) -> int:
        return len(self._data)

    def path(self, row: int) -> str:
        """The image's file, or its number if the set is one file."""
        samples = getattr(self._data, "samples", None)
        return f"{self.name}#{row}" if samples is None else str(samples[row][0])

    def read(self, row: int) -> Image.Image:
        """The image, decoded by torchvision."""
        return self._data[row][0]
