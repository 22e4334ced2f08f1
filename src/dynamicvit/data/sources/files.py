"""Class folders, tars of them, and flat folders without labels, as timm's readers list them."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from timm.data.readers import create_reader
from timm.data.readers.img_extensions import get_img_extensions

from dynamicvit.data.sources.base import Source
from dynamicvit.data.sources.tars import break_after
from dynamicvit.errors import InputError


class Files(Source):
    """A folder or tar in which an image's class is its folder."""

    class_word = "class folders"

    def __init__(
        self, root: Path, reader: Any, index: dict[str, int], targets: Sequence[int]
    ) -> None:
        self.name = str(root)
        self.root = root
        self._reader = reader
        self.labeled = index.keys() != {""}  # the name of the root itself
        self.classes = tuple(sorted(index, key=index.__getitem__))
        self.targets = np.asarray(targets)
        if "" in index:
            self.class_problem = "images beside its class folders; move them into one"

    def __len__(self) -> int:
        return len(self._reader)

    def path(self, row: int) -> str:
        """The image's file; in a tar, the tar's path and the member's name."""
        return str(self.root / self._reader.filename(row))


class Folder(Files):
    """A folder of class folders, or a flat one."""

    def __init__(self, root: Path) -> None:
        _check_readable(root)
        reader = _open_reader(root)
        super().__init__(root, reader, reader.class_to_idx, [label for _, label in reader.samples])

    def read(self, row: int) -> bytes:
        """The bytes of the file."""
        return Path(self._reader.samples[row][0]).read_bytes()


class Tar(Files):
    """A ``.tar`` of class folders, of a tar for each class, or a flat one."""

    def __init__(self, root: Path) -> None:
        if root.suffix != ".tar":
            raise InputError(f"{root} is neither a folder nor a .tar of images ({_kinds()})")
        reader = _open_reader(root)
        super().__init__(root, reader, reader.class_name_to_idx or {}, reader.targets)
        self._check_ends()

    def read(self, row: int) -> bytes:
        """The bytes of the member.

        The tar is opened for each image: forked workers would share the position of timm's cached
        handle, and spawned ones can't receive it.
        """
        member, _, inner = self._reader.samples[row]
        with ExitStack() as stack:
            tar = stack.enter_context(tarfile.open(self.root))
            if inner is not None:
                tar = stack.enter_context(tarfile.open(fileobj=tar.extractfile(inner)))
            file = tar.extractfile(member)
            assert file is not None  # timm lists regular files only
            return file.read()

    def _check_ends(self) -> None:
        """Refuse a damaged tar: timm takes a damaged header for the tar's end.

        Of each tar only the part after its last image is read; timm has read the rest.
        """
        last: dict[tarfile.TarInfo | None, tarfile.TarInfo] = {}
        for member, _, inner in self._reader.samples:  # inner: the tar in the tar, or None
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
    """The source at a plain path.

    Raises:
        InputError: for a root that is missing, unreadable or empty.
    """
    if not root.exists():
        raise InputError(f"{root} does not exist; give a folder of images or a .tar of them")
    return Folder(root) if root.is_dir() else Tar(root)


def _open_reader(root: Path) -> Any:
    """timm's reader of a folder or tar; its errors become one line."""
    try:
        return create_reader("", root=str(root))
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{root} can't be read ({error}); give a tar of images") from error
    # Without images timm's folder reader raises the one, its tar reader the other.
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{root} holds no images ({_kinds()}){_hint(root)}") from error


def _hint(root: Path) -> str:
    """What a folder without images may be."""
    if (root / "state.json").exists() or (root / "dataset_dict.json").exists():
        return f"; a saved Hugging Face data set is written hfds/{root}"
    if root.is_dir() and any(root.glob("*.tar")):
        return f"; a folder of shards is written wds/{root}"
    return ""


def _kinds() -> str:
    return ", ".join(get_img_extensions())


def _check_readable(root: Path) -> None:
    """Refuse a folder that can't be entered; timm skips it silently."""

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename} can't be read ({error.strerror})")

    for _ in os.walk(root, onerror=refuse, followlinks=True):
        pass
