"""Images to check, calibrate and compare files on: the user's, or two installed photographs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dynamicvit.data import UNLABELED, Batch, ImageData, Loader, Unreadable
from dynamicvit.errors import InputError
from dynamicvit.utils.optional import need

#: A float32 file is checked on at most so many.
MAX_IMAGES = 32
#: To calibrate on; NNCF's own number.
CALIBRATION_IMAGES = 300
#: To compare an int8 file on, of a source without a validation set of its own.
HELD_OUT = 200
#: Of each so many images of a small source one is held out.
_SHARE = 4

Transform = Callable[[Image.Image], Tensor]
"""From an image to ``(channels, height, width)``, normalized."""


class Pictures(NamedTuple):
    """Images, and where they are from.

    Attributes:
        images: ``(B, channels, height, width)``, normalized.
        origin: in words.
    """

    images: Tensor
    origin: str


class Calibration(NamedTuple):
    """Images to calibrate on and images to compare on.

    Attributes:
        images: ``(B, channels, height, width)``, normalized.
        held_out: others, in batches that can be read again.
        origin: where the images are from, in words.
        others: where the others are from.
    """

    images: Tensor
    held_out: Loader | list[Batch]
    origin: str
    others: str


def sample_pictures(transform: Transform, channels: int = 3) -> Pictures:
    """Scikit-learn's photographs, whole and in quarters.

    Args:
        transform: of the model.
        channels: 1 for gray ones.

    Raises:
        InputError: if scikit-learn is not installed.
    """
    crops = []
    photographs = need("sklearn.datasets", "onnx").load_sample_images().images
    for pixels in photographs:
        photograph = Image.fromarray(pixels).convert("L" if channels == 1 else "RGB")
        width, height = photograph.size
        x, y = width // 2, height // 2
        boxes = [(0, 0, width, height), (0, 0, x, y), (x, 0, width, y)]
        boxes += [(0, y, x, height), (x, y, width, height)]
        crops += [transform(photograph.crop(box)) for box in boxes]
    origin = f"{len(crops)} crops of scikit-learn's {len(photographs)} photographs"
    return Pictures(torch.stack(crops), origin)


def own_pictures(data: ImageData, transform: Transform) -> Pictures:
    """Up to :data:`MAX_IMAGES` images of a source, spread over all of it.

    Raises:
        InputError: if no image can be read.
    """
    chosen = _spread(np.arange(len(data)), MAX_IMAGES)
    return _read(data.with_transform(transform), chosen, "to check the exported file on")


def calibration_of(source: ImageData, transform: Transform, count: int) -> Calibration:
    """Images spread over all of a source, and others between them.

    Args:
        source: labeled or not.
        transform: of the model.
        count: images to calibrate on; fewer where a source has not so many.

    Raises:
        InputError: for a number less than one, a source of one image, or none that can be read.
    """
    if count < 1:
        raise InputError(f"{count} images to calibrate on: give at least 1 image")
    if len(source) < 2:
        raise InputError(
            f"{source.root} holds {len(source)} image: give more, to calibrate on and to compare on"
        )
    data = source.with_transform(transform)
    held = min(HELD_OUT, max(1, len(data) // _SHARE))
    others = _spread(np.arange(len(data)), held)
    chosen = _spread(np.setdiff1d(np.arange(len(data)), others), count)
    images, origin = _read(data, chosen, "to calibrate on")
    batches = Loader(data.subset(others), batch_size=32)
    return Calibration(images, batches, origin, f"others of {source.root}")


def sample_calibration(transform: Transform, channels: int = 3) -> Calibration:
    """Two photographs' crops for both: enough to time a file, not to use it."""
    images, origin = sample_pictures(transform, channels)
    labels = torch.full((len(images),), UNLABELED)
    return Calibration(images, [Batch(images, labels)], origin, "the same")


def _spread(indices: np.ndarray, count: int) -> np.ndarray:
    """Up to so many of them, evenly."""
    places = np.linspace(0, len(indices) - 1, count).round().astype(int)
    return indices[np.unique(places)]


def _read(data: ImageData, chosen: np.ndarray, purpose: str) -> Pictures:
    found = [data[int(index)] for index in chosen]
    images = [sample.image for sample in found if not isinstance(sample, Unreadable)]
    if not images:
        raise InputError(f"{data.root} holds no readable image {purpose}")
    return Pictures(torch.stack(images), f"{len(images)} images of {data.root}")
