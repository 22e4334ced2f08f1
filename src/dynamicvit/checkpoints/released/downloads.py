"""Get a released checkpoint: once, whole, and of the network that it should be."""

from __future__ import annotations

import http.client
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from dynamicvit._version import __version__
from dynamicvit.checkpoints.released.recognize import recognize
from dynamicvit.checkpoints.released.zoo import PROJECT_PAGE, Release, release_of
from dynamicvit.errors import InputError
from dynamicvit.utils.weights import first_line

#: Seconds without a byte after which a server counts as gone.
TIMEOUT = 30.0
_CHUNK = 1 << 20


def download(name: str, folder: str | Path | None = None) -> Path:
    """The file of a release: from the cache, or downloaded into it under a progress bar.

    What an interrupted download has left is gone on with. The file gets its name only once it is
    complete and holds the network that it should. One in the cache that doesn't is downloaded
    again, and replaced once the new one is there.

    Args:
        name: of the release, such as ``"deit-s-0.7"``.
        folder: the cache; by default that of torch.hub, which ``TORCH_HOME`` and
            ``XDG_CACHE_HOME`` move.

    Raises:
        InputError: for a name that is none; or saying why the file can't be had, and where else it
            may be.
    """
    release = release_of(name)
    folder = Path(torch.hub.get_dir()) / "checkpoints" if folder is None else Path(folder)
    path = folder / release.file_name
    broken = _problem(release, path) if path.is_file() else ""
    if path.is_file() and not broken:
        return path
    partial = path.with_name(f"{path.name}.partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _bar(release.name) as advance:
            _fetch(release.url, partial, advance)
        _check(release, partial)
        partial.replace(path)
        _tag_of(partial).unlink(missing_ok=True)
    except _NETWORK as error:
        cached = f" (and {path} in the cache is of no use: {broken})" if broken else ""
        raise _failed(release, _reason(error) + cached) from error
    except OSError as error:
        raise InputError(
            f"{folder}: can't be written ({first_line(error)}); TORCH_HOME names another place"
        ) from error
    return path


class _BrokenOffError(Exception):
    """The server sent something else than the file, or not all of it."""


_NETWORK = (
    urllib.error.URLError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
    _BrokenOffError,
)


def _failed(release: Release, reason: str) -> InputError:
    return InputError(
        f"{release.name}: {release.url}: {reason}; other places are {release.mirror} and "
        f"{PROJECT_PAGE}; with the file: dynamicvit convert FILE --keep-ratio "
        f"{release.keep_ratio} --out DIR"
    )


def _reason(error: Exception) -> str:
    """What went wrong, in a few words."""
    if isinstance(error, urllib.error.HTTPError):
        return f"the server says {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        error = error.reason
    if isinstance(error, socket.gaierror):
        return f"no such server, or no network ({first_line(error)})"
    if isinstance(error, TimeoutError):
        return f"no answer for {TIMEOUT:g} s"
    return first_line(error)


def _check(release: Release, partial: Path) -> None:
    """Raise, and throw the file away, unless it is a checkpoint of the release's architecture."""
    problem = _problem(release, partial)
    if problem:
        partial.unlink()
        _tag_of(partial).unlink(missing_ok=True)
        raise _BrokenOffError(f"what came is no {release.architecture.name}: {problem}")


def _problem(release: Release, file: Path) -> str:
    """Why the file is no checkpoint of the release's architecture; empty if it is one."""
    try:
        found = recognize(file, release.keep_ratio)
    except InputError as error:
        return str(error).removeprefix(f"{file}: ")
    return "" if found.architecture == release.architecture else f"it is a {found.name}"


# ---------------------------------------------------------------- transfer

Advance = Callable[[int, int | None], None]
"""Told how many bytes are there, and of how many if that is known."""


def _fetch(url: str, partial: Path, advance: Advance) -> None:
    """Complete the partial file, from where it ends if the server can."""
    start = partial.stat().st_size if partial.exists() else 0
    tag = _tag_of(partial)
    try:
        response = _open(url, start, tag.read_text("ascii") if tag.exists() else "")
    except urllib.error.HTTPError as error:
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE or not start:
            raise
        if error.headers.get("Content-Range") == f"bytes */{start}":
            return  # it was complete
        response = _open(url)
    with response:
        if response.headers.get_content_type() == "text/html":
            raise _BrokenOffError("a web page came in place of the file")
        if not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            start = 0  # the server sends all of it again
        if not start:
            _note(tag, response.headers.get("ETag", ""))
        length = response.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        size, broken = start, False
        with partial.open("r+b" if start else "wb") as file:
            file.seek(start)
            while not broken:
                chunk, broken = _read(response)
                if not chunk:
                    break
                file.write(chunk)
                size += len(chunk)
                advance(size, total)
    if broken or (total is not None and size < total):
        there = f"{size} bytes" if total is None else f"{size} of {total} bytes"
        raise _BrokenOffError(f"broke off after {there}; run it again to go on")


def _tag_of(partial: Path) -> Path:
    """Where the server's tag of the file is kept as long as the file is not complete."""
    return partial.with_name(f"{partial.name}.etag")


def _note(tag: Path, etag: str) -> None:
    """Keep the tag of a download that begins, if it is one that vouches for every byte."""
    if etag.startswith('"'):
        tag.write_text(etag, "ascii")
    else:
        tag.unlink(missing_ok=True)


def _open(url: str, start: int = 0, etag: str = "") -> Any:
    headers = {"User-Agent": f"dynamicvit/{__version__}"}
    if start:
        headers["Range"] = f"bytes={start}-"
    if start and etag:
        headers["If-Range"] = etag  # all of it, where the server has another file by now
    request = urllib.request.Request(url, headers=headers)
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()  # it is the response too, and what it says is read already
        raise


def _read(response: http.client.HTTPResponse) -> tuple[bytes, bool]:
    """The next bytes, none at the end; and whether the connection broke."""
    try:
        return response.read(_CHUNK), False
    except http.client.IncompleteRead as error:
        return error.partial, True
    except (ConnectionError, TimeoutError):
        return b"", True


@contextmanager
def _bar(name: str) -> Iterator[Advance]:
    """A progress bar on standard error, on a terminal only."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task(name, total=None)
        yield lambda size, total: progress.update(task, completed=size, total=total)
