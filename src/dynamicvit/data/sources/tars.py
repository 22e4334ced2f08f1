"""The files of a tar, and where it breaks off: tarfile takes a damaged header for the end."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

BLOCK = tarfile.BLOCKSIZE


class Entry(NamedTuple):
    """A file in a tar, and the position of its bytes."""

    name: str
    start: int
    size: int


def list_files(path: Path) -> tuple[list[Entry], str | None]:
    """The files of an uncompressed tar, and why it breaks off, if it does.

    The last file before a break may be cut.

    Raises:
        OSError: if the tar can't be read.
    """
    with open(path, "rb") as file:
        try:
            return _until_break(_plain_files(file))
        except _NotPlainError:
            file.seek(0)
            return _until_break(_all_files(file))


def break_after(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str | None:
    """Why the part after a member is unreadable; None if it is readable to the tar's end."""
    assert tar.fileobj is not None
    tar.fileobj.seek(member.offset_data + _padded(member.size))
    _, problem = _until_break(_all_files(tar.fileobj))
    return problem


def _until_break(entries: Iterable[Entry]) -> tuple[list[Entry], str | None]:
    found: list[Entry] = []
    try:
        found.extend(entries)  # keeps what came before an error
    except tarfile.TarError as error:
        return found, str(error)
    return found, None


class _NotPlainError(Exception):
    """A tar that needs tarfile."""


def _plain_files(file: BinaryIO) -> Iterator[Entry]:
    """The files of a tar of plain headers, as shards have them; five times as fast as tarfile.

    Each process that reads images pays this for each shard.
    """
    start = 0
    while True:
        file.seek(start)
        header = file.read(BLOCK)
        if not _is_header(header):
            return
        kind = header[156:157]
        try:
            size = int(header[124:136].strip(b" \0") or b"0", 8)
            name = header[:100].rstrip(b"\0").decode()
        except ValueError:  # as of a number too large for the field
            raise _NotPlainError from None
        start += BLOCK
        if kind == b"x":  # more fields; times and owners don't matter
            fields = file.read(size)
            if any(field in fields for field in (b" path=", b" size=", b"sparse")):
                raise _NotPlainError
        elif kind not in b"0\0" or header[345]:  # not a plain file, or a name in two fields
            raise _NotPlainError
        else:
            yield Entry(name, start, size)
        start += _padded(size)


def _all_files(file: BinaryIO) -> Iterator[Entry]:
    """The files of any tar, from the file's current position."""
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            if member.isfile():
                yield Entry(member.name, member.offset_data, member.size)
        file.seek(tar.offset)
        if _is_header(file.read(BLOCK)):
            raise tarfile.ReadError("invalid header")


def _is_header(block: bytes) -> bool:
    """Whether a block is a header, rather than the end of the tar.

    Raises:
        tarfile.ReadError: if it is neither.
    """
    if len(block) < BLOCK:
        raise tarfile.ReadError("unexpected end of data")
    if block == bytes(BLOCK):
        return False
    # The checksum, with its own bytes as spaces.
    total = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    try:
        if int(block[148:156].strip(b" \0"), 8) == total:
            return True
    except ValueError:
        pass
    raise tarfile.ReadError("invalid header")


def _padded(size: int) -> int:
    """A size rounded up to whole blocks."""
    return -(-size // BLOCK) * BLOCK
