"""Sources of clips, named by one string: class folders, tars, lists, Hugging Face data sets."""

from __future__ import annotations

import csv
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dynamicvit.data.decoding import image_endings
from dynamicvit.data.sources.base import Source
from dynamicvit.data.sources.files import Files, Folder, Tar
from dynamicvit.data.sources.huggingface import HuggingFace, classes_of
from dynamicvit.data.video.reading import CLIP_ENDINGS
from dynamicvit.errors import InputError
from dynamicvit.utils.inputs import read_text

#: Endings of lists, and the words that name their columns.
_LISTS = (".csv", ".tsv", ".txt")
_PATHS = ("path", "video_path", "video", "file", "file_name", "filename")
_LABELS = ("label", "class", "target", "label_name")


def is_clip(name: str) -> bool:
    """Whether a file counts as a clip by its ending, in any case."""
    return os.path.splitext(name)[1].lower() in CLIP_ENDINGS


def clip_endings() -> str:
    """What counts as a clip, for messages."""
    return ", ".join(sorted(CLIP_ENDINGS))


def has_clips(name: str | os.PathLike[str]) -> bool:
    """Whether a source holds clips, told by its first file of a known kind; False if there is none.

    A GIF, which may be either, counts as an image.
    """
    if isinstance(name, str) and name.lower().startswith("hfds/"):
        try:
            return bool(len(open_clips(name)))
        except InputError:
            return False
    try:
        path = _split_of(Path(name))
        if path.suffix.lower() in _LISTS and path.is_file():
            return True
        return next((each for each in map(_is_clip_alone, _files(path)) if each is not None), False)
    except (InputError, OSError, ValueError, tarfile.TarError):  # which whoever opens it will say
        return False


def _files(path: Path) -> Iterator[str]:
    """Names of files in a folder or tar, or the file's own."""
    if path.is_dir():
        for _, folders, files in os.walk(path):
            folders.sort()
            yield from sorted(files)
    elif path.suffix.lower() == ".tar":
        with tarfile.open(path) as tar:
            yield from (member.name for member in tar if member.isfile())
    else:
        yield path.name


def _is_clip_alone(name: str) -> bool | None:
    """Whether a file is a clip and can't be an image; None of neither."""
    if os.path.splitext(name)[1].lower() in image_endings():
        return False
    return is_clip(name) or None


def open_clips(name: str | os.PathLike[str]) -> Source:
    """Open a source of clips.

    Args:
        name: a folder of class folders or a ``.tar`` of them, a flat one without classes, a video
            file, a list (:class:`ClipList`), or ``hfds/PLACE``, which needs a column of videos.
            ``FOLDER@SPLIT`` is the folder or the list of that name in a folder; of ``hfds/`` a
            split, with or without ``:COLUMN``.

    Returns:
        The source; what it reads is a path or a file's bytes.

    Raises:
        InputError: for a source that is missing, unreadable or empty, or of another kind.
    """
    text = os.fspath(name)
    prefix, slash, place = text.partition("/")
    if isinstance(name, str) and slash and prefix.lower() in ("wds", "hfids", "torch", "tfds"):
        raise InputError(
            f"{name}: {prefix}/ gives images; clips come from class folders, a .tar, a list "
            "(.csv, .tsv, .txt) or hfds/"
        )
    if isinstance(name, str) and slash and prefix.lower() == "hfds":
        place, at, split = place.rpartition("@") if "@" in place else (place, "", "")
        if not place or (at and not split):
            raise InputError(f"{name} is incomplete: write hfds/PLACE or hfds/PLACE@SPLIT")
        return _HuggingFaceClips(text, place, split or None)
    path = _split_of(Path(name))
    if path.is_dir():
        return _ClipFolder(path)
    if path.suffix.lower() == ".tar":
        return _ClipTar(path)
    if path.suffix.lower() in _LISTS:
        return ClipList(path)
    if is_clip(path.name):
        return _OneClip(path)
    raise InputError(
        f"{path} is no video ({clip_endings()}), folder of them, .tar or list (.csv, .tsv, .txt)"
    )


def _split_of(path: Path) -> Path:
    """The path, or the split of a folder that it names.

    Raises:
        InputError: if there is neither.
    """
    if path.exists():
        return path
    root, at, split = str(path).rpartition("@")
    if not (at and Path(root).is_dir()):
        raise InputError(f"{path} does not exist; give a folder of clips, a .tar or a list of them")
    for ending in ("", *_LISTS):
        if split and (found := Path(root, split + ending)).exists():
            return found
    raise InputError(f"{root} holds no split {split!r}, as a folder or as {split or 'train'}.csv")


class _Clips(Files):
    what = "clips"
    counts = staticmethod(is_clip)
    endings = staticmethod(clip_endings)


class _ClipFolder(_Clips, Folder):
    def read(self, row: int) -> Path:  # type: ignore[override]
        return Path(self.path(row))


class _ClipTar(_Clips, Tar):
    pass


class _OneClip(Source):
    """A video file, without a class."""

    labeled = False

    def __init__(self, file: Path) -> None:
        self.name, self._file = str(file), file

    def __len__(self) -> int:
        return 1

    def path(self, row: int) -> str:
        del row
        return self.name

    def read(self, row: int) -> Path:  # type: ignore[override]
        del row
        return self._file


class _HuggingFaceClips(HuggingFace):
    kind = "Video"

    def read(self, row: int) -> bytes | Path:  # type: ignore[override]
        video = self._data[row][self._image]
        if video is None:
            raise ValueError("the row has no video")
        return video["bytes"] or Path(video["path"])


class ClipList(Source):
    """A list of clips, one a line: a path, and a class as number or name.

    Columns are separated by commas, tabs or spaces, with or without a line of names: ``path`` (or
    ``video_path``, ``video``, ``file``, ``file_name``) and ``label`` (or ``class``, ``target``);
    without names, path and class are the first and the last of two. A path is relative to the
    list's folder. With one column the clips have no classes.

    Args:
        file: the list.

    Raises:
        InputError: for a list that is unreadable or empty, or a line of another form.
    """

    class_word = "classes in the list"

    def __init__(self, file: Path) -> None:
        self.name = str(file)
        rows = _rows(file)
        header = [cell.lower() for cell in rows[0][1]]
        path_at, label_at = _column(header, _PATHS), _column(header, _LABELS)
        if path_at is None and label_at is not None:
            raise InputError(
                f"{file} has columns {', '.join(rows[0][1])}, none of them of paths: name one path"
            )
        if path_at is not None:
            rows = rows[1:]
        elif len(header) <= 2:
            path_at, label_at = 0, len(header) - 1 or None
        if not rows:
            raise InputError(f"{file} lists no clips")
        for number, cells in rows:
            if path_at is None or len(cells) != len(header) or not cells[path_at]:
                raise InputError(
                    f"{file}, line {number}: {' '.join(cells)!r} is no path and class (path,label)"
                )
        folder = file.absolute().parent
        self._paths = [os.path.join(folder, cells[path_at]) for _, cells in rows]
        self.labeled = label_at is not None
        if label_at is not None:
            self.classes, self.targets = _targets(file, rows, label_at)

    def __len__(self) -> int:
        return len(self._paths)

    def path(self, row: int) -> str:
        """The file."""
        return self._paths[row]

    def read(self, row: int) -> Path:  # type: ignore[override]
        """The file."""
        return Path(self._paths[row])


def _rows(file: Path) -> list[tuple[int, list[str]]]:
    """The lines of a list that are not empty: their numbers and columns."""
    try:
        text = read_text(file).removeprefix("\ufeff")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} can't be read as a list of clips ({error})") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    lines = [(number, line) for number, line in lines if line]
    if not lines:
        raise InputError(f"{file} lists no clips")
    for mark in (",", "\t"):
        if all(mark in line for _, line in lines):
            cells = csv.reader((line for _, line in lines), delimiter=mark)
            return [
                (number, [cell.strip() for cell in row])
                for (number, _), row in zip(lines, cells, strict=True)
            ]
    if all(is_clip(line) for _, line in lines[1:] or lines):  # paths alone, with spaces or not
        return [(number, [line]) for number, line in lines]
    return [(number, line.rsplit(maxsplit=1)) for number, line in lines]  # a path may have spaces


def _column(header: Sequence[str], words: Sequence[str]) -> int | None:
    return next((header.index(word) for word in words if word in header), None)


def _targets(
    file: Path, rows: Sequence[tuple[int, list[str]]], column: int
) -> tuple[tuple[str, ...], np.ndarray]:
    """Class names, none if they are numbers, and targets."""
    labels: list[Any] = [cells[column] for _, cells in rows]
    numbers = [label.isdecimal() for label in labels]
    if any(numbers) and not all(numbers):
        number, cells = rows[numbers.index(not numbers[0])]
        raise InputError(
            f"{file}, line {number}: class {cells[column]!r}; classes are all numbers or all names"
        )
    return classes_of([int(label) for label in labels] if numbers[0] else labels, None)
