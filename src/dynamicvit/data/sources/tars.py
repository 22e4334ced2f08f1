"""Where a tar breaks off: Python's tarfile takes a damaged header for the end and says nothing."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator

BLOCK = tarfile.BLOCKSIZE


def members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members of a tar from where it stands.

    Raises:
        tarfile.TarError: after the last that can be read, if the tar does not end there.
    """
    yield from tar
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    end = tar.fileobj.read(BLOCK)
    if len(end) < BLOCK:
        raise tarfile.ReadError("unexpected end of data")
    if end.strip(b"\0"):
        raise tarfile.ReadError("invalid header")


def break_after(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str | None:
    """Why what follows a member can't be read; None if it can, to the tar's end."""
    assert tar.fileobj is not None
    tar.fileobj.seek(member.offset_data + -(-member.size // BLOCK) * BLOCK)
    try:
        with tarfile.open(fileobj=tar.fileobj, mode="r:") as rest:
            for _ in members(rest):
                pass
    except tarfile.TarError as error:
        return str(error)
    return None
