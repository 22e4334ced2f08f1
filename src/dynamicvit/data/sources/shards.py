"""WebDataset shards: tars of samples, each several files of one name and different endings."""

from __future__ import annotations

import json
import logging
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from timm.data.readers import create_reader
from timm.utils.misc import natural_key

from dynamicvit.data.decoding import image_endings, one_line
from dynamicvit.data.folders import endings_in_words, is_hidden
from dynamicvit.data.sources.base import Source
from dynamicvit.data.sources.tars import BLOCK, Entry, list_files, read_entry
from dynamicvit.errors import InputError
from dynamicvit.utils.optional import need

_log = logging.getLogger(__name__)

_MOST_SHARDS = 100_000

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
        if any(os.path.isfile(os.path.join(place, info)) for info in INFO):
            _check_braces(name, split or "")
            paths, lengths = self._by_info(place, split or "train")
        elif split is not None:
            raise InputError(f"{name}: a split needs an {INFO[0]} beside the shards")
        else:
            paths = _by_name(name, place)
        missing = [path for path in paths if not os.path.isfile(path)]
        if missing:
            raise InputError(
                f"{name}: {len(missing)} shards are missing, the first is {missing[0]}"
            )
        for path, length in zip(paths, lengths or (), strict=False):
            if length > path.stat().st_size // BLOCK:  # an image has a header and content
                raise InputError(f"{name}: {INFO[0]} says {length:,} images for {path}: too many")
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
        return read_entry(path, sample.parts[sample.image])

    def target(self, row: int) -> str:
        """The class in ``.cls`` or ``.json``."""
        path, (_, parts) = self._sample(row)
        label = None
        if "cls" in parts and self._label_key is None:
            label = read_entry(path, parts["cls"]).decode().strip()
        elif "json" in parts:
            try:
                fields = json.loads(read_entry(path, parts["json"]))
            except RecursionError:
                raise ValueError("its json is nested without end") from None
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
        names, lengths = list(info.filenames), list(info.shard_lengths)
        wrong = [n for n in (*names, self._label_key or "") if not isinstance(n, str)]
        wrong += [n for n in lengths if type(n) is not int or n < 0]
        if wrong:
            raise InputError(f"{self.name}: {INFO[0]}: {wrong[0]!r} is no name or number")
        return [Path(place) / name for name in names], lengths

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
    if os.path.isdir(place):
        paths = sorted(Path(place).glob("*.tar"), key=lambda path: natural_key(path.name))
        if not paths:
            raise InputError(f"{name}: the folder holds no .tar")
        return paths
    _check_braces(name, place)
    try:
        return [Path(path) for path in need("webdataset.shardlists", "data").expand_urls(place)]
    except ValueError as error:
        raise InputError(f"{name} can't be used ({one_line(error)})") from error


_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")


def _check_braces(name: str, text: str) -> None:
    """Refuse braces that stand for more shards than there can be."""
    count = 1
    for inside in re.findall(r"\{([^{}]*)\}", text):
        found = _RANGE.match(inside)
        long = found is not None and max(map(len, found.groups())) > 12
        if found is None:
            count *= inside.count(",") + 1
        elif not long:
            count *= abs(int(found[2]) - int(found[1])) + 1
        if long or count > _MOST_SHARDS:
            raise InputError(f"{name} stands for more than {_MOST_SHARDS:,} shards")


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
