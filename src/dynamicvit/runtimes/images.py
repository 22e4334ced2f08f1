"""Images to check, calibrate and compare files on: the user's, or two of scikit-learn's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dynamicvit.data import (
    UNLABELED,
    Batch,
    ImageData,
    Sampling,
    Unreadable,
    clip_eval_transform,
    eval_transform,
    frames_of,
)
from dynamicvit.data.order import spread
from dynamicvit.data.samples import panned, photographs
from dynamicvit.errors import InputError

#: Most images that a float32 file is checked on.
MAX_IMAGES = 32
#: Images to calibrate on; NNCF's default.
CALIBRATION_IMAGES = 300
#: Most images held out of those to calibrate on, to compare an int8 file on.
HELD_OUT = 200
#: Of so many images of a small source one is held out.
_SHARE = 4

Transform = Callable[[Image.Image], Tensor]
"""From an image of any mode to ``(channels, height, width)``, normalized; or of clips, from
``(clips, frames, 3, height, width)`` uint8 to one."""


def transform_for(
    model: Any, size: tuple[int, int] | None = None, crop_pct: float | None = None
) -> Any:
    """The transform for evaluation of images, or of clips, whichever a model takes.

    Args:
        model: or an exported file.
        size: height and width; by default the model's own.
        crop_pct: of the center crop; likewise.
    """
    frames = frames_of(model)
    if frames is None:
        return eval_transform(model, size, crop_pct)
    return clip_eval_transform(model, Sampling(frames), image_size=size, crop_pct=crop_pct)


class Pictures(NamedTuple):
    """Images ``(B, channels, height, width)``, normalized, and where they are from, in words."""

    images: Tensor
    origin: str


class Calibration(NamedTuple):
    """Images to calibrate on and images to compare on.

    Attributes:
        images: ``(B, channels, height, width)``, normalized.
        held_out: other images; or in batches, where they are the same.
        origin: where the images are from, in words.
        others: where those held out are from.
    """

    images: Tensor
    held_out: ImageData | list[Batch]
    origin: str
    others: str


def sample_pictures(transform: Transform) -> Pictures:
    """Scikit-learn's photographs, whole and in quarters; of clips the view wanders over each.

    Args:
        transform: of the model.

    Raises:
        InputError: if scikit-learn is not installed.
    """
    crops, frames = [], getattr(getattr(transform, "sampling", None), "frames", None)
    pictures = photographs("onnx")
    for photograph in pictures.values():
        width, height = photograph.size
        x, y = width // 2, height // 2
        boxes = [(0, 0, width, height), (0, 0, x, y), (x, 0, width, y)]
        boxes += [(0, y, x, height), (x, y, width, height)]
        parts = [photograph.crop(box) for box in boxes]
        if frames is None:
            crops += [transform(part) for part in parts]
        else:
            crops += [transform(torch.from_numpy(panned(part, frames))[None]) for part in parts]
    what = "crops" if frames is None else "clips"
    origin = f"{len(crops)} {what} of scikit-learn's {len(pictures)} photographs"
    return Pictures(torch.stack(crops), origin)


def own_pictures(data: ImageData, transform: Transform) -> Pictures:
    """Up to :data:`MAX_IMAGES` images of a source, spread over all of it.

    Raises:
        InputError: if no image can be read.
    """
    chosen = spread(np.arange(len(data)), MAX_IMAGES)
    return _read(data.with_transform(transform), chosen, "to check the exported file on")


def calibration_of(source: ImageData, transform: Transform, count: int | None) -> Calibration:
    """Images spread over a source, and others between them.

    Args:
        source: labeled or not.
        transform: of the model.
        count: images to calibrate on, fewer if the source is smaller; by default 300.

    Raises:
        InputError: for a count below one, a source of one image, or without a readable one.
    """
    count = CALIBRATION_IMAGES if count is None else count
    if count < 1:
        raise InputError(f"{count} images to calibrate on: give at least 1 image")
    if len(source) < 2:
        raise InputError(
            f"{source.root} holds {len(source)} image: give 2 or more, to calibrate and to compare"
        )
    data = source.with_transform(transform)
    held = min(HELD_OUT, max(1, len(data) // _SHARE))
    others = spread(np.arange(len(data)), held)
    chosen = spread(np.setdiff1d(np.arange(len(data)), others), count)
    images, origin = _read(data, chosen, "to calibrate on")
    return Calibration(images, source.subset(others), origin, f"others of {source.root}")


def sample_calibration(transform: Transform) -> Calibration:
    """Crops of two photographs for both: enough to time a file, not to use it."""
    images, origin = sample_pictures(transform)
    labels = torch.full((len(images),), UNLABELED)
    return Calibration(images, [Batch(images, labels)], origin, "the same")


def whole_batches(images: Tensor, batch: int | None) -> list[np.ndarray]:
    """Images to calibrate on, in arrays of ``batch`` images or of one; the rest is left out."""
    size = batch or 1
    return [part.numpy() for part in images[: len(images) // size * size].split(size)]


def _read(data: ImageData, chosen: np.ndarray, purpose: str) -> Pictures:
    found = [data[int(index)] for index in chosen]
    images = [sample.image for sample in found if not isinstance(sample, Unreadable)]
    if not images:
        raise InputError(f"{data.root} holds no readable image {purpose}")
    return Pictures(torch.stack(images), f"{len(images)} {data.noun}s of {data.root}")
