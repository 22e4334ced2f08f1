"""torchvision's data sets, as timm names them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from timm.data import create_dataset

from dynamicvit.data.decoding import one_line
from dynamicvit.data.folders import is_hidden, is_image, other_files
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
            options = {}
            if is_folder := kind.lower() in ("image_folder", "folder"):
                options = {"is_valid_file": partial(_counts, root), "allow_empty": True}
            data: Any = create_dataset(
                f"torch/{kind}", root=root, split=split or "train", **options
            )
        # Of any kind: the sets raise different errors for missing or damaged files.
        except Exception as error:
            raise InputError(f"{name} can't be opened ({one_line(error)})") from error
        self._data = data
        if hasattr(data, "loader"):
            data.loader = _read_bytes  # for the common decoder, in place of torchvision's
        # Class maps use ImageNet's WordNet ids, not its tuples of synonyms; iNaturalist has
        # attributes of its own.
        names = getattr(data, "wnids", None) or getattr(data, "all_categories", None)
        self.classes = tuple(names or data.classes)
        targets = getattr(data, "targets", None)
        self.targets = class_numbers([c for c, _ in data.index] if targets is None else targets)
        if is_folder:
            self._leave_out(Path(data.root))

    def __len__(self) -> int:
        return len(self._data)

    def path(self, row: int) -> str:
        """The image's file, or its number if the set is one file."""
        samples = getattr(self._data, "samples", None)
        return f"{self.name}#{row}" if samples is None else str(samples[row][0])

    def read(self, row: int) -> bytes | Image.Image:
        """The bytes of the image's file; of a set that is one file, the image."""
        return self._data[row][0]

    def _leave_out(self, root: Path) -> None:
        """Take hidden folders out of the classes, and name what else is left out."""
        assert self.targets is not None
        shown = [index for index, name in enumerate(self.classes) if not is_hidden(name)]
        self.classes = tuple(self.classes[index] for index in shown)
        self.targets = np.searchsorted(shown, self.targets)
        held = set(self.targets.tolist())
        self.empty_classes = tuple(c for index, c in enumerate(self.classes) if index not in held)
        self.left_out = other_files(root)


def _counts(root: str, path: str) -> bool:
    return is_image(path) and not is_hidden(Path(path).relative_to(root).as_posix())


def _read_bytes(path: str) -> bytes:
    return Path(path).read_bytes()
