"""Sources of images, named by one string with timm's prefixes."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image

from dynamicvit.data.sources.base import UNLABELED, Source
from dynamicvit.data.sources.files import open_files
from dynamicvit.data.sources.huggingface import HuggingFace
from dynamicvit.data.sources.one_image import OneImage
from dynamicvit.data.sources.shards import Shards
from dynamicvit.data.sources.torch_sets import TorchSet
from dynamicvit.errors import InputError

__all__ = ["UNLABELED", "Source", "open_source"]

_KINDS = {"wds": Shards, "hfds": HuggingFace, "torch": TorchSet}
#: Streams, in which no run can resume, and their replacements.
_STREAMS = {
    "hfids": "write hfds/{place}, which is downloaded once and then read in any order",
    "tfds": "convert it to shards or class folders, or use wds/, hfds/ or torch/",
}


def open_source(name: str | os.PathLike[str]) -> Source:
    """Open a source of images.

    Args:
        name: a folder, ``.tar`` or image file; or ``wds/PLACE``, ``hfds/PLACE``,
            ``torch/NAME/FOLDER``, each with or without ``@SPLIT``, ``hfds`` also with
            ``@SPLIT:COLUMN`` for the column of classes. A :class:`pathlib.Path` is
            always a path.

    Raises:
        InputError: for a source that is missing, unreadable or empty.
    """
    if not isinstance(name, str):
        return _open_path(Path(name))
    prefix, slash, place = name.partition("/")
    kind = prefix.lower() if slash else ""
    if kind in _STREAMS:
        instead = _STREAMS[kind].format(place=place)
        raise InputError(f"{name}: {kind}/ is a stream, which is not supported; {instead}")
    if kind not in _KINDS:
        return _open_path(Path(name))
    split = None
    if "@" in place:
        place, _, split = place.rpartition("@")
    if not place or split == "":
        raise InputError(f"{name} is incomplete: write {kind}/PLACE or {kind}/PLACE@SPLIT")
    try:
        source = _KINDS[kind](name, place, split)
    except InputError as error:
        if Path(name).exists():
            raise InputError(f"{error}; if it is a path, write ./{name}") from error
        raise
    if not len(source):
        raise InputError(f"{name} holds no images")
    return source


def _open_path(path: Path) -> Source:
    is_image = path.suffix.lower() in Image.registered_extensions() and path.is_file()
    return OneImage(path) if is_image else open_files(path)
