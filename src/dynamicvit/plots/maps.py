"""Maps of classes over their images, for the figure of a segmentation model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from dynamicvit.data.mask_files import class_colors
from dynamicvit.plots.patches import as_rgb

#: How much of a pixel is its class's color.
_OPACITY = 0.55
#: A class is named on the picture from this share of the pixels on.
_NAMED = 0.01


class Overlay(NamedTuple):
    """A column of the figure.

    Attributes:
        title: above it, in two lines.
        pictures: ``(B, 3, H, W)`` in [0, 1].
        words: for each picture the names on it, with column and row in pixels.
    """

    title: tuple[str, str]
    pictures: Tensor
    words: list[list[tuple[int, int, str]]]


def overlay(
    title: str, images: Tensor, found: Tensor, names: Sequence[str] | None = None
) -> Overlay:
    """A map of classes over each image; class 0 stays as it is, as most call it background.

    Args:
        title: whose map it is.
        images: ``(B, C, H, W)`` in [0, 1].
        found: the map: logits ``(B, classes, rows, columns)``, or classes ``(B, H, W)``, of which
            those below 0 are none.
        names: of the classes.
    """
    rgb = torch.stack([as_rgb(image.detach().float().cpu()) for image in images])
    if found.ndim == 4:
        wide = F.interpolate(found.detach().float().cpu(), rgb.shape[2:], mode="bilinear")
        found = wide.argmax(dim=1)
    classes = int((found.unique() >= 0).sum())
    found = found.clamp(min=0)
    pictures = painted(rgb, found)
    words = [_words(one, names or ()) for one in found]
    return Overlay((title, f"{classes} class{'es' * (classes > 1)}"), pictures, words)


def paint(picture: Image.Image, found: Tensor, names: Sequence[str] = ()) -> Image.Image:
    """A picture under the colors of its classes, with their names.

    Args:
        picture: in RGB.
        found: ``(H, W)`` classes of its pixels.
        names: of the classes.
    """
    rgb = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
    mixed = (255 * painted(rgb[None], found[None])[0]).round().to(torch.uint8)
    shown = Image.fromarray(mixed.permute(1, 2, 0).numpy())
    draw = ImageDraw.Draw(shown)
    for column, row, name in _words(found, names):
        draw.text((column, row), name, fill="white", stroke_width=2, stroke_fill="black")
    return shown


def painted(rgb: Tensor, found: Tensor) -> Tensor:
    """Images ``(B, 3, H, W)`` in [0, 1] under the colors of the classes ``(B, H, W)``."""
    colors = torch.from_numpy(class_colors(int(found.max()) + 1)).float() / 255
    mixed = torch.lerp(rgb, colors[found].movedim(-1, 1), _OPACITY)
    return torch.where(found[:, None] == 0, rgb, mixed)


def _words(found: Tensor, names: Sequence[str]) -> list[tuple[int, int, str]]:
    """Where each class but the first is named: its pixel that is nearest to its center."""
    words = []
    for index in found.unique().tolist():
        places = (found == index).nonzero().float()
        if index == 0 or index >= len(names) or len(places) < _NAMED * found.numel():
            continue
        nearest = (places - places.mean(dim=0)).square().sum(dim=1).argmin()
        row, column = places[nearest].int().tolist()
        words.append((column, row, names[index]))
    return words
