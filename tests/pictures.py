"""Images told apart by their gray levels, and unreadable images."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dynamicvit.data import Batch

#: For tests with workers: torch forks processes with threads, and may use more than one core.
WORKERS = pytest.mark.filterwarnings(
    "ignore:.*multi-threaded.*fork:DeprecationWarning", "ignore:This DataLoader will create"
)


def encoded(gray: int) -> bytes:
    """A PNG of one gray level."""
    buffer = io.BytesIO()
    Image.new("RGB", (12, 10), (gray, gray, gray)).save(buffer, "PNG")
    return buffer.getvalue()


def write_image(path: Path, gray: int, size: tuple[int, int] = (12, 10)) -> Path:
    """An image of one gray level."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (gray, gray, gray)).save(path)
    return path


def truncated_jpeg(path: Path) -> Path:
    """A photograph without its second half, which lenient decoders make gray."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    return path


def cut(content: bytearray, at: int) -> bytearray:
    return content[:at]


def garble(content: bytearray, at: int) -> bytearray:
    content[at : at + 512] = b"\xff" * 512
    return content


def flip(content: bytearray, at: int) -> bytearray:
    content[at] ^= 1
    return content


def class_folders(root: Path) -> Path:
    """Three classes with 2, 3 and 1 images, of gray levels 10, 11, 20, 21, 22, 30."""
    for name, levels in {"cat": (10, 11), "dog": (20, 21, 22), "eel": (30,)}.items():
        for gray in levels:
            write_image(root / name / f"{gray}.png", gray)
    return root


def grays(batches: Iterable[Batch]) -> list[int]:
    """The gray levels of all images, in order."""
    return [round(float(image.mean()) * 255) for batch in batches for image in batch.images]


def labels(batches: Iterable[Batch]) -> list[int]:
    return [int(label) for batch in batches for label in batch.labels]


def noise_folders(root: Path, classes: int, each: int, size: tuple[int, int] = (64, 64)) -> Path:
    """Class folders "0", "1", ... of images of noise; ``size`` is height and width."""
    random = np.random.default_rng(0)
    for label in range(classes):
        for number in range(each):
            path = root / str(label) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return root


def write_kinds(folder: Path, gray: np.ndarray) -> list[Path]:
    """One gray picture, with white in it, in files of every kind that loses nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(gray)
    negative = Image.fromarray(255 - gray)
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side
    frames = dict(save_all=True, append_images=[negative])
    for name, kind, options in (
        ("gray.png", image, {}),
        ("color.webp", image.convert("RGB"), {"lossless": True}),
        ("color.BMP", image.convert("RGB"), {}),
        ("ink.Tif", image.convert("CMYK"), {}),
        ("animated.gif", image, frames),
        ("animated.png", image.convert("RGB"), frames),
        ("pages.tiff", image, frames),
        ("side.png", image.transpose(Image.Transpose.ROTATE_90), {"exif": exif}),
        ("side.webp", image.convert("RGB").transpose(Image.Transpose.ROTATE_90),
         {"exif": exif, "lossless": True}),
        ("12.tif", Image.fromarray((gray * (4095 / 255)).round().astype(np.uint16)), {}),
        ("16.png", Image.fromarray(gray.astype(np.uint16) * 257), {}),
        ("16.tif", Image.fromarray(gray.astype(np.uint16) * 257), {}),
        ("float.tif", Image.fromarray((gray / 255).astype(np.float32)), {}),
        ("alpha.png", image.convert("LA"), {}),
        ("alpha.webp", image.convert("RGBA"), {"lossless": True}),
        ("palette.png", image.convert("P"), {"transparency": 255}),
    ):  # fmt: skip
        kind.save(folder / name, **options)
    return sorted(folder.iterdir())
