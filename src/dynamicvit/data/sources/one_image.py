"""A single image file."""

from __future__ import annotations

from pathlib import Path

from dynamicvit.data.sources.base import Source
from dynamicvit.utils.inputs import read_bytes


class OneImage(Source):
    """An image file, without a class."""

    labeled = False

    def __init__(self, file: Path) -> None:
        self.name = str(file)
        self._file = file

    def __len__(self) -> int:
        return 1

    def path(self, row: int) -> str:
        """The file's path."""
        del row
        return self.name

    def read(self, row: int) -> bytes:
        """The file's bytes."""
        del row
        return read_bytes(self._file)
