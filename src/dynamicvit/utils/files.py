"""Files that are written whole or not at all: an error or an interrupt leaves what was there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a path to write to, which takes the place of ``path`` when the block ends.

    Args:
        path: the file; its folder must exist.

    Yields:
        A new name in the same folder. If the block raises, that file is removed.
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield draft
        draft.replace(path)
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a file in UTF-8, whole or not at all."""
    with atomic_write(path) as draft:
        draft.write_text(text, encoding="utf-8")


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """Yield an empty folder, whose files move into ``folder`` when the block ends.

    Files of the same name are replaced, others stay. If the block raises, nothing moves.

    Args:
        folder: made with its parents when the block ends, if absent.
    """
    folder = Path(folder)
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    with TemporaryDirectory(prefix=".unfinished-", dir=existing) as draft:
        yield Path(draft)
        folder.mkdir(parents=True, exist_ok=True)
        for file in Path(draft).iterdir():
            file.replace(folder / file.name)
