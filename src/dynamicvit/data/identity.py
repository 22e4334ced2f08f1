"""What tells a set of images from another, without reading their pixels."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

import numpy as np

from dynamicvit.data.images import ImageData

#: Images of a source whose names and sizes count, spread evenly over it; a million of them would
#: take minutes where a disk is far away.
SAMPLED = 2000


def images_digest(sources: Sequence[ImageData]) -> str:
    """A hash of the images' number, labels, names and sizes; not of where they lie.

    Of more than :data:`SAMPLED` images in a source, names and sizes of that many count. Pixels are
    not read: an image that is replaced by another of the same name and size goes unseen.
    """
    digest = hashlib.sha256()
    for source in sources:
        digest.update(f"{len(source)}\n".encode())
        digest.update(np.asarray(source.labels, dtype="<i8").tobytes())
        chosen = np.unique(np.linspace(0, len(source) - 1, min(len(source), SAMPLED)).round())
        # Shards count by themselves: they may lie elsewhere, and images are named inside.
        paths = source.block_names or [file for i in chosen for file in source.files(int(i))]
        # In one file, such as a tar, images have no size of their own: the file's counts.
        for path in [*paths, *(source.block_names or [str(source.root)])]:
            size = os.path.getsize(path) if os.path.isfile(path) else -1
            digest.update(os.fsencode(f"{size}\n"))
        folder = os.path.commonpath([os.path.dirname(path) for path in paths])
        digest.update(os.fsencode("\n".join(path.removeprefix(folder) for path in paths)))
    return digest.hexdigest()
