"""Images that tell which they are, and images that can't be read."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from dynamicvit.data import Batch


def encoded(gray: int, size: tuple[int, int] = (12, 10)) -> bytes:
    """A PNG that can be told from the others by its gray level."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (gray, gray, gray)).save(buffer, "PNG")
    return buffer.getvalue()


def write_image(path: Path, gray: int, size: tuple[int, int] = (12, 10)) -> Path:
    """An image that can be told from the others by its gray level."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (gray, gray, gray)).save(path)
    return path


def truncated_jpeg(path: Path) -> Path:
    """A photograph whose second half is missing: decoders that are lenient make it gray."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    return path


def grays(batches: Iterable[Batch]) -> list[int]:
    """The gray levels of all images, in order."""
    return [round(float(image.mean()) * 255) for batch in batches for image in batch.images]


def labels(batches: Iterable[Batch]) -> list[int]:
    return [int(label) for batch in batches for label in batch.labels]


def noise_folders(root: Path, classes: int, each: int, size: tuple[int, int] = (64, 64)) -> Path:
    """Class folders "0", "1", ... of images of noise, height and width given."""
    random = np.random.default_rng(0)
    for label in range(classes):
        for number in range(each):
            path = root / str(label) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return root
