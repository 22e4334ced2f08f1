"""A folder of images as a stream, in the order of their names."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from dynamicvit.data.decoding import image_files, read_image
from dynamicvit.streaming.frames import Frame


class Folder:
    """The images in a folder and below; numbers in names count as numbers (2 before 10).

    Args:
        root: the folder.

    Raises:
        InputError: if it holds no images.
    """

    rate: float | None = None
    live = False

    def __init__(self, root: Path) -> None:
        self.name = str(root)
        self._files = image_files(root)

    def __iter__(self) -> Iterator[Frame]:
        """The images, not yet read; they have no times."""
        for index, path in enumerate(self._files):
            yield Frame(index, None, partial(read_image, path), str(path))

    def close(self) -> None:
        """Nothing is open."""
