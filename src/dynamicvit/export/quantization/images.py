"""Images to calibrate on, and others to compare on."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dynamicvit.data import UNLABELED, Batch, ImageData, Loader, Unreadable
from dynamicvit.errors import InputError
from dynamicvit.export.pictures import sample_pictures

#: To calibrate on; NNCF's own number.
CALIBRATION_IMAGES = 300
#: To compare on, of a source without a validation set of its own.
HELD_OUT = 200
#: Of each so many images of a small source one is held out.
_SHARE = 4


class Calibration(NamedTuple):
    """Images to calibrate on and images to compare on.

    Attributes:
        images: ``(B, channels, height, width)``, normalized.
        held_out: others, in batches that can be gone through again.
        origin: where they are from, in words.
        others: where the others are from.
    """

    images: Tensor
    held_out: Loader | list[Batch]
    origin: str
    others: str


def calibration_images(
    source: ImageData, transform: Callable[[Image.Image], Tensor], count: int
) -> Calibration:
    """Images spread over all of a source, and others between them.

    Args:
        source: labeled or not.
        transform: from an image to ``(channels, height, width)``.
        count: images to calibrate on; fewer where a source has not so many.

    Raises:
        InputError: for a number less than one, a source of one image, or none that can be read.
    """
    if count < 1:
        raise InputError(f"calibration needs at least 1 image, got {count}")
    if len(source) < 2:
        raise InputError(
            f"{source.root} holds {len(source)} image: give more, to calibrate on and to compare on"
        )
    data = source.with_transform(transform)
    held = min(HELD_OUT, max(1, len(data) // _SHARE))
    others = _spread(np.arange(len(data)), held)
    chosen = _spread(np.setdiff1d(np.arange(len(data)), others), count)
    found = [data[int(index)] for index in chosen]
    images = [sample.image for sample in found if not isinstance(sample, Unreadable)]
    if not images:
        raise InputError(f"{source.root} holds no readable image to calibrate on")
    batches = Loader(data.subset(others), batch_size=32)
    origin = f"{len(images)} images of {source.root}"
    return Calibration(torch.stack(images), batches, origin, f"others of {source.root}")


def sample_calibration(
    transform: Callable[[Image.Image], Tensor], channels: int = 3
) -> Calibration:
    """Two photographs' crops for both: enough to time a file, not to use it."""
    images, origin = sample_pictures(transform, channels)
    labels = torch.full((len(images),), UNLABELED)
    return Calibration(images, [Batch(images, labels)], origin, "the same")


def _spread(indices: np.ndarray, count: int) -> np.ndarray:
    """Up to so many of them, evenly."""
    places = np.linspace(0, len(indices) - 1, count).round().astype(int)
    return indices[np.unique(places)]
