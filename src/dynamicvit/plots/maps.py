"""Maps of classes over their images, for the figure of a segmentation model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

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
    title: str, images: Tensor, logits: Tensor, names: Sequence[str] | None = None
) -> Overlay:
    """A map of classes over each image; class 0 stays as it is, as most call it background.

    Args:
        title: whose map it is.
        images: ``(B, C, H, W)`` in [0, 1].
        logits: ``(B, classes, rows, columns)``.
        names: of the classes.
    """
    rgb = torch.stack([as_rgb(image.detach().float().cpu()) for image in images])
    wide = F.interpolate(logits.detach().float().cpu(), rgb.shape[2:], mode="bilinear")
    found = wide.argmax(dim=1)
    colors = _colors(logits.shape[1])[found].movedim(-1, 1)
    painted = torch.lerp(rgb, colors, _OPACITY)
    pictures = torch.where(found[:, None] == 0, rgb, painted)
    words = [_words(one, names or ()) for one in found]
    classes = len(found.unique())
    return Overlay((title, f"{classes} class{'es' * (classes > 1)}"), pictures, words)


def _colors(count: int) -> Tensor:
    """``(classes, 3)``: those of matplotlib's tab20, the strong ones first."""
    from matplotlib import colormaps

    wheel = torch.tensor(colormaps["tab20"].colors)
    order = [*range(0, 20, 2), *range(1, 20, 2)]
    return wheel[[order[index % 20] for index in range(count)]].float()


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
