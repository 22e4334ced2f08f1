"""A folder of images as a stream, in the order of their names."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from timm.data.readers.img_extensions import get_img_extensions, is_img_extension
from timm.utils import natural_key

from dynamicvit.data import read_upright
from dynamicvit.errors import InputError
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
        files = (
            path
            for path in root.rglob("*")
            if is_img_extension(path.suffix.lower())
            and not path.name.startswith(".")
            and path.is_file()
        )
        self._files = sorted(files, key=lambda path: natural_key(str(path)))
        if not self._files:
            raise InputError(f"{root} holds no images ({', '.join(get_img_extensions())})")

    def __iter__(self) -> Iterator[Frame]:
        """The images, not yet read; they have no times."""
        for index, path in enumerate(self._files):
            yield Frame(index, None, partial(read_upright, path), str(path))

    def close(self) -> None:
        """Nothing is open."""
