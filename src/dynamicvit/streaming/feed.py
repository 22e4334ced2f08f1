"""A source read, paced and prepared in a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from dynamicvit.errors import InputError
from dynamicvit.streaming.frames import Frame, Source
from dynamicvit.streaming.pacing import Moment, Pace
from dynamicvit.streaming.waiting import Waiting

#: A camera that gives no frame can't be interrupted: its thread is left behind after these seconds.
_PATIENCE = 2.0


@dataclass(frozen=True)
class Ready:
    """A frame for the classifier.

    Attributes:
        index: the frame's number.
        time: seconds in the stream, if they are known.
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
        fps: see :class:`~dynamicvit.streaming.pacing.Pace`.
        places: frames that wait at most.
        clock: the time in seconds.
        stopped: asked while there is no frame; if it says so, that was the last one.

    Raises:
        InputError: for values that can't be.
    """

    def __init__(
        self,
        source: Source,
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
        """The frames in order, those that are dropped left out.

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
        except BaseException as error:  # whatever it is, the other thread has to hear of it
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
