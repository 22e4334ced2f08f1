"""An image as people see it."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageOps

from dynamicvit.data.sources.base import one_line
from dynamicvit.errors import InputError


def read_upright(path: Path, mode: str = "RGB") -> Image.Image:
    """Read an image, turned as its EXIF says.

    Args:
        path: its file.
        mode: Pillow's, ``"RGB"`` or ``"L"`` for gray.

    Raises:
        InputError: naming the file, if it can't be read.
    """
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert(mode)
    # Broken files raise whatever the decoder stumbles over: OSError, SyntaxError, ValueError,
    # struct.error, zlib.error, DecompressionBombError ...
    except Exception as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise InputError(f"{path} can't be read as an image ({reason})") from error
