"""The files of a folder: images, and what is left out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from timm.utils import natural_key

from dynamicvit.data.decoding import image_endings
from dynamicvit.errors import InputError

#: Names that systems put beside images, in lower case, besides those that begin with a dot.
_HIDDEN = {"@eadir", "__macosx", "$recycle.bin", "thumbs.db", "desktop.ini"}

#: Files that one line names.
_NAMED = 3


def is_image(name: str) -> bool:
    """Whether a file counts as an image by its ending, in any case."""
    return os.path.splitext(name)[1].lower() in image_endings()


def is_hidden(path: str) -> bool:
    """Whether a relative path leads through a hidden folder or to a hidden file."""
    return any(
        (part.startswith(".") and part != ".") or part.lower() in _HIDDEN
        for part in path.split("/")
    )


def in_order(names: Iterable[str]) -> list[str]:
    """Names in natural order: 2 before 10."""
    return sorted(names, key=lambda name: (natural_key(name), name))


def list_folder(root: Path) -> tuple[list[str], list[str]]:
    """The files and the folders below a folder, without hidden ones, by relative path.

    Raises:
        InputError: for a folder that can't be entered.
    """

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename} can't be read ({error.strerror})")

    files, folders = [], []
    for place, inside, names in os.walk(root, onerror=refuse, followlinks=True):
        inside[:] = [name for name in inside if not is_hidden(name) and not _loops(place, name)]
        above = Path(place).relative_to(root)
        folders += [(above / name).as_posix() for name in inside]
        files += [(above / name).as_posix() for name in names if not is_hidden(name)]
    return files, folders


def _loops(place: str, name: str) -> bool:
    """Whether a folder is a link to one that it lies in."""
    path = Path(place, name)
    return path.is_symlink() and path.parent.resolve().is_relative_to(path.resolve())


def image_files(folder: Path) -> list[Path]:
    """The image files in a folder and below in natural order.

    Raises:
        InputError: if there are none, or for a folder that can't be entered.
    """
    found = in_order(name for name in list_folder(folder)[0] if is_image(name))
    if not found:
        raise InputError(f"{folder} holds no images ({endings_in_words()})")
    return [folder / name for name in found]


def other_files(folder: Path) -> tuple[str, ...]:
    """The files in a folder and below that are neither images nor hidden, by relative path."""
    return tuple(in_order(name for name in list_folder(folder)[0] if not is_image(name)))


def left_out_in_words(left_out: Sequence[str]) -> str:
    """One line that counts files and names the first."""
    more = ", ..." if len(left_out) > _NAMED else ""
    heif = any(name.lower().endswith((".heic", ".heif")) for name in left_out)
    hint = "; to read HEIC, pip install pillow-heif" if heif else ""
    what = (
        "1 file of another type" if len(left_out) == 1 else f"{len(left_out)} files of other types"
    )
    return f"left out {what}: {', '.join(left_out[:_NAMED])}{more}{hint}"


def endings_in_words() -> str:
    """What counts as an image, for messages."""
    return f".jpg, .png, .webp, .tif and {len(image_endings()) - 4} more that Pillow decodes"
