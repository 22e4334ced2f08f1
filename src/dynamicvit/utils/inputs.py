"""Files that are read: never a pipe or a device, which may have no end, and no more than fits."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

#: Bytes of a text that is read whole (configs, recipes, class maps), and of an image.
TEXT_BYTES = 64 << 20
IMAGE_BYTES = 1 << 30


def open_file(path: str | Path) -> BinaryIO:
    """Open a file to read its bytes.

    Raises:
        OSError: if it can't be; for a pipe, a device or a socket, at once.
    """
    check_file_type(path)
    return os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb")


def check_file_type(path: str | Path) -> None:
    """Check that a path is no pipe, device or socket.

    Raises:
        OSError: if it is, or can't be looked at.
    """
    mode = os.stat(path).st_mode
    for kind, name in (
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
        (stat.S_ISSOCK, "a socket"),
    ):
        if kind(mode):
            raise OSError(errno.EINVAL, f"{name}, not a file", str(path))


def is_file(path: str | Path) -> bool:
    """Whether a path, which may be any text, is of a file that can be looked at."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # a name that is too long, or holds a null
        return False


def read_bytes(path: str | Path, limit: int = IMAGE_BYTES) -> bytes:
    """The bytes of a file.

    Raises:
        OSError: as :func:`open_file`; for more bytes than the limit.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        content = b"" if size > limit else file.read(limit + 1)
    if size > limit or len(content) > limit:
        size = max(size, len(content))
        raise OSError(errno.EFBIG, f"{size:,} bytes are too many, {limit:,} at most", str(path))
    return content


def read_text(path: str | Path, limit: int = TEXT_BYTES) -> str:
    """The text of a file in UTF-8.

    Raises:
        OSError: as :func:`read_bytes`.
        UnicodeDecodeError: for other bytes.
    """
    return read_bytes(path, limit).decode("utf-8")
