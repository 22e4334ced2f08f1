"""WebDataset shards: tars of samples, each several files of one name and different endings."""

from __future__ import annotations

import json
import logging
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from timm.data.readers import create_reader
from timm.utils.misc import natural_key

from dynamicvit.data.decoding import image_endings, one_line
from dynamicvit.data.folders import endings_in_words, is_hidden
from dynamicvit.data.sources.base import Source
from dynamicvit.data.sources.tars import Entry, list_files
from dynamicvit.errors import InputError
from dynamicvit.utils.optional import need

_log = logging.getLogger(__name__)

LABELS = ("cls", "json")
INFO = ("_info.json", "info.json")
"""The files in which timm's reader finds splits, with their shards and numbers of samples."""


class Member(NamedTuple):
    """A sample: its name, and its image and label files by ending."""

    name: str
    parts: dict[str, Entry]

    @property
    def image(self) -> str | None:
        """The ending of its image, if any."""
        return next((ending for ending in self.parts if _is_image(ending)), None)


class Shard(NamedTuple):
    """The samples in a shard's headers, and why the shard breaks off, if it does."""

    samples: tuple[Member, ...]
    problem: str | None


class Shards(Source):
    """Local shards. A sample's class is its ``.cls``, or the ``label`` of its ``.json``.

    Each process reads a shard's headers at its first sample and then seeks each image, so order
    and resuming do not depend on the processes. A shard that breaks off gives its samples before
    the break.

    Args:
        name: as the user wrote it.
        place: a folder of shards, one shard, or several by braces: ``train-{0000..0127}.tar``.
        split: of the folder's ``_info.json``.
    """

    def __init__(self, name: str, place: str, split: str | None) -> None:
        self.name = name
        if "://" in place or place.startswith("pipe:"):
            raise InputError(
                f"{name} is not a local path: download or mount the shards (rclone, s3fs), and "
                "write wds/FOLDER"
            )
        need("webdataset", "data")
        self._label_key: str | None = None
        lengths = None
        if any((Path(place) / info).is_file() for info in INFO):
            paths, lengths = self._by_info(place, split or "train")
        elif split is not None:
            raise InputError(f"{name}: a split needs an {INFO[0]} beside the shards")
        else:
            paths = _by_name(name, place)
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise InputError(
                f"{name}: {len(missing)} shards are missing, the first is {missing[0]}"
            )
        self._paths = paths
        self.block_names = tuple(map(str, paths))
        try:
            lengths = _lengths(paths) if lengths is None else lengths
            self._starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
            self.blocks = np.repeat(np.arange(len(paths)), lengths)
            self.labeled = self._first_is_labeled()
        except OSError as error:
            raise InputError(f"{error.filename} can't be read ({error.strerror})") from error

    def __len__(self) -> int:
        return int(self._starts[-1])

    def path(self, row: int) -> str:
        """The shard's path and the image's name; the shard's alone if it lacks the image."""
        path, position, _ = self._place(row)
        try:
            sample = _read_headers(path).samples[position]
        except (OSError, IndexError):
            return str(path)
        return f"{path}/{sample.name}" + (f".{sample.image}" if sample.image else "")

    def read(self, row: int) -> bytes:
        """The bytes of the image."""
        path, sample = self._sample(row)
        if sample.image is None:
            raise ValueError(f"the sample has no image ({endings_in_words()})")
        return _read_part(path, sample.parts[sample.image])

    def target(self, row: int) -> str:
        """The class in ``.cls`` or ``.json``."""
        path, (_, parts) = self._sample(row)
        label = None
        if "cls" in parts and self._label_key is None:
            label = _read_part(path, parts["cls"]).decode().strip()
        elif "json" in parts:
            fields = json.loads(_read_part(path, parts["json"]))
            if isinstance(fields, dict):
                label = fields.get(self._label_key or "label")
        if label is None or label == "":
            raise ValueError("the sample has no class (cls, or label in json)")
        return str(label)

    def _place(self, row: int) -> tuple[Path, int, int]:
        """An image's shard, its position there, and the shard's expected number of samples."""
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        first, end = map(int, self._starts[number : number + 2])
        return self._paths[number], row - first, end - first

    def _sample(self, row: int) -> tuple[Path, Member]:
        path, position, length = self._place(row)
        samples, problem = _read_headers(path)
        held = len(samples)
        if position >= held:
            reason = f"breaks off after {held} images: {problem}"
            raise ValueError(reason if problem else f"holds {held} images, not {length}")
        if position == length - 1 and length < held:
            _log.warning("%s holds %d images, more than %s says", path, held, INFO[0])
        return path, samples[position]

    def _by_info(self, place: str, split: str) -> tuple[list[Path], list[int]]:
        """Shards and lengths of a split, from ``_info.json`` as timm reads it."""
        try:
            reader: Any = create_reader("wds/", root=place, split=split)
        except (RuntimeError, LookupError, TypeError, ValueError) as error:
            reason = one_line(error)
            raise InputError(f"{self.name}: split {split!r} can't be used ({reason})") from error
        info = reader.split_info
        if len(info.filenames) != len(info.shard_lengths):
            raise InputError(
                f"{self.name}: {INFO[0]} names {len(info.filenames)} shards "
                f"and {len(info.shard_lengths)} lengths"
            )
        self._label_key = info.alt_label or None
        return [Path(place) / name for name in info.filenames], list(info.shard_lengths)

    def _first_is_labeled(self) -> bool:
        """Whether the first readable sample has a class."""
        for path, start in zip(self._paths, self._starts, strict=False):
            if _read_headers(path).samples:
                try:
                    label = self.target(int(start))
                except ValueError:
                    return False
                if label.startswith(("[", "{")):
                    self.class_problem = (
                        f"several or soft labels an image ({label}), which are not supported: give "
                        "one class an image, or use the images without labels"
                    )
                return True
        raise InputError(f"{self.name} holds no images ({endings_in_words()})")


def _is_image(ending: str) -> bool:
    return f".{ending.lower()}" in image_endings()


def _by_name(name: str, place: str) -> list[Path]:
    """The shards of a folder in natural order, or of braces."""
    if Path(place).is_dir():
        paths = sorted(Path(place).glob("*.tar"), key=lambda path: natural_key(path.name))
        if not paths:
            raise InputError(f"{name}: the folder holds no .tar")
        return paths
    return [Path(path) for path in need("webdataset.shardlists", "data").expand_urls(place)]


def _lengths(paths: list[Path]) -> list[int]:
    """Samples of each shard, and one unreadable sample if it breaks off."""
    _log.info("counting the images of %d shards; an %s beside them saves this", len(paths), INFO[0])
    shards = map(_read_headers, paths)
    return [len(shard.samples) + (shard.problem is not None) for shard in shards]


# Enough for the shards of order.WINDOW images.
@lru_cache(maxsize=128)
def _read_headers(path: Path) -> Shard:
    """The samples of a shard: runs of files of the same name up to the first dot.

    Raises:
        OSError: for an unreadable file, which is not cached.
    """
    runs: list[Member] = []
    files, problem = list_files(path)
    for file in files:
        folder, slash, base = file.name.rpartition("/")
        stem, _, ending = base.partition(".")
        if not stem or not ending or is_hidden(file.name):
            continue
        name = folder + slash + stem
        if not runs or runs[-1].name != name:
            runs.append(Member(name, {}))
        if _is_image(ending) or ending.lower() in LABELS:
            runs[-1].parts[ending] = file
    if problem and runs and _is_cut(runs[-1], path.stat().st_size):
        runs.pop()  # counted as the break
    return Shard(tuple(runs), problem)


def _is_cut(last: Member, length: int) -> bool:
    """Whether a shard of ``length`` bytes ends inside its last sample."""
    return last.image is None or any(p.start + p.size > length for p in last.parts.values())


def _read_part(path: Path, part: Entry) -> bytes:
    with open(path, "rb") as file:
        file.seek(part.start)
        return file.read(part.size)
