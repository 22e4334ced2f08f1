"""Class folders, a tar of them, or a flat folder without labels: what timm's readers list."""

from __future__ import annotations

import os
import tarfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import numpy as np
from timm.data.readers import create_reader
from timm.data.readers.img_extensions import get_img_extensions
from timm.data.readers.reader_image_folder import ReaderImageFolder
from timm.data.readers.reader_image_in_tar import ReaderImageInTar

from dynamicvit.data.sources.base import Source
from dynamicvit.data.sources.tars import break_after
from dynamicvit.errors import InputError


class Files(Source):
    """What folders and tars have in common: an image's class is the folder it lies in."""

    class_word = "class folders"

    def __init__(self, root: Path, names: list[str], targets: np.ndarray) -> None:
        self.name = str(root)
        self.root = root
        self.labeled = names != [""]  # the name of the root itself
        self.classes = tuple(names)
        self.targets = targets
        if "" in names:
            self.class_problem = "images beside its class folders; move them into one"


class Folder(Files):
    """A folder of class folders, or a flat one."""

    def __init__(self, root: Path) -> None:
        _check_readable(root)
        self._reader = cast(ReaderImageFolder, _open_reader(root))
        index = self._reader.class_to_idx
        targets = np.array([target for _, target in self._reader.samples])
        super().__init__(root, sorted(index, key=index.__getitem__), targets)

    def __len__(self) -> int:
        return len(self._reader)

    def path(self, row: int) -> str:
        """The image's file."""
        return str(self.root / str(self._reader.filename(row)))

    def read(self, row: int) -> bytes:
        """The bytes of the file."""
        return Path(self._reader.samples[row][0]).read_bytes()


class Tar(Files):
    """A ``.tar`` of class folders or of tars, one for each class, or a flat one."""

    def __init__(self, root: Path) -> None:
        if root.suffix != ".tar":
            raise InputError(f"{root} is neither a folder nor a .tar of images ({_kinds()})")
        self._reader = cast(ReaderImageInTar, _open_reader(root))
        index = self._reader.class_name_to_idx or {}
        names = sorted(index, key=index.__getitem__)
        super().__init__(root, names, np.asarray(self._reader.targets))
        self._check_ends()

    def __len__(self) -> int:
        return len(self._reader)

    def path(self, row: int) -> str:
        """The member's name below the tar's."""
        return str(self.root / str(self._reader.filename(row)))

    def read(self, row: int) -> bytes:
        """The bytes of the member.

        The tar is opened again for each image: timm's cached handle would be shared, with its
        position, by all workers forked after the first read, and could not be sent to spawned
        ones.
        """
        member, _, inner = self._samples[row]
        with ExitStack() as stack:
            tar = stack.enter_context(tarfile.open(self.root))
            if inner is not None:
                tar = stack.enter_context(tarfile.open(fileobj=tar.extractfile(inner)))
            file = tar.extractfile(member)
            assert file is not None  # timm lists regular files only
            return file.read()

    @property
    def _samples(self) -> Any:
        return self._reader.samples  # rows of (member, None, the inner tar it lies in)

    def _check_ends(self) -> None:
        """timm takes a damaged header for the end of the tar and would miss the images behind it.

        Of each tar only what follows its last image is read, the rest timm has read already.
        """
        last: dict[tarfile.TarInfo | None, tarfile.TarInfo] = {}
        for member, _, inner in self._samples:
            for holder, held in ((inner, member), (None, inner or member)):
                if holder not in last or held.offset > last[holder].offset:
                    last[holder] = held
        with tarfile.open(self.root) as tar:
            for inner, member in last.items():
                with ExitStack() as stack:
                    holder = tar
                    if inner is not None:
                        file = tar.extractfile(inner)
                        holder = stack.enter_context(tarfile.open(fileobj=file))
                    reason = break_after(holder, member)
                if reason is not None:
                    where = self.root if inner is None else self.root / inner.name
                    raise InputError(
                        f"{where} is damaged after {member.name} ({reason}); write it again"
                    )


def open_files(root: Path) -> Files:
    """The source that a plain path names.

    Raises:
        InputError: for a root that is missing, can't be opened or holds no images.
    """
    if not root.exists():
        raise InputError(f"{root} does not exist; give a folder of images or a .tar of them")
    return Folder(root) if root.is_dir() else Tar(root)


def _open_reader(root: Path) -> Any:
    """timm's reader of a folder or tar; its assertions and empty results become one clear line."""
    try:
        return create_reader("", root=str(root))
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{root} can't be read ({error}); give a tar of images") from error
    # No image at all: timm's folder reader raises the one, its tar reader stumbles into the other.
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{root} holds no images ({_kinds()}){_hint(root)}") from error


def _hint(root: Path) -> str:
    """What a folder without images may be meant to be."""
    if (root / "state.json").exists() or (root / "dataset_dict.json").exists():
        return f"; a saved Hugging Face data set is written hfds/{root}"
    if root.is_dir() and any(root.glob("*.tar")):
        return f"; a folder of shards is written wds/{root}"
    return ""


def _kinds() -> str:
    return ", ".join(get_img_extensions())


def _check_readable(root: Path) -> None:
    """timm's walk silently skips a folder that it may not enter, and its images."""

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename} can't be read ({error.strerror})")

    for _ in os.walk(root, onerror=refuse, followlinks=True):
        pass
