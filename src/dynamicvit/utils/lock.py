"""One owner for a folder: two runs that write into it at once would each lose what it wrote."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from dynamicvit.errors import InputError
from dynamicvit.utils.distributed import Processes

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there
    fcntl: Any = None

_log = logging.getLogger(__name__)

#: The file that is locked; it names the owner.
LOCK_NAME = ".dynamicvit.lock"

#: Folders that this thread owns: what it calls may own them again.
_owned: ContextVar[frozenset[Path]] = ContextVar("owned", default=frozenset())
#: Descriptors of locked files in this process.
_held: set[int] = set()


@contextmanager
def owned(folder: str | Path, processes: Processes | None = None) -> Iterator[None]:
    """Own a folder while the block runs; the system frees it if this process dies.

    Args:
        folder: made if it is missing, and taken back if it is empty in the end.
        processes: of a distributed run; the main one owns the folder for all, and all fail if it
            can't.

    Raises:
        InputError: if another process owns it, which is named; if the folder can't be made.
    """
    folder, processes = Path(folder), Processes() if processes is None else processes
    name = folder.resolve()
    if name in _owned.get():
        yield
        return
    problem, is_new, descriptor = None, not folder.exists(), None
    if processes.is_main:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = _lock(folder / LOCK_NAME)
        except OSError as error:
            problem = f"{folder} can't be written ({error.strerror})"
        except InputError as error:
            problem = str(error)
    problem = processes.gather(problem)[0]
    if problem is not None:
        raise InputError(problem)
    token = _owned.set(_owned.get() | {name})
    try:
        yield
    finally:
        _owned.reset(token)
        if descriptor in _held:  # not in a process that was forked meanwhile
            with suppress(OSError):
                (folder / LOCK_NAME).unlink()
            _close(descriptor)
            with suppress(OSError):  # it is not empty
                if is_new:
                    folder.rmdir()


def refuse_owned(folder: str | Path) -> None:
    """Find out before the work whether another process owns a folder; nothing is written.

    Raises:
        InputError: if one does.
    """
    is_main = os.environ.get("RANK", "0") == "0"  # which may own it already, for this one too
    path = Path(folder) / LOCK_NAME
    if is_main and fcntl is not None and Path(folder).resolve() not in _owned.get():
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDWR)
            try:
                _take(descriptor, path)
            finally:
                os.close(descriptor)


def _lock(path: Path) -> int | None:
    """The descriptor of a file that is locked and names this process; None without locks."""
    if fcntl is None:
        return None
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _take(descriptor, path):
                os.close(descriptor)
                return None
            # The owner before may have removed the file after it was opened here.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    os.truncate(descriptor, 0)
                    os.write(descriptor, json.dumps(_myself()).encode())
                    _held.add(descriptor)
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _take(descriptor: int, path: Path) -> bool:
    """Lock a file; whether its file system has locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(
            f"{path.parent} is in use by {_owner(descriptor)}: wait for it, or choose another "
            "folder"
        ) from None
    except OSError as error:
        _log.warning("%s can't be locked (%s): start no other run there", path.parent, error)
        return False
    return True


def _myself() -> dict[str, Any]:
    words = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
    return {"pid": os.getpid(), "host": socket.gethostname(), "command": " ".join(words)}


def _owner(descriptor: int) -> str:
    """What to call the process that locked a file."""
    try:
        owner = json.loads(os.pread(descriptor, 10_000, 0))
        where = "" if owner["host"] == socket.gethostname() else f" on {owner['host']}"
        return f"process {owner['pid']}{where} ({owner['command']})"
    except (ValueError, LookupError, TypeError):  # it is just about to write it
        return "another process"


def _close(descriptor: int) -> None:
    _held.discard(descriptor)
    with suppress(OSError):
        os.close(descriptor)


def _let_go() -> None:
    """A process that is forked must not keep a folder locked when its parent has died."""
    for descriptor in [*_held]:
        _close(descriptor)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
