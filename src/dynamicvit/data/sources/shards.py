"""WebDataset shards: tars of samples, each several files of one name and different endings."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from timm.data.readers import create_reader
from timm.utils.misc import natural_key

from dynamicvit.data.decoding import image_endings, one_line
from dynamicvit.data.folders import endings_in_words, is_hidden
from dynamicvit.data.sources.base import Source
from dynamicvit.data.sources.braces import check_braces, expand
from dynamicvit.data.sources.remote import (
    FetchError,
    fetch,
    fetched,
    is_final,
    is_remote,
    listed,
    noted,
)
from dynamicvit.data.sources.tars import BLOCK, Entry, list_files, read_entry
from dynamicvit.errors import InputError
from dynamicvit.utils.files import temporary_folder
from dynamicvit.utils.optional import need

_log = logging.getLogger(__name__)

#: Of a shard; as many rows are held in memory.
_MOST_IMAGES = 10**7

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
    """Shards on this disk or elsewhere. A class is a sample's ``.cls``, or ``label`` in ``.json``.

    Each process reads a shard's headers at its first sample and then seeks each image, so order
    and resuming do not depend on the processes. A shard that breaks off gives its samples before
    the break. One from elsewhere is first fetched into a cache (:mod:`.remote`).

    Args:
        name: as the user wrote it.
        place: a folder of shards, one shard, or several by braces: ``train-{0000..0127}.tar``; a
            path, a URL, or ``pipe:COMMAND``.
        split: of the folder's ``_info.json``.
    """

    def __init__(self, name: str, place: str, split: str | None) -> None:
        self.name = name
        need("webdataset", "data")
        self._remote = is_remote(place)
        self._label_key: str | None = None
        lengths = None
        with _info_folder(place) as folder:
            check_braces(name, split or "")
            if any(os.path.isfile(folder / info) for info in INFO):
                names, lengths = self._by_info(place, folder, split or "train")
            elif split is not None:
                raise InputError(f"{name}: a split needs an {INFO[0]} beside the shards")
            else:
                names = _by_name(name, place)
        missing = [] if self._remote else [each for each in names if not os.path.isfile(each)]
        if missing:
            raise InputError(
                f"{name}: {len(missing)} shards are missing, the first is {missing[0]}"
            )
        for path, length in () if self._remote else zip(names, lengths or (), strict=False):
            if length > os.path.getsize(path) // BLOCK:  # an image has a header and content
                raise InputError(f"{name}: {INFO[0]} says {length:,} images for {path}: too many")
        self.block_names = tuple(names)
        try:
            lengths = self._lengths() if lengths is None else lengths
            self._starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
            self.blocks = np.repeat(np.arange(len(names)), lengths)
            self.labeled = self._first_is_labeled()
        except OSError as error:
            raise InputError(f"{error.filename} can't be read ({error.strerror})") from error

    def __len__(self) -> int:
        return int(self._starts[-1])

    def path(self, row: int) -> str:
        """The shard's name and the image's; the shard's alone if it lacks the image."""
        number, position, _ = self._place(row)
        shard = self.block_names[number]
        try:
            sample = _read_headers(self._file(number)).samples[position]
        except (OSError, IndexError, FetchError):
            return shard
        return f"{shard}/{sample.name}" + (f".{sample.image}" if sample.image else "")

    def read(self, row: int) -> bytes:
        """The bytes of the image."""
        number, sample = self._sample(row)
        if sample.image is None:
            raise ValueError(f"the sample has no image ({endings_in_words()})")
        return self._read_part(number, sample.parts[sample.image])

    def target(self, row: int) -> str:
        """The class in ``.cls`` or ``.json``."""
        number, (_, parts) = self._sample(row)
        label = None
        if "cls" in parts and self._label_key is None:
            label = self._read_part(number, parts["cls"]).decode().strip()
        elif "json" in parts:
            try:
                fields = json.loads(self._read_part(number, parts["json"]))
            except RecursionError:
                raise ValueError("its json is nested without end") from None
            if isinstance(fields, dict):
                label = fields.get(self._label_key or "label")
        if label is None or label == "":
            raise ValueError("the sample has no class (cls, or label in json)")
        return str(label)

    def _file(self, number: int) -> Path:
        """A shard's file on this disk."""
        name = self.block_names[number]
        return fetched(name) if self._remote else Path(name)

    def _read_part(self, number: int, part: Entry) -> bytes:
        return read_entry(self._file(number), part)

    def _place(self, row: int) -> tuple[int, int, int]:
        """An image's shard, its position there, and the shard's expected number of samples."""
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        first, end = map(int, self._starts[number : number + 2])
        return number, row - first, end - first

    def _sample(self, row: int) -> tuple[int, Member]:
        number, position, length = self._place(row)
        samples, problem = _read_headers(self._file(number))
        held = len(samples)
        if position >= held:
            reason = f"breaks off after {held} images: {problem}"
            raise ValueError(reason if problem else f"holds {held} images, not {length}")
        if position == length - 1 and length < held:
            shard = self.block_names[number]
            _log.warning("%s holds %d images, more than %s says", shard, held, INFO[0])
        return number, samples[position]

    def _by_info(self, place: str, folder: Path, split: str) -> tuple[list[str], list[int]]:
        """Shards and lengths of a split, from ``_info.json`` in a folder as timm reads it."""
        try:
            reader: Any = create_reader("wds/", root=str(folder), split=split)
        # Of any kind, for values of any type.
        except Exception as error:
            reason = one_line(error)
            raise InputError(f"{self.name}: split {split!r} can't be used ({reason})") from error
        info = reader.split_info
        if len(info.filenames) != len(info.shard_lengths):
            raise InputError(
                f"{self.name}: {INFO[0]} names {len(info.filenames)} shards "
                f"and {len(info.shard_lengths)} lengths"
            )
        self._label_key = info.alt_label or None
        wrong = [n for n in (*info.filenames, self._label_key or "") if not isinstance(n, str)]
        wrong += [n for n in info.shard_lengths if type(n) is not int or not 0 <= n <= _MOST_IMAGES]
        if wrong:
            raise InputError(f"{self.name}: {INFO[0]}: {wrong[0]!r} is no name or number")
        if self._remote:
            names = [f"{place.rstrip('/')}/{name}" for name in info.filenames]
        else:
            names = [str(Path(place) / name) for name in info.filenames]
        return names, list(info.shard_lengths)

    def _lengths(self) -> list[int]:
        """Samples of each shard, and one unreadable sample if it breaks off."""
        count = len(self.block_names)
        _log.info("counting the images of %d shards; an %s beside them saves this", count, INFO[0])
        if self._remote:
            return noted(self.block_names, "count", lambda number: _count(self._file(number)))
        return [_count(self._file(number)) for number in range(count)]

    def _first_is_labeled(self) -> bool:
        """Whether the first readable sample has a class."""
        for number, start in enumerate(self._starts[:-1]):
            if _read_headers(self._file(number)).samples:
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


def _is_folder(place: str) -> bool:
    """Whether a remote place is a folder, rather than shards by name."""
    return is_remote(place) and not re.search(r"^pipe:|[{]|\.tar\b", place)


@contextmanager
def _info_folder(place: str) -> Iterator[Path]:
    """The folder in which an ``_info.json`` would lie, fetched if the place is remote."""
    if not is_remote(place):
        yield Path(place)
        return
    with temporary_folder() as folder:
        if _is_folder(place):
            for info in INFO:
                try:
                    fetch(f"{place.rstrip('/')}/{info}", folder / info)
                    break
                except FetchError as error:
                    (folder / info).unlink()
                    if not is_final(error.__cause__):
                        raise
        yield folder


def _by_name(name: str, place: str) -> list[str]:
    """The shards of a folder in natural order, or of braces."""
    if _is_folder(place):
        shards = listed(place, "*.tar")
        if not shards:
            example = f"wds/{place.rstrip('/')}/train-{{0000..0127}}.tar"
            raise InputError(
                f"{name}: no {INFO[0]} is there, and no list of files; name them, as {example}"
            )
        return sorted(shards, key=natural_key)
    if os.path.isdir(place):
        paths = sorted(Path(place).glob("*.tar"), key=lambda path: natural_key(path.name))
        if not paths:
            raise InputError(f"{name}: the folder holds no .tar")
        return list(map(str, paths))
    return expand(name, place)


def _count(path: Path) -> int:
    samples, problem = _read_headers(path)
    return len(samples) + (problem is not None)


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
