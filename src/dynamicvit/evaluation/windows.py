"""Sliding windows: the map of an image that is larger than the images a model takes."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dynamicvit.errors import InputError

#: Windows of an image that a model gets at a time.
_AT_A_TIME = 8


def sliding_windows(
    model: Callable[[Tensor], Tensor],
    image: Tensor,
    window: tuple[int, int],
    stride: tuple[int, int] | int | None = None,
) -> Tensor:
    """Logits ``(classes, height, width)`` of an image: the mean of the windows that see a pixel.

    Windows lie ``stride`` apart, the last ones at the image's border (Segmenter, Section 4.1).

    Args:
        model: logits ``(B, classes, rows, columns)`` for windows ``(B, channels, h, w)``.
        image: ``(channels, height, width)``, at least as large as a window.
        window: h and w.
        stride: down and across; by default the window's own sides: they overlap at the border only.

    Raises:
        InputError: for an image smaller than the window, or a stride that leaves pixels out.
    """
    size = image.shape[1:]
    steps = (stride, stride) if isinstance(stride, int) else stride or window
    if any(side < least for side, least in zip(size, window, strict=True)):
        raise InputError(
            f"an image of {size[0]}x{size[1]} is smaller than the window, {window[0]}x{window[1]}"
        )
    if not all(0 < step <= side for step, side in zip(steps, window, strict=True)):
        raise InputError(f"stride is 1 to the window's side, {window[0]}x{window[1]}, got {stride}")
    tops, lefts = (_starts(*three) for three in zip(size, window, steps, strict=True))
    places = [(top, left) for top in tops for left in lefts]
    total: Tensor | None = None
    seen = image.new_zeros(size, dtype=torch.float32)
    for first in range(0, len(places), _AT_A_TIME):
        some = places[first : first + _AT_A_TIME]
        views = [image[:, top : top + window[0], left : left + window[1]] for top, left in some]
        logits = F.interpolate(model(torch.stack(views)).float(), window, mode="bilinear")
        if total is None:
            total = logits.new_zeros(logits.shape[1], *size)
        for (top, left), values in zip(some, logits, strict=True):
            rows, columns = slice(top, top + window[0]), slice(left, left + window[1])
            total[:, rows, columns] += values
            seen[rows, columns] += 1
    assert total is not None  # an image has at least one window
    return total / seen


def _starts(side: int, window: int, step: int) -> list[int]:
    """Where windows begin along a side."""
    last = side - window
    return [*range(0, last, step), last]
