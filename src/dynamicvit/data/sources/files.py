"""Class folders, tars of them, and flat folders without labels."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np

from dynamicvit.data.folders import (
    endings_in_words,
    in_order,
    is_hidden,
    is_image,
    left_out_in_words,
    list_folder,
)
from dynamicvit.data.sources.base import Source
from dynamicvit.data.sources.tars import Entry, list_entries, read_entry
from dynamicvit.errors import InputError
from dynamicvit.utils.inputs import open_file, read_bytes

_DEEPEST = 8


class Files(Source):
    """A folder or tar in which an image's class is its folder.

    Args:
        root: the folder or tar.
        files: in it, by relative path, without hidden ones.
        folders: likewise; those of the files need not be among them.
    """

    class_word = "class folders"
    #: What the files are called, whether one counts by its name, and what counts, in words.
    what = "images"
    counts = staticmethod(is_image)
    endings = staticmethod(endings_in_words)

    def __init__(self, root: Path, files: Iterable[str], folders: Iterable[str]) -> None:
        self.name = str(root)
        self.root = root
        names = in_order(files)
        self._files = [name for name in names if self.counts(name)]
        if not self._files:
            hint = _hint(root, names, self.endings())
            raise InputError(f"{root} holds no {self.what}{hint}")
        self.left_out = tuple(name for name in names if not self.counts(name))
        held = [PurePosixPath(name).parent.name for name in self._files]
        self.labeled = set(held) != {""}  # the name of the root itself
        if self.labeled:
            without = _classes_without_files(self._files, self.left_out, folders)
            self.empty_classes = tuple(in_order(without - set(held)))
        self.classes = tuple(in_order({*held, *self.empty_classes}))
        position = {name: index for index, name in enumerate(self.classes)}
        self.targets = np.array([position[name] for name in held])
        if self.labeled and "" in position:
            self.class_problem = f"{self.what} beside its class folders; move them into one"

    def __len__(self) -> int:
        return len(self._files)

    def path(self, row: int) -> str:
        """The image's file; in a tar, the tar's path and the member's name."""
        return str(self.root / self._files[row])


class Folder(Files):
    """A folder of class folders, or a flat one."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, *list_folder(root))

    def read(self, row: int) -> bytes:
        """The bytes of the file."""
        return read_bytes(self.root / self._files[row])


class Tar(Files):
    """A ``.tar`` of class folders, of a tar for each class, or a flat one.

    Raises:
        InputError: for another file, and for a tar that breaks off.
    """

    def __init__(self, root: Path) -> None:
        if root.suffix != ".tar":
            raise InputError(f"{root} is no image, folder of images or .tar")
        try:
            with open_file(root) as file:
                found = {name: entry for name, entry in _entries(file, root) if not is_hidden(name)}
        except OSError as error:
            raise InputError(f"{root} can't be read ({error.strerror})") from error
        self._entries = found
        folders = [name for name, entry in found.items() if entry.name.endswith("/")]
        super().__init__(root, found.keys() - folders, folders)

    def path(self, row: int) -> str:
        """The tar's path and the member's name."""
        return str(self.root / self._entries[self._files[row]].name)

    def read(self, row: int) -> bytes:
        """The bytes of the member.

        The tar is opened for each image: forked workers would share the position of one handle.
        """
        return read_entry(self.root, self._entries[self._files[row]])


def _entries(
    file: BinaryIO, root: Path, within: Entry | None = None, depth: int = 0
) -> Iterator[tuple[str, Entry]]:
    """What a tar holds, by path; a tar in it is a folder named without the ending.

    Args:
        file: open.
        root: of the file.
        within: the tar in it to list; by default the file itself.
        depth: how many tars it is in.

    Raises:
        InputError: for a tar that breaks off, or in more than :data:`_DEEPEST` others.
    """
    if depth > _DEEPEST:
        raise InputError(f"{root} can't be read: tars in tars, {depth} deep")
    found, problem = list_entries(file) if within is None else list_entries(file, *within[1:])
    if problem is not None:
        where = root if within is None else root / within.name
        if not found:
            raise InputError(f"{where} can't be read ({problem}); give a tar of images")
        raise InputError(f"{where} is damaged after {found[-1].name} ({problem}); write it again")
    for entry in found:
        path = PurePosixPath(entry.name)
        if entry.name.endswith("/") or path.suffix.lower() != ".tar":
            yield str(path), entry
        elif not is_hidden(entry.name):
            path = path.with_suffix("")
            yield str(path), entry._replace(name=f"{entry.name}/")
            for name, inner in _entries(file, root, entry, depth + 1):
                yield f"{path}/{name}", inner._replace(name=f"{entry.name}/{inner.name}")


def _classes_without_files(
    images: Iterable[str], others: Iterable[str], folders: Iterable[str]
) -> set[str]:
    """Names of the folders beside class folders that hold no image at any depth.

    They keep their place among the classes: an index is not to depend on what one could read.
    """
    used = {folder for name in images for folder in PurePosixPath(name).parents}
    levels = {PurePosixPath(name).parent.parent for name in images if "/" in name}
    given = {PurePosixPath(folder) for folder in folders}
    given |= {folder for name in others for folder in PurePosixPath(name).parents}
    return {folder.name for folder in given - used if folder.parent in levels}


def open_files(root: Path) -> Files:
    """The source at a plain path.

    Raises:
        InputError: for a root that is missing, unreadable or empty.
    """
    if not os.path.exists(root):  # which says no to names too long
        raise InputError(f"{root} does not exist; give a folder of images or a .tar of them")
    return Folder(root) if root.is_dir() else Tar(root)


def _hint(root: Path, names: Sequence[str], endings: str) -> str:
    """What a folder without images may be."""
    if (root / "state.json").exists() or (root / "dataset_dict.json").exists():
        return f"; a saved Hugging Face data set is written hfds/{root}"
    if root.is_dir() and any(root.glob("*.tar")):
        return f"; a folder of shards is written wds/{root}"
    return f" ({endings}){'; ' + left_out_in_words(names) if names else ''}"
