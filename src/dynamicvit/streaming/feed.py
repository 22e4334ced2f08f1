"""A source read, paced and prepared in a thread of its own.

A file played at its rate stands for a camera: each frame is due at its time, ready or not.
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

#: A camera that gives no frame can't be interrupted: its thread is left behind after these seconds.
_PATIENCE = 2.0


@dataclass(frozen=True)
class Ready:
    """A frame for the classifier.

    Attributes:
        index: the frame's number.
        time: seconds in the stream, if known.
        name: of its file, if it has one of its own.
        due: the clock's seconds from which its latency counts; ``None``: from when it is taken.
        images: ``(1, channels, height, width)``, normalized; ``None`` if it can't be read.
        problem: why it can't.
    """

    index: int
    time: float | None
    name: str | None
    due: float | None
    images: Tensor | None
    problem: str | None = None


class Feed:
    """Frames ready to be classified, read ahead in a thread.

    Pictures are converted, resized and normalized in that thread too: while the classifier is at
    one, the next is made ready, so the slower of the two sets the rate, and not their sum. Late
    frames are dropped before that work.

    Args:
        source: of the frames; closed at the end.
        prepare: from an RGB image to ``(1, channels, height, width)``.
        fps: see :class:`Pace`.
        places: frames that wait at most.
        clock: the time in seconds.
        stopped: polled while there is no frame; true ends the frames.

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
        self.places = places
        self._source = source
        self._prepare = prepare
        self._stopped = stopped
        self._pace = Pace(source, fps, places=places, clock=clock, rest=self._rest)
        self._waiting: Waiting[Ready] = Waiting(places, lossless=self._pace.lossless)
        self._thread = threading.Thread(target=self._read, name="dynamicvit-frames", daemon=True)

    @property
    def dropped(self) -> int:
        """Frames that came too late for the classifier, so far."""
        return self._waiting.dropped

    @property
    def period(self) -> float | None:
        """Seconds between two frames, if they come at a rate."""
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
            InputError: where the source breaks off, after the frames before.
        """
        while not self._stopped():
            ready = self._waiting.take(self._stopped)
            if ready is None:
                return
            yield ready

    def _rest(self, seconds: float) -> None:
        self._waiting.rest(seconds)

    def _read(self) -> None:
        try:
            with closing(self._source):
                for frame in self._source:
                    moment = self._pace.wait_for(frame)
                    if self._waiting.closed:
                        return
                    if moment.late:
                        self._waiting.skip()
                    else:
                        self._waiting.put(self._ready(frame, moment))
        except BaseException as error:  # of any kind: the other thread raises it
            self._waiting.finish(error)
        else:
            self._waiting.finish()

    def _ready(self, frame: Frame, moment: Moment) -> Ready:
        images, problem = None, None
        try:
            picture = frame.read()
        except InputError as error:
            problem = str(error)
        else:
            images = self._prepare(picture)
        return Ready(frame.index, moment.time, frame.name, moment.due, images, problem)


class Moment(NamedTuple):
    """When a frame comes.

    Attributes:
        time: seconds in the stream; ``None`` if unknown.
        due: the clock's seconds from which its latency counts; ``None`` if it comes when the
            classifier is ready.
        late: whether newer frames that are due fill the queue already.
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
        source: FrameSource,
        fps: float | None,
        *,
        places: int,
        clock: Callable[[], float],
        rest: Callable[[float], None],
    ) -> None:
        if fps is not None and not (0 <= fps < math.inf):
            raise InputError(f"frames per second are positive, or 0 for all there is, got {fps}")
        if source.live and fps == 0:
            raise InputError(f"{source.name} does not wait, so it can't run at 0 frames per second")
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
