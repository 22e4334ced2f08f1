"""The few frames that wait between the thread that reads and the one that classifies."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from dynamicvit.errors import InputError

T = TypeVar("T")

#: How often a thread that waits for a frame looks whether it shall stop, in seconds.
_LOOK = 0.1


class Waiting(Generic[T]):
    """A bounded queue in order. When it is full, the oldest is dropped: new frames matter most.

    Args:
        places: how many wait at most.
        lossless: when it is full, let the reader wait in place of dropping.

    Attributes:
        dropped: how many were dropped so far.

    Raises:
        InputError: for less than one place.
    """

    def __init__(self, places: int, *, lossless: bool = False) -> None:
        if places < 1:
            raise InputError(f"at least 1 frame waits in the queue, got {places}")
        self.dropped = 0
        self._places = places
        self._lossless = lossless
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._finished = False
        self._error: BaseException | None = None

    # ---------------------------------------------------------------- the thread that reads

    def put(self, item: T) -> None:
        """Add one at the end; nothing happens once the queue is closed."""
        with self._changed:
            if self._lossless:
                self._changed.wait_for(self._has_place)
            elif len(self._items) == self._places:
                self._items.popleft()
                self.dropped += 1
            if not self.closed:
                self._items.append(item)
            self._changed.notify_all()

    def skip(self) -> None:
        """Count one as dropped that came too late to be put."""
        with self._changed:
            self.dropped += 1

    def rest(self, seconds: float) -> None:
        """Sleep, but not on after the queue is closed."""
        self._closed.wait(seconds)

    def finish(self, error: BaseException | None = None) -> None:
        """Say that no more will come; the error is raised where they are taken, after the rest."""
        with self._changed:
            self._finished, self._error = True, error
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """Whether the taker has stopped."""
        return self._closed.is_set()

    # ---------------------------------------------------------------- the thread that classifies

    def take(self, stopped: Callable[[], bool] = lambda: False) -> T | None:
        """The oldest, as soon as there is one; ``None`` at the end.

        Args:
            stopped: polled while there is none; true ends the wait.

        Raises:
            BaseException: what the reader raised.
        """
        with self._changed:
            while not self._items and not self._finished:
                if stopped():
                    return None
                self._changed.wait(_LOOK)
            if self._items:
                item = self._items.popleft()
                self._changed.notify_all()
                return item
            if self._error is not None:
                raise self._error
            return None

    def close(self) -> None:
        """Release the reader; items that wait are discarded."""
        with self._changed:
            self._closed.set()
            self._items.clear()
            self._changed.notify_all()

    def _has_place(self) -> bool:
        return self.closed or len(self._items) < self._places
