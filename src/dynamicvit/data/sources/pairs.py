"""Images with a mask each: folders ``images`` and ``masks``, and Hugging Face data sets."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from dynamicvit.data.class_names import read_class_names
from dynamicvit.data.decoding import image_formats
from dynamicvit.data.folders import image_files, in_order, is_hidden
from dynamicvit.data.sources.base import Source
from dynamicvit.data.sources.huggingface import HuggingFace
from dynamicvit.errors import InputError
from dynamicvit.utils.inputs import read_bytes
from dynamicvit.utils.optional import need

#: Names of the folder of masks, and of the column.
MASKS = ("masks", "annotations", "labels")
MASK_COLUMNS = ("mask", "masks", "annotation", "segmentation_mask", "label", "labels")
CLASSES = "classes.txt"

#: EXIF orientations that swap width and height.
_TURNED = range(5, 9)


class Pairs(Source):
    """Images by row, and what masks they have; ``classes`` are those that masks name by index."""

    labeled = True

    @abstractmethod
    def mask(self, row: int) -> bytes | Image.Image | None:
        """An image's mask; None without one. A broken one raises errors of any kind."""

    @abstractmethod
    def mask_path(self, row: int) -> str:
        """The name of an image's mask for messages; never raises."""


class Unpaired(Pairs):
    """The images of any source, without masks."""

    labeled = False

    def __init__(self, source: Source) -> None:
        self._source = source
        self.name, self.left_out = source.name, source.left_out
        self.blocks, self.block_names = source.blocks, source.block_names

    def __len__(self) -> int:
        return len(self._source)

    def path(self, row: int) -> str:
        """The image's name."""
        return self._source.path(row)

    def read(self, row: int) -> bytes | Image.Image:
        """The image."""
        return self._source.read(row)

    def mask(self, row: int) -> None:
        """None."""

    def mask_path(self, row: int) -> str:
        """No name."""
        return ""


class FolderPairs(Pairs):
    """``ROOT/images`` and ``ROOT/masks``, with a file of the same name, endings aside, in both.

    Args:
        root: holds both, and ``classes.txt`` if classes have names.
        split: a folder in each of the two, where they have some.

    Raises:
        InputError: for a split that there is not, an image without a mask and the reverse, or a
            mask of another size than its image.
    """

    def __init__(self, root: Path, split: str | None) -> None:
        self.name, self.root = f"{root}@{split}" if split else str(root), root
        images, masks = _folders(root)
        splits = _splits(images)
        if splits and split not in splits:
            said = f"no split {split!r}" if split else "its images lie in splits"
            raise InputError(f"{root}: {said}; give one, {_examples(root, splits)}")
        if split is not None and not splits:
            raise InputError(f"{root}: its images lie in no splits; leave @{split} out")
        if split is not None:
            images, masks = images / split, masks / split
            if not masks.is_dir():
                raise InputError(f"{masks} is missing; {images} is there")
        self._images = image_files(images)
        by_stem = {_stem(path, masks): path for path in image_files(masks)}
        stems = [_stem(path, images) for path in self._images]
        for stem, image in zip(stems, self._images, strict=True):
            if stem not in by_stem:
                raise InputError(f"{image} has no mask; give {masks / stem}.png")
        if len(by_stem) > len(stems):
            lonely = next(by_stem[stem] for stem in by_stem if stem not in {*stems})
            raise InputError(f"{lonely} has no image; give {images / _stem(lonely, masks)}.jpg")
        self._masks = [by_stem[stem] for stem in stems]
        file = next((f for f in (root / CLASSES, masks / CLASSES) if f.is_file()), None)
        self.classes = () if file is None else tuple(read_class_names(file))
        for image, mask in zip(self._images, self._masks, strict=True):
            _check_sizes(image, mask)

    def __len__(self) -> int:
        return len(self._images)

    def path(self, row: int) -> str:
        """The image's file."""
        return str(self._images[row])

    def mask_path(self, row: int) -> str:
        """The mask's file."""
        return str(self._masks[row])

    def read(self, row: int) -> bytes:
        """The bytes of the image."""
        return read_bytes(self._images[row])

    def mask(self, row: int) -> Image.Image:
        """The mask."""
        with Image.open(self._masks[row], formats=image_formats()) as image:
            image.load()
            return image.copy()


class HuggingFacePairs(Pairs):
    """A split of a Hugging Face data set with columns of images and of masks.

    Args:
        images: the data set's images.
        column: of the masks.
    """

    def __init__(self, images: HuggingFace, column: str) -> None:
        datasets: Any = need("datasets", "data")
        self._images, self.name = images, images.name
        data = images.data.select_columns([column])
        self._masks = data.cast_column(column, datasets.Image())
        self._column = column

    def __len__(self) -> int:
        return len(self._images)

    def path(self, row: int) -> str:
        """The image's row, and its file if known."""
        return self._images.path(row)

    def mask_path(self, row: int) -> str:
        """The row and the column."""
        return f"{self.name}#{row} {self._column}"

    def read(self, row: int) -> bytes:
        """The bytes of the image."""
        return self._images.read(row)

    def mask(self, row: int) -> Image.Image | None:
        """The mask."""
        return self._masks[row][self._column]


def mask_beside(image: Path) -> Path | None:
    """The mask of an image that lies in ``images``, beside a folder of masks; None without one."""
    for folder in image.absolute().parents:
        if folder.name == "images":
            inside = image.absolute().relative_to(folder).with_suffix(".png")
            found = (folder.parent / masks / inside for masks in MASKS)
            return next((mask for mask in found if mask.is_file()), None)
    return None


def find_pairs(name: str | os.PathLike[str]) -> Pairs | None:
    """The images and masks of a name; ``None`` for images without masks.

    Args:
        name: a folder that holds ``images`` and ``masks``, with ``@SPLIT`` if they have splits; or
            ``hfds/PLACE@SPLIT``.

    Raises:
        InputError: as :class:`FolderPairs`, and for a data set that can't be opened.
    """
    text = os.fspath(name)
    if text.lower().startswith("hfds/") and not Path(text).exists():
        _, _, place = text.partition("/")
        place, at, split = place.rpartition("@") if "@" in place else (place, "", "")
        images = HuggingFace(text, place, split if at else None)
        column = _mask_column(images)
        return None if column is None else HuggingFacePairs(images, column)
    root, at, split = text.rpartition("@")
    if Path(text).is_dir():
        root, at, split = text, "", ""
    if not root or _folders(Path(root)) is None:
        return None
    return FolderPairs(Path(root), split if at else None)


def _folders(root: Path) -> Any:
    """The folders of images and masks, or None."""
    masks = next((root / name for name in MASKS if (root / name).is_dir()), None)
    images = root / "images"
    return (images, masks) if masks is not None and images.is_dir() else None


def _splits(images: Path) -> list[str]:
    """Folders in the folder of images, if no image lies beside them."""
    inside = [each for each in images.iterdir() if not is_hidden(each.name)]
    folders = in_order(each.name for each in inside if each.is_dir())
    return folders if len(folders) == len(inside) else []


def _examples(root: Path, splits: list[str]) -> str:
    return " or ".join(f"{root}@{split}" for split in splits)


def _stem(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _mask_column(images: HuggingFace) -> str | None:
    datasets: Any = need("datasets", "data")
    kinds = images.data.features.items()
    columns = [c for c, kind in kinds if isinstance(kind, datasets.Image) and c != images.image]
    named: Iterator[str] = (column for column in MASK_COLUMNS if column in columns)
    return next(named, columns[0] if len(columns) == 1 else None)


def _check_sizes(image: Path, mask: Path) -> None:
    """Compare the sizes in two files' headers; broken files are named when they are read."""
    size = found = (0, 0)
    with suppress(OSError, SyntaxError, ValueError), Image.open(image) as one:
        with Image.open(mask) as other:
            found = other.size
        size = one.size
        if size != found and one.getexif().get(ExifTags.Base.Orientation, 1) in _TURNED:
            size = size[::-1]
    if size != found and 0 not in size:
        raise InputError(
            f"{mask} is {found[0]}x{found[1]} pixels, its image {size[0]}x{size[1]}; give a "
            "mask of its image's size"
        )
