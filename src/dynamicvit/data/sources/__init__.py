"""Where images come from. One string names a source, with timm's prefixes for its kind."""

from __future__ import annotations

import os
from pathlib import Path

from dynamicvit.data.sources.base import UNLABELED, Source
from dynamicvit.data.sources.files import open_files
from dynamicvit.data.sources.huggingface import HuggingFace
from dynamicvit.data.sources.shards import Shards
from dynamicvit.data.sources.torch_sets import TorchSet
from dynamicvit.errors import InputError

__all__ = ["UNLABELED", "Source", "open_source"]

_KINDS = {"wds": Shards, "hfds": HuggingFace, "torch": TorchSet}
#: Streams have no order to go on in; what to take instead of each.
_STREAMS = {
    "hfids": "write hfds/{place}, which is downloaded once and then read in any order",
    "tfds": "write it as shards or class folders, or take wds/, hfds/ or torch/",
}


def open_source(name: str | os.PathLike[str]) -> Source:
    """Open a source of images.

    Args:
        name: a folder or ``.tar``; or ``wds/PLACE``, ``hfds/PLACE``, ``torch/NAME/FOLDER``, each
            with ``@SPLIT`` behind it if need be. A :class:`pathlib.Path` is always a path.

    Raises:
        InputError: if there is no such source, or it can't be opened or holds no images.
    """
    if not isinstance(name, str):
        return open_files(Path(name))
    prefix, slash, place = name.partition("/")
    kind = prefix.lower() if slash else ""
    if kind in _STREAMS:
        instead = _STREAMS[kind].format(place=place)
        raise InputError(f"{name}: {kind}/ is a stream, which is not supported; {instead}")
    if kind not in _KINDS:
        return open_files(Path(name))
    split = None
    if "@" in place:
        place, _, split = place.rpartition("@")
    if not place or split == "":
        raise InputError(f"{name} is not complete: write {kind}/PLACE or {kind}/PLACE@SPLIT")
    try:
        source = _KINDS[kind](name, place, split)
    except InputError as error:
        if Path(name).exists():
            raise InputError(f"{error}; for the path of that name write ./{name}") from error
        raise
    if not len(source):
        raise InputError(f"{name} holds no images")
    return source
