"""The one place where files become images: for training, evaluation, streams and pictures."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, ImageOps
from timm.data.readers.img_extensions import get_img_extensions, is_img_extension
from timm.utils import natural_key

from dynamicvit.errors import InputError


def decode(content: bytes | Path | Image.Image, mode: str = "RGB") -> Image.Image:
    """Decode an image, as it is stored.

    Args:
        content: a file's bytes, its path, or an image that is decoded already.
        mode: Pillow's, ``"RGB"`` or ``"L"`` for gray.

    Raises:
        Exception: of any kind, for a broken file: OSError, SyntaxError, ValueError, struct.error,
            zlib.error, DecompressionBombError, ...
    """
    return _decode(content, mode, upright=False)


def read_image(path: Path, mode: str = "RGB") -> Image.Image:
    """Read an image file, turned upright as its EXIF says.

    Args:
        path: the file.
        mode: Pillow's, ``"RGB"`` or ``"L"`` for gray.

    Raises:
        InputError: naming the file, if it can't be read.
    """
    try:
        return _decode(path, mode, upright=True)
    except Exception as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise InputError(f"{path} can't be read as an image ({reason})") from error


def image_files(folder: Path) -> list[Path]:
    """The image files in a folder and below; numbers in names count as numbers (2 before 10).

    Raises:
        InputError: if there are none.
    """
    found = [
        path
        for path in folder.rglob("*")
        if is_img_extension(path.suffix.lower())
        and not path.name.startswith(".")
        and path.is_file()
    ]
    if not found:
        raise InputError(f"{folder} holds no images ({', '.join(get_img_extensions())})")
    return sorted(found, key=lambda path: natural_key(str(path)))


def one_line(error: BaseException) -> str:
    """An error's message without its line breaks, or its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def _decode(content: bytes | Path | Image.Image, mode: str, *, upright: bool) -> Image.Image:
    if isinstance(content, Image.Image):
        return content.convert(mode)
    with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
        return (ImageOps.exif_transpose(image) if upright else image).convert(mode)
