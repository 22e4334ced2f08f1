"""What a stream yields, event by event, and what all of it comes to."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dynamicvit.data import Prediction
from dynamicvit.streaming.controller import percentile
from dynamicvit.streaming.levels import Level, milliseconds

#: The percentiles reported.
SHARES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}

#: The percentiles shown while the stream runs are of so many frames, the last ones.
_RECENT = 300

#: Latencies are counted in bins that differ by this share, so a value is known to half of it.
_STEP = 0.01


@dataclass(frozen=True)
class Answer:
    """A frame, classified.

    Attributes:
        index: the frame's number.
        time: seconds in the stream, if known.
        name: of its file, if it has one of its own.
        classes: the most probable, best first.
        waiting: seconds from when it was due until the classifier took it: reading, preparing and
            queueing. 0 where frames come as fast as they are classified.
        computing: seconds that the classifier took.
        level: what it was classified with.
        dropped: frames dropped so far.
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

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        found: dict[str, Any] = {"event": "frame", "index": self.index}
        if self.time is not None:
            found["time"] = round(self.time, 6)
        if self.name is not None:
            found["file"] = self.name
        return {
            **found,
            "classes": [
                {**each._asdict(), "probability": round(each.probability, 6)}
                for each in self.classes
            ],
            "latency_ms": milliseconds(self.latency),
            "waiting_ms": milliseconds(self.waiting),
            "computing_ms": milliseconds(self.computing),
            "keep_ratio": self.level.keep_ratio,
            "dropped": self.dropped,
        }


@dataclass(frozen=True)
class UnreadableFrame:
    """A frame that can't be read.

    Attributes:
        index: its number.
        problem: why, in a line.
    """

    index: int
    problem: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"event": "unreadable", "index": self.index, "problem": self.problem}


@dataclass(frozen=True)
class Change:
    """Another level is used from the next frame on.

    Attributes:
        index: number of the frame before.
        before: the level so far.
        after: the level from now on.
        measured: latency in seconds that nine of ten of the last frames did not exceed.
        target: latency in seconds that was asked for.
    """

    index: int
    before: Level
    after: Level
    measured: float
    target: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "event": "change",
            "index": self.index,
            "before": self.before.as_dict(),
            "after": self.after.as_dict(),
            "latency_ms": milliseconds(self.measured),
            "target_ms": milliseconds(self.target),
        }


@dataclass(frozen=True)
class Missed:
    """Not even the cheapest level holds the target. Said once.

    Attributes:
        index: number of the frame before.
        level: the cheapest.
        measured: as in :class:`Change`.
        target: likewise.
    """

    index: int
    level: Level
    measured: float
    target: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "event": "missed",
            "index": self.index,
            **self.level.as_dict(),
            "latency_ms": milliseconds(self.measured),
            "target_ms": milliseconds(self.target),
        }


Event = Answer | UnreadableFrame | Change | Missed


class Latencies:
    """Latencies of a stream that may run for days: counted by size, not stored."""

    def __init__(self) -> None:
        self._count = 0
        self._bins: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        """Count one."""
        self._count += 1
        self._bins[round(math.log(max(seconds, 1e-9)) / math.log1p(_STEP))] += 1

    def percentile(self, share: float) -> float | None:
        """As :func:`~dynamicvit.streaming.controller.percentile`, within half a percent.

        ``None`` before the first.
        """
        rank = max(1, math.ceil(share * self._count))
        for size, number in sorted(self._bins.items()):
            rank -= number
            if rank <= 0:
                return (1 + _STEP) ** size
        return None


class Tally:
    """Counts what a stream yields; its memory does not grow with the stream.

    Args:
        target: latency in seconds that was asked for.
        clock: the time in seconds.

    Attributes:
        frames: answered ones.
        unreadable: frames that could not be read.
        changes: of level.
    """

    def __init__(
        self, target: float | None = None, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.frames = self.unreadable = self.changes = 0
        self._target = target
        self._within = 0
        self._clock = clock
        self._began = clock()
        self._parts = {part: Latencies() for part in ("latency", "waiting", "computing")}
        self._levels: Counter[Level] = Counter()
        self._recent: deque[tuple[float, Answer]] = deque(maxlen=_RECENT)

    def add(self, event: Event) -> None:
        """Count an event."""
        if isinstance(event, Answer):
            self.frames += 1
            self._within += self._target is not None and event.latency <= self._target
            self._levels[event.level] += 1
            self._recent.append((self._clock(), event))
            for part, latencies in self._parts.items():
                latencies.add(getattr(event, part))
        elif isinstance(event, UnreadableFrame):
            self.unreadable += 1
        elif isinstance(event, Change):
            self.changes += 1

    def recent(self, part: str) -> dict[str, float]:
        """Percentiles in seconds of the last frames.

        Args:
            part: "latency", "waiting" or "computing".
        """
        values = [getattr(answer, part) for _, answer in self._recent]
        return {name: percentile(values, share) for name, share in SHARES.items()} if values else {}

    @property
    def recent_rate(self) -> float:
        """Answers per second, of the last frames."""
        if len(self._recent) < 2:
            return 0.0
        seconds = self._recent[-1][0] - self._recent[0][0]
        return (len(self._recent) - 1) / seconds if seconds > 0 else 0.0

    def summary(self, dropped: int) -> dict[str, Any]:
        """All of it, for JSON; latencies in milliseconds, within half a percent.

        Args:
            dropped: frames that came too late for the classifier.
        """
        seconds = self._clock() - self._began
        found: dict[str, Any] = {
            "frames": self.frames,
            "dropped": dropped,
            "unreadable": self.unreadable,
            "seconds": round(seconds, 3),
            "fps": round(self.frames / seconds, 2) if seconds > 0 else 0.0,
        }
        for part, latencies in self._parts.items():
            values = {name: latencies.percentile(share) for name, share in SHARES.items()}
            found[f"{part}_ms"] = {name: milliseconds(value) for name, value in values.items()}
        found["levels"] = [
            {"model": level.model, "keep_ratio": level.keep_ratio, "frames": number}
            for level, number in self._levels.items()
        ]
        if self._target is not None:
            found["changes"] = self.changes
            found["within_target"] = round(self._within / self.frames, 4) if self.frames else None
        return found
