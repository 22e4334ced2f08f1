"""The queue between the thread that reads and the thread that classifies."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from dynamicvit.errors import InputError

T = TypeVar("T")

#: Seconds between polls of ``stopped``.
_POLL = 0.1


class Waiting(Generic[T]):
    """A bounded queue that drops its oldest item when full, as new frames matter most.

    Args:
        places: its length.
        lossless: when full, block the reader in place of dropping.

    Attributes:
        dropped: items dropped so far.
        closed: set once the taker has stopped.

    Raises:
        InputError: for a length below 1.
    """

    def __init__(self, places: int, *, lossless: bool = False) -> None:
        if places < 1:
            raise InputError(f"queue must hold at least 1 frame, got {places}")
        self.dropped = 0
        self._places = places
        self._lossless = lossless
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self.closed = threading.Event()
        self._finished = False
        self._error: BaseException | None = None

    # ---------------------------------------------------------------- the thread that reads

    def put(self, item: T) -> None:
        """Append an item, unless the queue is closed."""
        with self._changed:
            if self._lossless:
                self._changed.wait_for(
                    lambda: self.closed.is_set() or len(self._items) < self._places
                )
            elif len(self._items) == self._places:
                self._items.popleft()
                self.dropped += 1
            if not self.closed.is_set():
                self._items.append(item)
            self._changed.notify_all()

    def skip(self) -> None:
        """Count an item as dropped before it is put."""
        with self._changed:
            self.dropped += 1

    def finish(self, error: BaseException | None = None) -> None:
        """End the items; :meth:`take` raises the error after the last one."""
        with self._changed:
            self._finished, self._error = True, error
            self._changed.notify_all()

    # ---------------------------------------------------------------- the thread that classifies

    def take(self, stopped: Callable[[], bool] = lambda: False) -> T | None:
        """Wait for the oldest item; None at the end, or when the polled ``stopped`` is true.

        Raises:
            BaseException: the reader's.
        """
        with self._changed:
            while not self._items and not self._finished:
                if stopped():
                    return None
                self._changed.wait(_POLL)
            if self._items:
                item = self._items.popleft()
                self._changed.notify_all()
                return item
            if self._error is not None:
                raise self._error
            return None

    def close(self) -> None:
        """Release the reader and discard the items."""
        with self._changed:
            self.closed.set()
            self._items.clear()
            self._changed.notify_all()
