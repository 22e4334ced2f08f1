"""Files to images, for training, evaluation, streams and pictures."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, ImageOps
from timm.data.readers.img_extensions import get_img_extensions, is_img_extension
from timm.utils import natural_key

from dynamicvit.errors import InputError


def decode(
    content: bytes | Path | Image.Image, mode: str = "RGB", *, upright: bool = False
) -> Image.Image:
    """Decode an image.

    Args:
        content: a file's bytes, its path, or a decoded image.
        mode: Pillow's, ``"RGB"`` or ``"L"`` for gray.
        upright: turn a file's image as its EXIF says.

    Raises:
        Exception: of any kind, for a broken file: OSError, SyntaxError, ValueError, struct.error,
            zlib.error, DecompressionBombError, ...
    """
    if isinstance(content, Image.Image):
        return content.convert(mode)
    with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
        return (ImageOps.exif_transpose(image) if upright else image).convert(mode)


def read_image(path: Path, mode: str = "RGB") -> Image.Image:
    """Read an image file, upright, in Pillow's mode ``"RGB"`` or ``"L"`` for gray.

    Raises:
        InputError: for an unreadable file.
    """
    try:
        return decode(path, mode, upright=True)
    except Exception as error:
        raise InputError(f"{path} can't be read as an image ({reason_of(error)})") from error


def image_files(folder: Path) -> list[Path]:
    """The image files in a folder and below in natural order (2 before 10).

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
    """An error's message without line breaks, or its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def reason_of(error: BaseException) -> str:
    """Why a file failed, without its path: an OSError's reason, else the message."""
    return getattr(error, "strerror", None) or one_line(error)
