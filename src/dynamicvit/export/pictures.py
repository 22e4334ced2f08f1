"""Images to check an exported file on: the user's, or photographs that are installed anyway."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from dynamicvit.data import ImageData, Unreadable
from dynamicvit.errors import InputError

#: More images of a user's folder than these are not looked at.
MAX_IMAGES = 32


class Pictures(NamedTuple):
    """What a file is checked on.

    Attributes:
        images: ``(B, channels, height, width)``, normalized.
        origin: where they are from, in words.
    """

    images: Tensor
    origin: str


def sample_pictures(transform: Callable[[Image.Image], Tensor], channels: int = 3) -> Pictures:
    """Scikit-learn's photographs, whole and in quarters.

    Args:
        transform: from an image to ``(channels, height, width)``.
        channels: 1 for gray ones.
    """
    crops = []
    photographs = load_sample_images().images
    for pixels in photographs:
        photograph = Image.fromarray(pixels).convert("L" if channels == 1 else "RGB")
        width, height = photograph.size
        x, y = width // 2, height // 2
        boxes = [(0, 0, width, height), (0, 0, x, y), (x, 0, width, y)]
        boxes += [(0, y, x, height), (x, y, width, height)]
        crops += [transform(photograph.crop(box)) for box in boxes]
    origin = f"{len(crops)} crops of scikit-learn's {len(photographs)} photographs"
    return Pictures(torch.stack(crops), origin)


def own_pictures(data: ImageData, transform: Callable[[Image.Image], Tensor]) -> Pictures:
    """Up to :data:`MAX_IMAGES` images of a source, spread over all of it.

    Args:
        data: the source's images.
        transform: from an image to ``(channels, height, width)``.

    Raises:
        InputError: if there is no readable image.
    """
    data = data.with_transform(transform)
    chosen = np.unique(np.linspace(0, len(data) - 1, MAX_IMAGES).round().astype(int))
    found = [data[int(index)] for index in chosen]
    images = [sample.image for sample in found if not isinstance(sample, Unreadable)]
    if not images:
        raise InputError(f"{data.root} holds no readable image to check the exported file on")
    return Pictures(torch.stack(images), f"{len(images)} images of {data.root}")
