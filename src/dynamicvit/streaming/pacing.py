"""When frames are due.

A file, played at its rate, stands for a camera: each frame is due at its time, whether somebody is
ready for it or not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from dynamicvit.errors import InputError
from dynamicvit.streaming.frames import Frame, Source


class Moment(NamedTuple):
    """When a frame comes.

    Attributes:
        time: seconds in the stream; ``None`` if nobody knows.
        due: the clock's seconds from which its latency counts; ``None`` if it has no moment of its
            own, as it comes when the classifier is ready.
        late: whether it is due for so long that newer ones take all the places in the queue.
    """

    time: float | None
    due: float | None
    late: bool = False


class Pace:
    """Waits for each frame's moment.

    Args:
        source: of the frames.
        fps: frames per second in place of the source's own times. 0: as fast as they are
            classified. By default a file plays at its own times, and images as fast as they are
            classified; a camera sets its pace itself.
        places: in the queue.
        clock: the time in seconds.
        rest: sleeps so many seconds.

    Attributes:
        lossless: whether frames come only as fast as they are classified, so that none is dropped.
        period: seconds between frames, as far as that is known, if they come at a rate.

    Raises:
        InputError: for a rate below 0, or 0 for a camera.
    """

    def __init__(
        self,
        source: Source,
        fps: float | None,
        *,
        places: int,
        clock: Callable[[], float],
        rest: Callable[[float], None],
    ) -> None:
        if fps is not None and not (0 <= fps < math.inf):
            raise InputError(f"frames per second are positive, or 0 for all there is, got {fps}")
        if source.live and fps == 0:
            raise InputError(
                f"{source.name} does not wait, so frames get lost: 0 frames per second can't be"
            )
        rate = fps if fps is not None else source.rate
        self.lossless = not source.live and not rate
        self.period = 1 / rate if rate else None
        self._live = source.live
        self._fps = fps
        self._places = places
        self._clock = clock
        self._rest = rest
        self._start: float | None = None

    def wait_for(self, frame: Frame) -> Moment:
        """Wait until a frame is due; the first one is at once."""
        now = self._clock()
        if self._start is None:
            self._start = now
        if self._live:
            return Moment(now - self._start, now)
        if self.lossless:
            return Moment(frame.time, None)
        time = frame.index / self._fps if self._fps else frame.time
        assert time is not None
        assert self.period is not None
        due = self._start + time
        if now < due:
            self._rest(due - now)
        return Moment(time, due, late=due + self._places * self.period <= now)
