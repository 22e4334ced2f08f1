"""The events of a stream, and their summary."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from dynamicvit.data import Prediction
from dynamicvit.streaming.controller import percentile
from dynamicvit.streaming.levels import Level

#: The percentiles reported.
SHARES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}

#: Number of last frames in the percentiles shown while the stream runs.
_RECENT = 300

#: Relative width of the bins in which latencies are counted; values are right to half of it.
_STEP = 0.01


def milliseconds(seconds: float | None) -> float | None:
    """Milliseconds, rounded to microseconds, the precision of clocks."""
    return None if seconds is None else round(seconds * 1e3, 3)


@dataclass(frozen=True)
class Answer:
    """A classified frame.

    Attributes:
        index: the frame's number.
        time: seconds in the stream, if known.
        name: its file, if it has its own.
        classes: the most probable, best first; of a segmentation model those of the most pixels,
            with their share as probability.
        waiting: seconds from when it was due to the classifier: reading, preparing and queueing;
            0 if frames come as fast as they are classified.
        computing: seconds in the classifier.
        level: the model and keep ratio.
        dropped: frames dropped so far.
        map: of a segmentation model ``(H, W)`` classes of the frame's pixels.
        picture: the frame that it is of.
    """

    index: int
    time: float | None
    name: str | None
    classes: tuple[Prediction, ...]
    waiting: float
    computing: float
    level: Level
    dropped: int
    map: Tensor | None = None
    picture: Image.Image | None = None

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
    """An unreadable frame: its number, and why in one line."""

    index: int
    problem: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"event": "unreadable", "index": self.index, "problem": self.problem}


@dataclass(frozen=True)
class Change:
    """A change of level after a frame.

    Attributes:
        index: the frame's number.
        before: the level until it.
        after: the level from the next frame on.
        measured: latency in seconds that nine of ten of the last frames held.
        target: the target latency in seconds.
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
    """The cheapest level misses the target, reported once; attributes as in :class:`Change`."""

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
    """Latencies in bins, as a stream may run for days."""

    def __init__(self) -> None:
        self._count = 0
        self._bins: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        """Count a latency."""
        self._count += 1
        self._bins[round(math.log(max(seconds, 1e-9)) / math.log1p(_STEP))] += 1

    def percentile(self, share: float) -> float | None:
        """The percentile in seconds, right to half a percent; None without latencies."""
        rank = max(1, math.ceil(share * self._count))
        for power, number in sorted(self._bins.items()):
            rank -= number
            if rank <= 0:
                return (1 + _STEP) ** power
        return None


class Tally:
    """Counts of a stream's events, in bounded memory.

    Args:
        target: the target latency in seconds.
        clock: the time in seconds.

    Attributes:
        frames: answered frames.
        unreadable: unreadable frames.
        changes: changes of level.
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
        # Not the answers, whose pictures are large.
        self._recent: deque[tuple[float, dict[str, float]]] = deque(maxlen=_RECENT)

    def add(self, event: Event) -> None:
        """Count an event."""
        if isinstance(event, Answer):
            self.frames += 1
            self._within += self._target is not None and event.latency <= self._target
            self._levels[event.level] += 1
            values = {part: getattr(event, part) for part in self._parts}
            self._recent.append((self._clock(), values))
            for part, latencies in self._parts.items():
                latencies.add(values[part])
        elif isinstance(event, UnreadableFrame):
            self.unreadable += 1
        elif isinstance(event, Change):
            self.changes += 1

    def recent(self, part: str) -> dict[str, float]:
        """Percentiles in seconds of the last frames' "latency", "waiting" or "computing"."""
        values = [each[part] for _, each in self._recent]
        return {name: percentile(values, share) for name, share in SHARES.items()} if values else {}

    @property
    def recent_rate(self) -> float:
        """Answers per second over the last frames."""
        if len(self._recent) < 2:
            return 0.0
        seconds = self._recent[-1][0] - self._recent[0][0]
        return (len(self._recent) - 1) / seconds if seconds > 0 else 0.0

    def summary(self, dropped: int) -> dict[str, Any]:
        """Counts and percentiles for JSON, in milliseconds right to half a percent.

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
