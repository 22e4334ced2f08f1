"""Frames read, paced and prepared in a thread of their own.

A file at a rate plays like a camera: each frame is due at its time, ready or not.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from dynamicvit.errors import InputError
from dynamicvit.streaming.frames import Frame, FrameSource
from dynamicvit.streaming.waiting import Waiting

#: Seconds to wait for the thread, which a camera without frames blocks.
_PATIENCE = 2.0


@dataclass(frozen=True)
class Ready:
    """A frame for the classifier.

    Attributes:
        index: the frame's number.
        time: seconds in the stream, if known.
        name: its file, if it has its own.
        due: clock time from which its latency counts; None for when the classifier takes it.
        images: ``(1, C, H, W)``, normalized; None if unreadable.
        problem: why it is unreadable.
        picture: the frame itself, if it can be read.
    """

    index: int
    time: float | None
    name: str | None
    due: float | None
    images: Tensor | None
    problem: str | None = None
    picture: Image.Image | None = None


class Feed:
    """Frames ready for the classifier, read and prepared ahead in a thread.

    Late frames are dropped before they are prepared.

    Args:
        source: of the frames; closed at the end.
        prepare: from an image of any mode to ``(1, C, H, W)``.
        fps: see :class:`Pace`.
        places: length of the queue.
        clock: the time in seconds.
        stopped: polled while waiting for a frame; true ends the frames.

    Raises:
        InputError: for an ``fps`` or ``places`` out of range.
    """

    def __init__(
        self,
        source: FrameSource,
        prepare: Callable[[Image.Image], Tensor],
        *,
        fps: float | None = None,
        places: int = 2,
        clock: Callable[[], float] = time.perf_counter,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._source = source
        self._prepare = prepare
        self._stopped = stopped
        self._pace = Pace(
            source, fps, places=places, clock=clock, rest=lambda s: self._waiting.closed.wait(s)
        )
        self._waiting: Waiting[Ready] = Waiting(places, lossless=self._pace.lossless)
        self._thread = threading.Thread(target=self._read, name="dynamicvit-frames", daemon=True)

    @property
    def dropped(self) -> int:
        """Frames dropped so far."""
        return self._waiting.dropped

    @property
    def period(self) -> float | None:
        """Seconds between frames, if they come at a rate."""
        return self._pace.period

    def __enter__(self) -> Feed:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.close()
        self._thread.join(_PATIENCE)

    def __iter__(self) -> Iterator[Ready]:
        """The frames in order, without the dropped ones.

        Raises:
            InputError: after the last frame of a source that breaks off.
        """
        while not self._stopped() and (ready := self._waiting.take(self._stopped)):
            yield ready

    def _read(self) -> None:
        try:
            with closing(self._source):
                for frame in self._source:
                    moment = self._pace.wait_for(frame)
                    if self._waiting.closed.is_set():
                        return
                    if moment.late:
                        self._waiting.skip()
                    else:
                        self._waiting.put(self._ready(frame, moment))
        except BaseException as error:  # raised in the other thread
            self._waiting.finish(error)
        else:
            self._waiting.finish()

    def _ready(self, frame: Frame, moment: Moment) -> Ready:
        images = problem = picture = None
        try:
            picture = frame.read()
        except InputError as error:
            problem = str(error)
        else:
            images = self._prepare(picture)
        return Ready(frame.index, moment.time, frame.name, moment.due, images, problem, picture)


class Moment(NamedTuple):
    """When a frame comes.

    Attributes:
        time: seconds in the stream, if known.
        due: clock time from which its latency counts; None if the source waits.
        late: whether newer frames that are due fill the queue.
    """

    time: float | None
    due: float | None
    late: bool = False


class Pace:
    """Waits for each frame's moment.

    Args:
        source: of the frames.
        fps: frames per second in place of the source's own times; 0 for as fast as they are
            classified. By default videos play at their own times, images come as fast as they are
            classified, and a camera sets the pace.
        places: length of the queue.
        clock: the time in seconds.
        rest: sleeps for some seconds.

    Attributes:
        lossless: whether frames come as fast as they are classified, so none is dropped.
        period: seconds between frames, if they come at a known rate.

    Raises:
        InputError: for a rate below 0, or 0 for a camera.
    """

    def __init__(
        self,
        source: FrameSource,
        fps: float | None,
        *,
        places: int,
        clock: Callable[[], float],
        rest: Callable[[float], object],
    ) -> None:
        if fps is not None and not (0 <= fps < math.inf):
            raise InputError(f"fps must be positive, or 0 for as fast as possible, got {fps}")
        if source.live and fps == 0:
            raise InputError(f"{source.name} is a camera: fps must be positive, got 0")
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
        """Wait until a frame is due; the first is due at once."""
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
