"""Which keep ratio holds a target latency.

One frame says little, as a machine hiccups, so what counts is the latency that nine of ten of the
last frames did not exceed. When it misses the target, the controller goes one level down at once.
It goes one level up when the level's measured cost leaves room, more rarely the more often that
has failed.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from dynamicvit.errors import InputError

#: The share of frames that has to hold the target.
SHARE = 0.9

#: The share is of this many frames, the last ones; as many pass before going up.
WINDOW = 30

#: Fewer frames than these decide nothing.
FEWEST = 10

#: Going up needs an expected latency of at most this share of the target.
MARGIN = 0.9

#: A level that fails is tried again after twice as many frames, up to so many windows.
RAREST = 16


@dataclass(frozen=True)
class Step:
    """Go from one level to another.

    Attributes:
        before: index of the level.
        after: likewise; larger is cheaper.
        measured: latency in seconds that nine of ten frames did not exceed.
    """

    before: int
    after: int
    measured: float


@dataclass(frozen=True)
class Miss:
    """Not even the cheapest level holds the target.

    Attributes:
        measured: latency in seconds that nine of ten frames did not exceed.
    """

    measured: float


class Controller:
    """Chooses among levels, the most costly first, by the latencies measured.

    Args:
        costs: seconds of computing at each level, measured here; only their ratios matter later.
        target: latency in seconds.
        period: seconds between frames, if they come at a rate.
        places: frames that wait at most.

    Attributes:
        level: index of the one to classify with now.

    Raises:
        InputError: for a target that is not positive.
    """

    def __init__(
        self, costs: Sequence[float], target: float, *, period: float | None = None, places: int = 2
    ) -> None:
        if not target > 0:
            raise InputError(f"a target latency is positive, got {target}")
        self.target = target
        self._costs = costs
        self._queue = 0.0 if period is None else places * period
        self._period = period
        self._places = places
        self._patience = [WINDOW] * len(costs)
        self._said = False
        fitting = [level for level, cost in enumerate(costs) if self._fits(self._alone(cost))]
        self._enter(fitting[0] if fitting else len(costs) - 1, ignore=0)

    def after(self, latency: float, computing: float) -> Step | Miss | None:
        """Count a frame, and decide.

        Args:
            latency: in seconds, from when the frame was due to its answer.
            computing: seconds of it that the classifier took.

        Returns:
            A step, which is taken already; a miss, once; or ``None``.
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
            return self._down(measured)
        if self.level == 0 or self._frames < self._patience[self.level - 1]:
            return None
        return self._up(measured) if self._fits(self._expected(measured)) else None

    def _down(self, measured: float) -> Step | Miss | None:
        before = self.level
        if before == len(self._costs) - 1:
            said, self._said = self._said, True
            return None if said else Miss(measured)
        rarest = RAREST * WINDOW
        held = self._frames >= rarest
        self._patience[before] = WINDOW if held else min(2 * self._patience[before], rarest)
        self._enter(before + 1)
        return Step(before, self.level, measured)

    def _up(self, measured: float) -> Step:
        before = self.level
        self._enter(before - 1)
        return Step(before, self.level, measured)

    def _enter(self, level: int, ignore: int | None = None) -> None:
        self.level = level
        self._frames = 0
        # Those that wait already have waited for frames at the level before.
        self._ignored = self._places if ignore is None else ignore
        self._latencies: deque[float] = deque(maxlen=WINDOW)
        self._computing: deque[float] = deque(maxlen=WINDOW)

    def _expected(self, measured: float) -> float:
        """Latency one level up: more computing, and a full queue if it can't keep up any more."""
        now = median(self._computing)
        then = now * self._costs[self.level - 1] / self._costs[self.level]
        fills = self._overruns(then) and not self._overruns(now)
        return measured + then - now + (self._queue if fills else 0)

    def _alone(self, cost: float) -> float:
        """Latency by the cost of computing alone."""
        return cost + (self._queue if self._overruns(cost) else 0)

    def _overruns(self, computing: float) -> bool:
        return self._period is not None and computing > self._period

    def _fits(self, latency: float) -> bool:
        return latency <= MARGIN * self.target


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest of the values that this share of them does not exceed.

    Args:
        values: at least one.
        share: in (0, 1]; 0.9: nine of ten are this or less.
    """
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
