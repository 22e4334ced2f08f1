"""Processes that read images, and what to say when one of them dies."""

from __future__ import annotations

import atexit
import multiprocessing.util  # noqa: F401 (before atexit below: the last registered ends first)
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from tempfile import gettempdir
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from torch.utils.data import DataLoader

from dynamicvit.data.decoding import one_line
from dynamicvit.errors import InputError

T = TypeVar("T")

#: How torch says that a process died, or that there was no memory to share what it had read.
_DEATH = re.compile(r"DataLoader worker \(pid|shared memory|/torch_|No space left")

#: Bytes of a folder in which multiprocessing makes sockets: their paths have 108, of which
#: ``/pymp-????????/listener-????????`` takes 32, and a zero one.
_LONGEST = 75


class ReaderError(InputError):
    """A process that reads images was killed, has crashed, or could not be started."""


def batches_of(loader: DataLoader[T]) -> Iterator[T]:
    """The batches of a loader; the death of one of its processes is an error of the next batch.

    Raises:
        ReaderError: instead of what torch raises, in one line.
        InputError: if the folder of temporary files has too long a name for sockets.
    """
    if not loader.num_workers:
        yield from loader
        return
    folder = gettempdir()
    if len(os.fsencode(folder)) > _LONGEST:  # then every batch is lost, and waited for without end
        raise InputError(
            f"TMPDIR {folder} is longer than the {_LONGEST} bytes that sockets allow: set a "
            "shorter one, or --workers 0"
        )
    with _signals.held_back():
        with _readable(), _signals:
            batches = iter(loader)
        _started.update(dict.fromkeys(getattr(batches, "_workers", ()), os.getpid()))
        try:
            while True:
                try:
                    with _readable(), _signals:
                        batch = next(batches)
                except StopIteration:
                    return
                yield batch
        finally:  # or the end of the other readers would raise the error again, anywhere
            batches._shutdown_workers()  # type: ignore[attr-defined]


#: Processes that read, and the process that started each.
_started: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


@atexit.register
def _end_readers() -> None:
    """Kill those of an iterator that is still alive at the end of this process.

    multiprocessing asks them by SIGTERM, which they ignore, and waits for them without end. It
    registered its own end earlier, so this one comes first.
    """
    own = [process for process, parent in _started.items() if parent == os.getpid()]
    alive = [process for process in own if process.is_alive()]
    if alive:
        with suppress(ValueError):  # in another thread
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's would raise an error
    for process in alive:
        process.kill()


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if isinstance(error, RuntimeError) and not _DEATH.search(str(error)):
            raise  # a bug in a transform, with its traceback
        lines = [line for line in str(error).splitlines() if _DEATH.search(line)]
        reason = (lines or [one_line(error)])[-1].strip().partition(". ")[0].rstrip(".")
        raise ReaderError(
            f"a process that reads images died ({reason}): take fewer --workers (0 reads without "
            "any), or give them more memory, shared memory (/dev/shm) too"
        ) from None


class _ChildSignals:
    """Holds back SIGCHLD unless a batch is waited for.

    torch's handler raises an error wherever the main thread is: in the middle of an optimizer step
    or of a save, say.
    """

    def __init__(self) -> None:
        self._handler: Callable[..., Any] | None = None
        self._waiting = False
        self._loaders = 0

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """While a loader is read, of several at once."""
        self._loaders += 1
        try:
            yield
        finally:
            self._loaders -= 1
            if not self._loaders and self._handler is not None:
                with suppress(ValueError):  # in another thread
                    signal.signal(signal.SIGCHLD, self._handler)

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # torch finds dead processes in seconds without a signal
        self._waiting = True
        if self._handler is not None:
            self._handler(signal.SIGCHLD, None)  # what was held back

    def __exit__(self, *exception: object) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self._waiting = False
        handler = signal.getsignal(signal.SIGCHLD)
        if callable(handler) and handler != self._note:
            self._handler = handler
            signal.signal(signal.SIGCHLD, self._note)

    def _note(self, signum: int, frame: object) -> None:
        if self._waiting and self._handler is not None:
            self._handler(signum, frame)


_signals = _ChildSignals()
