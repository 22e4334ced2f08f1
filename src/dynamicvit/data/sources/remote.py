"""Shards that are not on this disk: fetched when first read, and kept in a cache."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

from dynamicvit.data.decoding import one_line
from dynamicvit.errors import InputError
from dynamicvit.utils.files import atomic_write, write_text
from dynamicvit.utils.optional import need

_log = logging.getLogger(__name__)

Note = TypeVar("Note")
Found = TypeVar("Found")


class FetchError(InputError):
    """A shard that could not be fetched, in one line."""


#: Attempts that bring nothing before a shard is given up, and seconds before the second one,
#: doubled for each further one.
ATTEMPTS, WAIT = 6, 2.0
#: Seconds without a byte after which a connection is given up.
STALL = 60.0
#: Bytes of one request.
CHUNK = 16 * 2**20
#: Shards that are fetched at a time to be counted.
CONNECTIONS = 4
#: Gigabytes of shards in the cache, and seconds for which one that was used stays in any case.
LIMIT, FRESH = 20.0, 300.0
#: Seconds for which a shard that was given up is not tried again: each of its images asks for it.
GIVEN_UP = 60.0

_given_up: dict[str, tuple[float, FetchError]] = {}


def is_remote(place: str) -> bool:
    """Whether a place is a URL or ``pipe:COMMAND``, rather than a path."""
    return re.match(r"pipe:|[\w+.-]+://", place) is not None


def fetched(url: str, convert: Callable[[Path, Path], None] | None = None, kind: str = "") -> Path:
    """A shard's file in the cache, fetched if it is not there.

    Processes of one machine share the cache: each shard is fetched once, by one of them.

    Args:
        url: that fsspec opens, or ``pipe:COMMAND``, whose standard output is the shard.
        convert: writes the file to keep, its second argument, from the one fetched.
        kind: tells files apart that are converted differently.

    Raises:
        FetchError: when the last attempt has failed.
    """
    path = cached(url + kind)
    try:
        os.utime(path)  # used now
        return path
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
    since, error = _given_up.get(url, (-GIVEN_UP, None))
    if error is not None and time.monotonic() - since < GIVEN_UP:
        raise error
    with FileLock(f"{path}.lock"):
        if not path.exists():
            try:
                with atomic_write(path, ours=True) as draft:
                    raw = draft.with_name(f"{draft.name}.raw")
                    fetch(url, raw)
                    (convert or os.replace)(raw, draft)
            except FetchError as error:
                _given_up[url] = time.monotonic(), error
                raise
            _make_room(path)
    return path


def noted(urls: Sequence[str], kind: str, find: Callable[[int], Note]) -> list[Note]:
    """What is found of each shard, such as its number of images; remembered beside the cache.

    Several are looked at at a time; of several processes each begins with others.

    Args:
        urls: of the shards.
        kind: of what is found.
        find: finds it for one shard, by its place among ``urls``, as JSON can hold it.
    """

    def note(number: int) -> Note:
        path = cached(urls[number] + kind, ".json")
        if not path.exists():
            found = json.dumps(find(number))
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, found, ours=True)
        return json.loads(path.read_text())

    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    first = rank * len(urls) // processes % len(urls)
    order = [*range(first, len(urls)), *range(first)]
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        found = dict(zip(order, pool.map(note, order), strict=True))
    return [found[number] for number in range(len(urls))]


def listed(url: str, pattern: str) -> list[str]:
    """The files in a remote folder; none if there is no list of them.

    Raises:
        FetchError: if the folder can't be read.
    """
    system, source = open_url(url.rstrip("/"))
    try:
        return [system.unstrip_protocol(path) for path in system.glob(f"{source}/{pattern}")]
    except FileNotFoundError:
        return []
    except Exception as error:
        raise FetchError(f"{url} can't be listed ({one_line(error)})") from error


def cached(url: str, suffix: str = "") -> Path:
    """The path of a shard in the cache, there or not; a suffix is for what is known of it."""
    key = hashlib.sha256(url.encode()).hexdigest()[:20]
    return cache_folder() / f"{key}{suffix}"


def cache_folder() -> Path:
    """``$DYNAMICVIT_CACHE``, by default ``~/.cache/dynamicvit/shards``."""
    given = os.environ.get("DYNAMICVIT_CACHE")
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(given) if given else home / "dynamicvit" / "shards"


def open_url(url: str) -> tuple[Any, str]:
    """The file system of a URL, and its path there.

    Raises:
        InputError: if the package for this kind of URL is missing, or nothing knows it.
    """
    scheme = url.partition("://")[0]
    options: dict[str, Any] = {}
    if scheme in ("http", "https"):
        timeout = need("aiohttp", "data").ClientTimeout(
            total=None, sock_connect=STALL, sock_read=STALL
        )
        options = {"client_kwargs": {"timeout": timeout}}
    elif scheme in ("s3", "s3a"):
        need("s3fs", "s3")
        options = {"config_kwargs": {"connect_timeout": STALL, "read_timeout": STALL}}
    try:
        system, source = need("fsspec.core", "data").url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        raise InputError(f"{url} can't be opened ({one_line(error)})") from error
    system.invalidate_cache()  # of lists of files
    return system, source


def fetch(url: str, path: Path) -> None:
    """Fetch a file; after an error go on from where it was.

    Raises:
        FetchError: as :func:`retried`.
    """
    path.touch()

    def work(failed: int) -> None:
        if url.startswith("pipe:"):
            _run(url.removeprefix("pipe:"), path)
        else:
            _read(*open_url(url), path, max(1, CHUNK >> failed))

    retried(url, work, lambda: path.stat().st_size)


def retried(
    url: str, work: Callable[[int], Found], progress: Callable[[], int] = lambda: 0
) -> Found:
    """What work on a URL gives, tried again after errors.

    Args:
        url: for messages.
        work: is given the number of attempts that failed.
        progress: how far the work has come; an attempt that brings it further is not counted.

    Raises:
        FetchError: when the last attempt has failed; its cause is that failure.
    """
    failed = 0
    while True:
        before = progress()
        try:
            return work(failed)
        except InputError:
            raise
        # Of any kind: file systems have errors of their own.
        except Exception as error:
            reason = _reason(error)
            failed = 1 if progress() > before else failed + 1
            if failed >= ATTEMPTS or is_final(error):
                raise FetchError(f"{url} can't be fetched ({reason})") from error
        _log.warning("%s: %s; trying again", url, reason)
        time.sleep(WAIT * 2 ** (failed - 1))


def is_final(error: BaseException | None) -> bool:
    """Whether another attempt would fail likewise: a file missing or forbidden, or a full disk."""
    error = _own(error)
    status = getattr(error, "status", 0)
    refused = 400 <= status < 500 and status not in (408, 425, 429)
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    return refused or full or isinstance(error, FileNotFoundError | PermissionError)


def _own(error: BaseException | None) -> BaseException | None:
    """The error itself: fsspec calls all that goes wrong with an HTTP header a missing file."""
    cause = getattr(error, "__cause__", None)
    of_network = type(cause).__module__.startswith(("aiohttp", "asyncio"))
    hidden = isinstance(error, FileNotFoundError) and (of_network or isinstance(cause, OSError))
    return cause if hidden else error


def _reason(error: BaseException) -> str:
    error = _own(error) or error
    if getattr(error, "status", 0) == 404:
        return "not found"
    if isinstance(error, FileNotFoundError):
        return "not found"
    if isinstance(error, TimeoutError):
        return f"nothing came for {STALL:g} s"
    return one_line(error)


def _read(system: Any, source: str, path: Path, chunk: int) -> None:
    """Append what is missing of a file, in requests of so many bytes."""
    info = system.info(source)
    size = info.get("size")
    if size is None or not info.get("partial", True):  # a server that gives only whole files
        try:
            system.get_file(source, str(path))
            held = path.stat().st_size
            if size is not None and held != size:
                raise OSError(f"{held} bytes of {size}")
        except BaseException:
            path.write_bytes(b"")  # the next attempt brings it from the start
            raise
        return
    with open(path, "ab") as file:
        while (start := file.tell()) < size:
            content = system.cat_file(source, start=start, end=min(start + chunk, size))
            if not content:
                raise OSError(f"{start} bytes of {size}")
            file.write(content)
            file.flush()


def _run(command: str, path: Path) -> None:
    """Write a command's standard output.

    Raises:
        OSError: with the last line of its standard error, if it fails.
    """
    with open(path, "wb") as file:
        done = subprocess.run(command, shell=True, stdout=file, stderr=subprocess.PIPE)
    if done.returncode:
        path.write_bytes(b"")
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise OSError(f"exit code {done.returncode}" + (f": {said[-1]}" if said else ""))


def _limit() -> float:
    """Bytes of shards in the cache.

    Raises:
        InputError: for a ``$DYNAMICVIT_CACHE_GB`` that is no number.
    """
    given = os.environ.get("DYNAMICVIT_CACHE_GB", str(LIMIT))
    try:
        return float(given) * 1e9
    except ValueError:
        raise InputError(f"DYNAMICVIT_CACHE_GB is a number of gigabytes, got {given!r}") from None


def _make_room(newest: Path) -> None:
    """Remove the shards that were used least recently from a cache that is too large."""
    held = []
    for path in newest.parent.iterdir():
        if not path.suffix and not path.name.startswith("."):
            try:
                held.append((path.stat().st_mtime, path.stat().st_size, path))
            except FileNotFoundError:  # removed by another process
                continue
    total = sum(size for _, size, _ in held)
    for used, size, path in sorted(held):
        if total <= _limit() or time.time() - used < FRESH:
            break
        path.unlink(missing_ok=True)
        total -= size
