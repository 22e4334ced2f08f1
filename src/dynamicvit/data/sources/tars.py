"""What is in a tar, and where it breaks off: tarfile takes a damaged header for the end of it."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

BLOCK = tarfile.BLOCKSIZE


class Entry(NamedTuple):
    """A file in a tar, and where its bytes are."""

    name: str
    start: int
    size: int


def list_files(path: Path) -> tuple[list[Entry], str | None]:
    """The files in an uncompressed tar, and why it ends before it should, if it does.

    Before such a break the last file may be cut.

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
    """Why what follows a member can't be read; None if it can, to the tar's end."""
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
    """A tar has what only tarfile understands."""


def _plain_files(file: BinaryIO) -> Iterator[Entry]:
    """The files of a tar whose headers say all in their first fields, as those of shards do.

    Five times as fast as tarfile; each process that reads images pays this for each shard.
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
        except ValueError:  # a number too large for the field is written otherwise
            raise _NotPlainError from None
        start += BLOCK
        if kind == b"x":  # more fields; times and owners are of no matter
            fields = file.read(size)
            if any(field in fields for field in (b" path=", b" size=", b"sparse")):
                raise _NotPlainError
        elif kind not in b"0\0" or header[345]:  # no plain file, or a name in two fields
            raise _NotPlainError
        else:
            yield Entry(name, start, size)
        start += _padded(size)


def _all_files(file: BinaryIO) -> Iterator[Entry]:
    """The files of a tar, whatever it is, from where the file stands."""
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            if member.isfile():
                yield Entry(member.name, member.offset_data, member.size)
        file.seek(tar.offset)
        if _is_header(file.read(BLOCK)):
            raise tarfile.ReadError("invalid header")


def _is_header(block: bytes) -> bool:
    """Whether a block is a header; else it is the mark of a tar's end.

    Raises:
        tarfile.ReadError: if it is neither.
    """
    if len(block) < BLOCK:
        raise tarfile.ReadError("unexpected end of data")
    if block == bytes(BLOCK):
        return False
    # The sum of all bytes, those of the sum itself taken for spaces.
    total = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    try:
        if int(block[148:156].strip(b" \0"), 8) == total:
            return True
    except ValueError:
        pass
    raise tarfile.ReadError("invalid header")


def _padded(size: int) -> int:
    """Files fill whole blocks."""
    return -(-size // BLOCK) * BLOCK
