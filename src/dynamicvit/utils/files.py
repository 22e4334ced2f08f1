"""The writer of all outputs: whole files or none, and what is half-written goes.

A file is made in a folder of its own beside its place, and renamed when it is complete. That
folder is locked while its process lives: what a killed one left is taken away by the next.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import gettempdir, mkdtemp
from typing import IO

try:
    import fcntl
except ImportError:  # Windows, where what a killed process left stays
    fcntl = None

from dynamicvit.errors import InputError
from dynamicvit.utils.outputs import check_set, check_target, descriptor, is_stream

#: How folders of unfinished files begin.
UNFINISHED = ".dynamicvit-unfinished-"

#: How long a named pipe may be without a reader.
PIPE_SECONDS = 10.0


@contextmanager
def atomic_write(path: str | Path, *, start: bytes = b"", ours: bool = False) -> Iterator[Path]:
    """Yield a path to write to, which takes the place of ``path`` when the block ends.

    Links are followed, and pipes written to. If the block raises, nothing has changed.

    Args:
        path: the file; its folder must exist.
        start: as for :func:`~dynamicvit.utils.outputs.check_target`.
        ours: likewise.

    Yields:
        A path of the same name in a new folder.

    Raises:
        InputError: as ``check_target``; if nobody reads a pipe.
    """
    path = Path(path)
    check_target(path, start=start, ours=ours)
    if is_stream(path):
        with temporary_folder() as folder:
            yield folder / path.name
            with open_output(path, "wb") as stream, open(folder / path.name, "rb") as file:
                shutil.copyfileobj(file, stream)
        return
    target = Path(os.path.realpath(path))
    with _unfinished(target.parent) as folder:
        draft = folder / target.name
        with named(path):
            yield draft
        check_target(path, start=start, ours=ours)  # it may have appeared meanwhile
        draft.replace(target)


def write_text(path: str | Path, text: str, *, start: bytes = b"", ours: bool = False) -> None:
    """Write a file in UTF-8 by :func:`atomic_write`."""
    with atomic_write(path, start=start, ours=ours) as draft:
        draft.write_text(text, encoding="utf-8")


@contextmanager
def atomic_folder(folder: str | Path, main: str, *, keep: str = "") -> Iterator[Path]:
    """Yield an empty folder, whose files move into ``folder`` when the block ends.

    Files of the same name are replaced, others stay. If the block raises, nothing moves.

    Args:
        folder: made with its parents when the block ends, if absent.
        main: name of the file that tells that all are there: it moves last. If the one that it
            replaces is this library's, so are the others.
        keep: name of a file that stays as it is, if it is there.

    Raises:
        InputError: as :func:`~dynamicvit.utils.outputs.check_target`.
    """
    folder = Path(folder)
    with _unfinished(_existing(folder)) as draft:
        yield draft
        files = [file for file in draft.iterdir() if file.is_file()]
        files = [file for file in files if file.name != keep or not (folder / keep).exists()]
        folder.mkdir(parents=True, exist_ok=True)
        check_set(folder / main, [file.name for file in files])
        with _undisturbed():
            if len(files) > 1:  # after a crash rather none than a mixture
                Path(os.path.realpath(folder / main)).unlink(missing_ok=True)
            for file in sorted(files, key=lambda file: file.name == main):
                if (folder / file.name).is_symlink():  # perhaps to another disk
                    with atomic_write(folder / file.name, ours=True) as linked:
                        shutil.move(file, linked)
                else:
                    file.replace(folder / file.name)


@contextmanager
def open_output(path: str | Path, mode: str = "w") -> Iterator[IO]:
    """Open a file that is written bit by bit: what is written stays, of text whole lines.

    Args:
        path: of a file; of a pipe, or of a descriptor such as ``/dev/stdout``.
        mode: "w" for UTF-8, each line at once; or "wb".

    Raises:
        InputError: as :func:`~dynamicvit.utils.outputs.check_target`; if nobody reads a pipe.
    """
    check_target(path)
    settings = {} if "b" in mode else {"encoding": "utf-8", "buffering": 1}
    try:
        with named(path), os.fdopen(_opened(Path(path)), mode, **settings) as file:
            yield file
    except BrokenPipeError:
        raise InputError(f"{path}: its reader has gone") from None
    except OSError:
        if "b" not in mode and not is_stream(path):
            _keep_whole_lines(path)
        raise


@contextmanager
def named(path: str | Path) -> Iterator[None]:
    """Name a file in what the system says without one, as of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _keep_whole_lines(path: str | Path) -> None:
    """Cut a text after its last line's end."""
    with suppress(OSError), open(path, "rb+") as file:
        place = file.seek(0, os.SEEK_END)
        while place and file.seek(place - 1) >= 0 and file.read(1) != b"\n":
            place -= 1
        file.truncate(place)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a new folder among the system's temporary ones, removed when the block ends."""
    with _unfinished(Path(gettempdir())) as folder:
        yield folder


def remove_unfinished(folder: str | Path) -> None:
    """Remove what killed processes left where files of a folder are made; it need not be there."""
    place = _existing(Path(folder))
    with suppress(OSError), os.scandir(place) as entries:
        for entry in entries:
            if not entry.name.startswith(UNFINISHED) or not entry.is_dir(follow_symlinks=False):
                continue
            lock = _locked(entry.path)
            if lock is not None:
                shutil.rmtree(entry.path, ignore_errors=True)
                os.close(lock)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())


@contextmanager
def _unfinished(place: Path) -> Iterator[Path]:
    """A new folder for unfinished files, removed when the block ends."""
    remove_unfinished(place)
    draft, lock = None, None
    try:
        with _undisturbed():  # a signal that was held back comes at this block's end
            for _ in range(3):
                if draft is not None:
                    shutil.rmtree(draft, ignore_errors=True)
                draft = mkdtemp(prefix=UNFINISHED, dir=place)
                lock = _locked(draft)
                if lock is not None and os.path.isdir(draft):
                    break  # else a process that looks for what killed ones left was faster
        yield Path(draft or place)
    finally:
        with _undisturbed():
            if draft is not None:
                shutil.rmtree(draft, ignore_errors=True)
            if lock is not None:
                os.close(lock)


def _locked(folder: str) -> int | None:
    """A descriptor that locks a folder until it is closed; None if another process has it."""
    if fcntl is None:
        return None
    with suppress(OSError):
        opened = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return opened
        except OSError:  # locked, or on a disk without locks
            os.close(opened)
    return None


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Hold signals back for a moment."""
    if threading.current_thread() is not threading.main_thread() or sys.platform == "win32":
        yield
        return
    # By handlers: a mask is one thread's, and the system hands a signal to any other.
    came: list[int] = []
    before = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not None:
            before[number] = signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)


def _opened(path: Path) -> int:
    """A descriptor to write to; a pipe is waited for."""
    number = descriptor(path)
    if number is not None:
        sys.stdout.flush()
        return os.dup(number)
    if not path.is_fifo():
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    until = time.monotonic() + PIPE_SECONDS
    while True:
        try:
            opened = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
            os.set_blocking(opened, True)
            return opened
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
        if time.monotonic() > until:
            raise InputError(f"{path}: nobody reads this pipe")
        time.sleep(0.05)
