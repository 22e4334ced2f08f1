"""Percentiles of latencies: of a few exactly, of any number within one percent."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

#: Classes of latencies lie so much apart: a value is known to half of that.
_STEP = 0.01


def percentile(values: Iterable[float], share: float) -> float:
    """The least of the values that so large a share of them does not exceed.

    Args:
        values: at least one.
        share: in (0, 1]; 0.9: nine of ten are this or less.
    """
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


class Latencies:
    """Latencies of a stream that may go on for days: they are counted by size, not kept.

    Attributes:
        count: how many there were.
    """

    def __init__(self) -> None:
        self.count = 0
        self._classes: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        """Count one."""
        self.count += 1
        self._classes[round(math.log(max(seconds, 1e-9)) / math.log1p(_STEP))] += 1

    def percentile(self, share: float) -> float | None:
        """As :func:`percentile`, within half a percent; ``None`` before the first."""
        rank = max(1, math.ceil(share * self.count))
        for size, number in sorted(self._classes.items()):
            rank -= number
            if rank <= 0:
                return (1 + _STEP) ** size
        return None
