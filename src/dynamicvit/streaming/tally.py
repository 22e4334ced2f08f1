"""What a stream came to."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from dynamicvit.streaming.latency import Latencies, percentile
from dynamicvit.streaming.levels import Level
from dynamicvit.streaming.loop import Answer, Change, Event, Unreadable

#: The percentiles that are told.
SHARES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}

#: What is shown while the stream runs is of so many frames, the last ones.
_RECENT = 300


class Tally:
    """Counts what a stream yields; how much memory that takes does not depend on its length.

    Args:
        target: latency in seconds that was asked for.
        clock: the time in seconds.

    Attributes:
        frames: answered ones.
        unreadable: frames that could not be read.
        changes: of level.
        last: the last answer.
    """

    def __init__(
        self, target: float | None = None, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.frames = self.unreadable = self.changes = 0
        self.last: Answer | None = None
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
            self.last = event
            self._within += self._target is not None and event.latency <= self._target
            self._levels[event.level] += 1
            self._recent.append((self._clock(), event))
            for part, latencies in self._parts.items():
                latencies.add(getattr(event, part))
        elif isinstance(event, Unreadable):
            self.unreadable += 1
        elif isinstance(event, Change):
            self.changes += 1

    @property
    def rate(self) -> float:
        """Answers per second, from the start."""
        seconds = self._clock() - self._began
        return self.frames / seconds if seconds > 0 else 0.0

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
        """All of it, for JSON; latencies in milliseconds, right to half a percent.

        Args:
            dropped: frames that were lost.
        """
        found: dict[str, Any] = {
            "frames": self.frames,
            "dropped": dropped,
            "unreadable": self.unreadable,
            "seconds": round(self._clock() - self._began, 3),
            "fps": round(self.rate, 2),
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


def milliseconds(seconds: float | None) -> float | None:
    """To microseconds: clocks don't know more."""
    return None if seconds is None else round(seconds * 1e3, 3)
