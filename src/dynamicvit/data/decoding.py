"""The one decoder: files to images, for training, evaluation, export, streams and pictures.

The rule is docs/data.md's: the first picture of a file, upright, in 8 bits a channel.
"""

from __future__ import annotations

import io
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from dynamicvit.errors import InputError
from dynamicvit.utils.inputs import read_bytes

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's mode for a model of so many channels."""

MOST_ELONGATED = 200
"""How many times as long as the other a side may be: the short one is resized to a model's."""

#: Pillow names these formats, but leaves the decoding to other programs.
_NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}


def decode(content: bytes | Path | Image.Image, mode: str | None = "RGB") -> Image.Image:
    """Decode an image: its first frame, upright, in 8 bits a channel.

    Args:
        content: a file's bytes, its path, or a Pillow image of any mode.
        mode: Pillow's: ``"L"``, ``"RGB"`` or ``"RGBA"``; None for the one of them that loses
            nothing.

    Raises:
        Exception: of any kind, for a broken file: OSError, SyntaxError, ValueError, struct.error,
            zlib.error, DecompressionBombError, ...
    """
    if isinstance(content, Image.Image):
        return _in_mode(_in_8_bits(content), mode)
    file = io.BytesIO(content if isinstance(content, bytes) else read_bytes(content))
    with Image.open(file, formats=image_formats()) as image:
        check_shape(*image.size)
        found = _in_mode(_in_8_bits(image), mode)
        return found.copy() if found is image else found


def read_image(path: Path, mode: str | None = "RGB") -> Image.Image:
    """Read an image file; see :func:`decode`.

    Raises:
        InputError: for an unreadable file.
    """
    try:
        return decode(path, mode)
    except Exception as error:
        raise InputError(f"{path} can't be read as an image ({reason_of(error)})") from error


def check_shape(width: int, height: int) -> None:
    """Refuse an image that would be resized to gigabytes."""
    if max(width, height) > MOST_ELONGATED * min(width, height):
        raise ValueError(
            f"{width}x{height} pixels: one side is more than {MOST_ELONGATED} times the other"
        )


@cache
def image_formats() -> tuple[str, ...]:
    """Pillow's names of the formats that it decodes, with HEIF's if pillow-heif is installed."""
    with suppress(ImportError):
        import_module("pillow_heif").register_heif_opener()
    Image.init()
    return tuple(name for name in Image.ID if name not in _NOT_DECODED)


@cache
def image_endings() -> frozenset[str]:
    """Endings of the files that count as images, in lower case, with their dot."""
    kinds = {*image_formats(), "MPO"}  # which the JPEG decoder opens
    return frozenset(end for end, kind in Image.registered_extensions().items() if kind in kinds)


def _in_8_bits(image: Image.Image) -> Image.Image:
    """The image upright, in ``"L"``, ``"RGB"`` or ``"RGBA"``."""
    image.load()  # a broken file raises here, outside of the EXIF's errors
    image = _upright(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _scaled(image)
    if image.has_transparency_data:
        return image if image.mode == "RGBA" else image.convert("RGBA")
    if image.mode in ("1", "L"):
        return image if image.mode == "L" else image.convert("L")
    return image if image.mode == "RGB" else image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    with suppress(Exception):  # damaged EXIF says nothing about the pixels
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            return ImageOps.exif_transpose(image)
    return image


def _scaled(image: Image.Image) -> Image.Image:
    """A gray image of more than 8 bits in 8 bits."""
    values = np.asarray(image)
    values = values.astype(np.float64 if values.dtype.itemsize > 2 else np.float32)
    known = np.isfinite(values)
    low, high = _range(values[known], whole=image.mode != "F")
    values = np.where(known, values, low)
    scaled = (values - low) * (255 / (high - low or 1))
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


def _range(values: np.ndarray, whole: bool) -> tuple[float, float]:
    """The values of black and white."""
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    if whole and low >= 0 and high < 2**16:  # cameras of 10, 12 or 14 bits write 16
        return 0.0, 2.0 ** max(8, (int(high).bit_length() + 1) // 2 * 2) - 1
    return (0.0, 1.0) if not whole and low >= 0 and high <= 1 else (low, high)


def _in_mode(image: Image.Image, mode: str | None) -> Image.Image:
    """An image of 8 bits in a mode; without alpha, its transparent parts are white."""
    if mode is None or image.mode == mode:
        return image
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def one_line(error: BaseException) -> str:
    """An error's message without line breaks, or its type if it has none."""
    if isinstance(error, UnidentifiedImageError):  # its message has an address in memory
        return "not an image"
    return " ".join(str(error).split()) or type(error).__name__


def reason_of(error: BaseException) -> str:
    """Why a file failed, without its path: an OSError's reason, else the message."""
    return getattr(error, "strerror", None) or one_line(error)
