"""Images held out of training, to see how it goes."""

from __future__ import annotations

import numpy as np

from dynamicvit.data.images import ImageData
from dynamicvit.errors import InputError


def split(data: ImageData, fraction: float, seed: int = 0) -> tuple[ImageData, ImageData]:
    """Hold a part of a data set out: ``(rest, held out)``, each in the order of ``data``.

    Stratified: each class gives its share, to within one image. A class of a single image may
    fall on either side, and where classes are known only as images are read (shards), all do.

    Args:
        data: what to split.
        fraction: how much to hold out; ``floor(fraction · images)`` images are.
        seed: the same seed gives the same split of the same images.

    Raises:
        InputError: if the fraction is not inside (0, 1), or leaves a part empty.
    """
    if not 0 < fraction < 1:
        raise InputError(f"held-out fraction must be inside (0, 1), got {fraction}")
    random = np.random.default_rng(seed)
    classes, class_of = np.unique(data.labels, return_inverse=True)
    # Sorted by class, at random inside each, every (1/fraction)-th is taken: each class gives its
    # share without any having to be large enough for a share of its own.
    order = np.lexsort((random.random(len(data)), random.permutation(len(classes))[class_of]))
    quota = np.floor(np.arange(len(data) + 1) * fraction)
    held = np.zeros(len(data), dtype=bool)
    held[order[np.diff(quota) > 0]] = True
    if held.all() or not held.any():
        raise InputError(
            f"held-out fraction {fraction} of {len(data)} images leaves one part empty; "
            f"hold out at least {1 / len(data):.2g}"
        )
    return data.subset(np.flatnonzero(~held)), data.subset(np.flatnonzero(held))
