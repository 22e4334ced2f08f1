"""Frames in, answers out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from dynamicvit.data import Prediction, top_classes
from dynamicvit.errors import InputError
from dynamicvit.streaming.controller import Controller, Step
from dynamicvit.streaming.feed import Ready
from dynamicvit.streaming.levels import Level


class Frames(Protocol):
    """What the loop asks of a :class:`~dynamicvit.streaming.feed.Feed`."""

    @property
    def dropped(self) -> int:
        """Frames lost so far."""
        ...

    def __iter__(self) -> Iterator[Ready]:
        """The others, in order."""
        ...


@dataclass(frozen=True)
class Answer:
    """A frame, classified.

    Attributes:
        index: the frame's number.
        time: seconds in the stream, if they are known.
        name: of its file, if it has one of its own.
        classes: the likeliest, best first.
        waiting: seconds from when it was due until the classifier took it: reading, preparing and
            queueing. 0 where frames come as fast as they are classified.
        computing: seconds that the classifier took.
        level: what it was classified with.
        dropped: frames lost so far.
    """

    index: int
    time: float | None
    name: str | None
    classes: tuple[Prediction, ...]
    waiting: float
    computing: float
    level: Level
    dropped: int

    @property
    def latency(self) -> float:
        """Seconds from when the frame was due to its answer."""
        return self.waiting + self.computing


@dataclass(frozen=True)
class Unreadable:
    """A frame that can't be read.

    Attributes:
        index: its number.
        problem: what is wrong, in a line.
    """

    index: int
    problem: str


@dataclass(frozen=True)
class Change:
    """From the next frame on another level is used.

    Attributes:
        index: number of the frame after which.
        before: the level so far.
        after: the level from now on.
        measured: latency in seconds that nine of ten of the last frames did not exceed.
        target: that was asked for, in seconds.
    """

    index: int
    before: Level
    after: Level
    measured: float
    target: float


@dataclass(frozen=True)
class Missed:
    """The target can't be held: the cheapest level is in use and takes longer. Said once.

    Attributes:
        index: number of the frame after which.
        level: that level.
        measured: as in :class:`Change`.
        target: likewise.
    """

    index: int
    level: Level
    measured: float
    target: float


Event = Answer | Unreadable | Change | Missed


def stream(
    frames: Frames,
    levels: Sequence[Level],
    names: Sequence[str],
    *,
    top: int = 1,
    controller: Controller | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Event]:
    """Classify frames one by one, in order.

    Args:
        frames: ready to be classified.
        levels: what to classify with, by the indices of ``controller``; without one, the first.
        names: of the classes.
        top: how many classes an answer has.
        controller: chooses among the levels.
        clock: the time in seconds, the same that the frames are due by.

    Returns:
        An answer for each frame, and what else there is to say, as it happens. What ends the
        frames before their end is raised there.

    Raises:
        InputError: for less than one class in an answer.
    """
    if top < 1:
        raise InputError(f"an answer has at least 1 class, got {top}")
    return _answers(frames, levels, names, top, controller, clock)


def _answers(
    frames: Frames,
    levels: Sequence[Level],
    names: Sequence[str],
    top: int,
    controller: Controller | None,
    clock: Callable[[], float],
) -> Iterator[Event]:
    for frame in frames:
        if frame.images is None:
            yield Unreadable(frame.index, frame.problem or "")
            continue
        level = levels[controller.level if controller else 0]
        began = clock()
        logits = level.classify(frame.images)
        computing = clock() - began
        answer = Answer(
            index=frame.index,
            time=frame.time,
            name=frame.name,
            classes=tuple(top_classes(logits, names, top)),
            waiting=0.0 if frame.due is None else began - frame.due,
            computing=computing,
            level=level,
            dropped=frames.dropped,
        )
        yield answer
        if controller is None:
            continue
        verdict = controller.after(answer.latency, computing)
        if isinstance(verdict, Step):
            before, after = levels[verdict.before], levels[verdict.after]
            yield Change(frame.index, before, after, verdict.measured, controller.target)
        elif verdict is not None:
            yield Missed(frame.index, level, verdict.measured, controller.target)
