"""The choice of the keep ratio that holds a target latency.

Single frames are noisy, so the controller compares the 90th percentile of the last frames' latency
with the target. It goes one level down as soon as that misses the target, and one level up when
the measured cost of that level leaves room, more rarely after each failure.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from statistics import median

from dynamicvit.errors import InputError

#: Fraction of frames that must hold the target.
SHARE = 0.9

#: Number of last frames that count, and of frames at a level before going up.
WINDOW = 30

#: Frames needed for a decision.
FEWEST = 10

#: Fraction of the target within which the expected latency must lie to go up.
MARGIN = 0.9

#: Windows at most before a failed level is tried again; each failure doubles them.
RAREST = 16


class Controller:
    """Chooses among levels, the most expensive first, by measured latencies.

    Args:
        costs: measured seconds of computing at each level; later only their ratios matter.
        target: latency in seconds.
        period: seconds between frames, if they come at a rate.
        places: length of the queue of frames.

    Attributes:
        level: index of the current level.

    Raises:
        InputError: for a target that is not positive.
    """

    def __init__(
        self, costs: Sequence[float], target: float, *, period: float | None = None, places: int = 2
    ) -> None:
        if not target > 0:
            raise InputError(f"target latency must be positive, got {target}")
        self.target = target
        self._costs = costs
        self._queue = 0.0 if period is None else places * period
        self._period = period
        self._places = places
        self._patience = [WINDOW] * len(costs)
        self._reported = False
        fitting = [level for level, cost in enumerate(costs) if self._fits(self._alone(cost))]
        self._enter(fitting[0] if fitting else len(costs) - 1, ignore=0)

    def after(self, latency: float, computing: float) -> float | None:
        """Count a frame and choose the level for the next.

        Args:
            latency: seconds from when the frame was due to its answer.
            computing: seconds of it in the classifier.

        Returns:
            The latency in seconds that nine of ten frames held, if ``level`` has changed or, once,
            if the cheapest level misses the target; else None.
        """
        if self._ignored:
            self._ignored -= 1
            return None
        self._frames += 1
        self._latencies.append(latency)
        self._computing.append(computing)
        if len(self._latencies) < FEWEST:
            return None
        measured = percentile(self._latencies, SHARE)
        if measured > self.target:
            return measured if self._down() else None
        if self.level == 0 or self._frames < self._patience[self.level - 1]:
            return None
        if not self._fits(self._expected(measured)):
            return None
        self._enter(self.level - 1, ignore=self._places)
        return measured

    def _down(self) -> bool:
        """Go one level down; whether there is anything new to report."""
        level = self.level
        if level == len(self._costs) - 1:
            reported, self._reported = self._reported, True
            return not reported
        rarest = RAREST * WINDOW
        held = self._frames >= rarest
        self._patience[level] = WINDOW if held else min(2 * self._patience[level], rarest)
        self._enter(level + 1, ignore=self._places)
        return True

    def _enter(self, level: int, ignore: int) -> None:
        self.level = level
        self._frames = 0
        self._ignored = ignore  # frames in the queue have waited for frames at the level before
        self._latencies: deque[float] = deque(maxlen=WINDOW)
        self._computing: deque[float] = deque(maxlen=WINDOW)

    def _expected(self, measured: float) -> float:
        """Latency one level up: more computing, and a full queue if it no longer keeps up."""
        now = median(self._computing)
        then = now * self._costs[self.level - 1] / self._costs[self.level]
        fills = self._overruns(then) and not self._overruns(now)
        return measured + then - now + (self._queue if fills else 0)

    def _alone(self, cost: float) -> float:
        """Latency from the cost of computing alone."""
        return cost + (self._queue if self._overruns(cost) else 0)

    def _overruns(self, computing: float) -> bool:
        return self._period is not None and computing > self._period

    def _fits(self, latency: float) -> bool:
        return latency <= MARGIN * self.target


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest value that a share in (0, 1] of the values, at least one, does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
