"""The files of a tar, and where it breaks off: tarfile takes a damaged header for the end."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator
from os import SEEK_END
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from dynamicvit.utils.inputs import IMAGE_BYTES, open_file

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
    with open_file(path) as file:
        found, problem = list_entries(file)
    return [entry for entry in found if not entry.name.endswith("/")], problem


def list_entries(
    file: BinaryIO, start: int = 0, size: int | None = None
) -> tuple[list[Entry], str | None]:
    """The files and folders of a tar inside a file, and why it breaks off, if it does.

    Args:
        file: open.
        start: of the tar in the file.
        size: of the tar; by default up to the file's end.

    Returns:
        Entries with positions in the file. Names of folders end with ``/``.
    """
    end = file.seek(0, SEEK_END) if size is None else start + size
    try:
        return _until_break(_plain_entries(file, start, end))
    except _NotPlainError:
        return _until_break(_all_entries(file, start, end))


def _until_break(entries: Iterable[Entry]) -> tuple[list[Entry], str | None]:
    found: list[Entry] = []
    try:
        found.extend(entries)  # keeps what came before an error
    # tarfile believes sizes and nesting: it reads, or recurses, without end.
    except (tarfile.TarError, ValueError, OverflowError, MemoryError, RecursionError) as error:
        return found, str(error) or "impossible header"
    return found, None


def read_entry(path: Path, entry: Entry) -> bytes:
    """The bytes of a file in a tar.

    Raises:
        OSError: if the tar can't be read.
        ValueError: if it is shorter than its headers say, or the file larger than an image can be.
    """
    with open_file(path) as file:
        left = file.seek(0, SEEK_END) - entry.start
        if not 0 <= entry.size <= min(left, IMAGE_BYTES):
            raise ValueError(f"{entry.size:,} bytes by its header, {max(0, left):,} are there")
        file.seek(entry.start)
        return file.read(entry.size)


class _NotPlainError(Exception):
    """A tar that needs tarfile."""


def _plain_entries(file: BinaryIO, start: int, end: int) -> Iterator[Entry]:
    """The entries of a tar of plain headers, as shards have them; five times as fast as tarfile.

    Each process that reads images pays this for each shard.
    """
    while _is_header(header := _block(file, start, end)):
        kind = header[156:157]
        try:
            size = int(header[124:136].strip(b" \0") or b"0", 8)
            name = header[:100].rstrip(b"\0").decode()
        except ValueError:  # as of a number too large for the field
            raise _NotPlainError from None
        start += BLOCK
        if size < 0:
            raise tarfile.ReadError("impossible size")
        if kind == b"x":  # more fields; times and owners don't matter
            fields = file.read(min(size, max(0, end - start)))
            if any(field in fields for field in (b" path=", b" size=", b"sparse")):
                raise _NotPlainError
        elif kind not in b"05\0" or header[345]:  # neither file nor folder, or a name in two fields
            raise _NotPlainError
        else:
            name = name.rstrip("/") + "/" if kind == b"5" else name
            yield Entry(name, start, size)
        start += _padded(size)


def _all_entries(file: BinaryIO, start: int, end: int) -> Iterator[Entry]:
    """The entries of any tar."""
    file.seek(start)
    within: Any = _Within(file, end)
    with tarfile.open(fileobj=within, mode="r:") as tar:
        before = -1
        for member in tar:
            if member.size < 0 or tar.offset <= before:
                raise tarfile.ReadError("impossible size")
            before = tar.offset
            if member.isfile() or member.isdir():
                name = member.name + ("/" if member.isdir() else "")
                yield Entry(name, member.offset_data, member.size)
        if _is_header(_block(file, tar.offset, end)):
            raise tarfile.ReadError("invalid header")


class _Within:
    """A file that ends at a position, so that no more is read than is there."""

    def __init__(self, file: BinaryIO, end: int) -> None:
        self.file, self.end = file, end
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        """Bytes from the current position."""
        left = max(0, self.end - self.tell())
        return self.file.read(left if size < 0 else min(size, left))


def _block(file: BinaryIO, start: int, end: int) -> bytes:
    """The block at a position, shorter where the tar ends."""
    file.seek(start)
    return file.read(min(BLOCK, max(0, end - start)))


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
