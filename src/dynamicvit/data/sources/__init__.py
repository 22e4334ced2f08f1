"""Sources of images, named by one string with timm's prefixes."""

from __future__ import annotations

import os
from pathlib import Path

from dynamicvit.data.decoding import image_endings
from dynamicvit.data.sources.base import UNLABELED, Source
from dynamicvit.data.sources.files import open_files
from dynamicvit.data.sources.huggingface import HuggingFace
from dynamicvit.data.sources.one_image import OneImage
from dynamicvit.data.sources.remote import is_remote
from dynamicvit.data.sources.shards import Shards
from dynamicvit.data.sources.streams import HuggingFaceStream
from dynamicvit.data.sources.torch_sets import TorchSet
from dynamicvit.errors import InputError

__all__ = ["UNLABELED", "Source", "open_source"]

_KINDS = {"wds": Shards, "hfds": HuggingFace, "hfids": HuggingFaceStream, "torch": TorchSet}


def open_source(name: str | os.PathLike[str]) -> Source:
    """Open a source of images.

    Args:
        name: a folder, ``.tar`` or image file; or ``wds/PLACE``, ``hfds/PLACE``,
            ``hfids/PLACE``, ``torch/NAME/FOLDER``, each with or without ``@SPLIT``, ``hfds`` and
            ``hfids`` also with ``@SPLIT:COLUMN`` for the column of classes. A
            :class:`pathlib.Path` is always a path.

    Raises:
        InputError: for a source that is missing, unreadable or empty.
    """
    if not isinstance(name, str):
        return _open_path(Path(name))
    prefix, slash, place = name.partition("/")
    kind = prefix.lower() if slash else ""
    if kind == "tfds":
        raise InputError(f"{name}: tfds/ is not supported; convert it to wds/ or class folders")
    if kind not in _KINDS:
        if is_remote(name) and not Path(name).exists():
            raise InputError(f"{name} is no path; shards there are written wds/{name}")
        return _open_path(Path(name))
    split = None
    rest, at, last = place.rpartition("@")
    # In a URL it may be part of the host, in a command of anything.
    if at and not (is_remote(place) and ("/" in last or place.startswith("pipe:"))):
        place, split = rest, last
    if not place or split == "":
        raise InputError(f"{name} is incomplete: write {kind}/PLACE or {kind}/PLACE@SPLIT")
    try:
        source = _KINDS[kind](name, place, split)
    except InputError as error:
        if os.path.exists(name):
            raise InputError(f"{error}; if it is a path, write ./{name}") from error
        raise
    if not len(source):
        raise InputError(f"{name} holds no images")
    return source


def _open_path(path: Path) -> Source:
    is_image = path.suffix.lower() in image_endings() and path.is_file()
    return OneImage(path) if is_image else open_files(path)
