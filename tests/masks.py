"""Scenes with masks: a bright square and a dark bar on noise, three classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ("ground", "square", "bar")


def scene(seed: int, size: tuple[int, int] = (40, 56)) -> tuple[np.ndarray, np.ndarray]:
    """``(H, W, 3)`` bytes, and ``(H, W)`` class indices with some pixels of none (255)."""
    random = np.random.default_rng(seed)
    height, width = size
    image = random.integers(90, 140, (height, width, 3), dtype=np.uint8)
    mask = np.zeros(size, np.uint8)
    top, left = random.integers(0, height - 16), random.integers(0, width - 16)
    image[top : top + 16, left : left + 16] = (250, 220, 30)
    mask[top : top + 16, left : left + 16] = 1
    row = random.integers(0, height - 6)
    image[row : row + 6] = (10, 20, 60)
    mask[row : row + 6] = 2
    mask[:, :2] = 255
    return image, mask


def write_scenes(
    root: Path, count: int = 4, split: str = "", size: tuple[int, int] = (40, 56)
) -> Path:
    """Folders ``images`` and ``masks`` and a ``classes.txt``."""
    for seed in range(count):
        image, mask = scene(seed, size)
        for name, pixels in (("images", image), ("masks", mask)):
            file = root / name / split / f"{seed}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
    (root / "classes.txt").write_text("\n".join(NAMES) + "\n")
    return root
