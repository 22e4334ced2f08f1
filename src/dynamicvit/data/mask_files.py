"""Masks as PNG files of class indices, and the colors in which classes are shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from dynamicvit.utils.files import atomic_write
from dynamicvit.utils.outputs import MARK

#: matplotlib's tab20, the ten strong colors first.
_WHEEL = bytes.fromhex(
    "1f77b4 ff7f0e 2ca02c d62728 9467bd 8c564b e377c2 7f7f7f bcbd22 17becf"
    "aec7e8 ffbb78 98df8a ff9896 c5b0d5 c49c94 f7b6d2 c7c7c7 dbdb8d 9edae5"
)


def class_colors(count: int) -> np.ndarray:
    """``(classes, 3)`` bytes, RGB; they repeat after 20."""
    wheel = np.frombuffer(_WHEEL, np.uint8).reshape(-1, 3)
    return wheel[np.arange(count) % len(wheel)]


def write_mask(path: Path, mask: Tensor, *, first: int = 0) -> None:
    """Write class indices as :class:`~dynamicvit.data.MaskData` reads them.

    Up to 256 are a PNG with a palette, in which the lowest value is black.

    Args:
        path: ends in ``.png``; its folder is made.
        mask: ``(H, W)`` class indices.
        first: value of class 0; 1 where 0 is for no class.
    """
    values = mask.cpu().numpy() + first
    mark = PngInfo()
    mark.add_text("Software", MARK)
    if values.max() < 256:
        image = Image.fromarray(values.astype(np.uint8), "L")
        colors = np.roll(class_colors(256), first, axis=0)
        colors[0] = 0
        image.putpalette(colors.tobytes())
    else:
        image = Image.fromarray(values.astype(np.uint16))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as draft:
        image.save(draft, pnginfo=mark)
